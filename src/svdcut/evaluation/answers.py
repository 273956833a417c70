"""The answers a model chooses from, the questions it is asked, and the labels it predicted.

It imports no torch and knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from svdcut.errors import EvaluationError, UsageError, listed
from svdcut.evaluation.dataset import Dataset
from svdcut.files.atomic_write import write_whole
from svdcut.files.jsonfile import quoted
from svdcut.shown import write_csv


class Kind(str, Enum):
    """How a model chooses a label."""

    CLASSIFIER = "classifier"
    """By a head with one class per label."""

    LANGUAGE_MODEL = "language model"
    """By the likelihood of one word per label after a prompt."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The labels that a model chooses from."""

    labels: tuple[str, ...]
    """As the data spells them. A class that no label matches keeps its own name."""

    words: tuple[str, ...]
    """The model's name for each label: a class of the head, or a word after the prompt."""


@dataclass(frozen=True, slots=True)
class Item:
    """Tokens that go through the model once."""

    row: int
    """Index of the text in the dataset."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    """For each token, which text of a pair it belongs to; None if the model has no types."""

    continuations: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """For a language model: the tokens of each word to score, by the index of its answer. The
    words share all tokens but their last."""


@dataclass(frozen=True, slots=True)
class Task:
    """A dataset, tokenised for a model."""

    answers: Answers
    items: list[Item]
    """One or more for each row."""

    num_truncated: int
    """Rows that were too long and were cut."""

    score: Callable[[Any, Sequence[Item]], list[dict[int, float]]]
    """Runs a model on a batch; returns scores by the index of the answer, for each item."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The label that a model predicts for each row, and the scores behind it."""

    kind: Kind
    answers: Answers
    predicted: tuple[str, ...]
    """One label for each row; the first of those with the best score."""

    scores: tuple[tuple[float, ...], ...]
    """For each row and label, the log-probability of the class, or of the word given the
    prompt. With ``normalize`` the latter is divided by the number of characters."""

    num_truncated: int
    """Rows that were too long for the model and were cut."""

    chat_template: bool | None
    """Whether prompts were messages in a chat template; None for a classifier."""

    dtype: str

    def matches(self, labels: Sequence[str]) -> list[bool]:
        """Return which rows have the right label."""
        return [ours == theirs for ours, theirs in zip(self.predicted, labels, strict=True)]


# Labels and words


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels: by number if all are integers, else alphabetically."""
    found = sorted(set(labels))
    return sorted(found, key=int) if all(map(_is_integer, found)) else found


def name_labels(labels: Iterable[str], words: Sequence[str]) -> dict[str, str]:
    """Return the model's word for each label.

    Parameters
    ----------
    labels : iterable of str
        The labels of the data; repeats are ignored.
    words : sequence of str
        One word for each label in the order of `sort_labels`; or ``LABEL=WORD`` each, which
        may name further labels; or nothing if the labels are the words.

    Raises
    ------
    UsageError
        If the words contradict each other.
    EvaluationError
        If a label has no word.
    """
    known = sort_labels(labels)
    if not words:
        return {label: label for label in known}
    pairs = [word.partition("=") for word in words]
    if all(equals for _, equals, _ in pairs):
        named = {label: word for label, _, word in pairs}
    elif any(equals for _, equals, _ in pairs):
        raise UsageError(
            f"--labels {','.join(words)!r}: some words name their label and some do not",
            hint="As --labels negative,positive or --labels 0=negative,1=positive.",
        )
    elif len(words) != len(known):
        raise EvaluationError(
            f"--labels: {len(words)} words, {_list(words)}, for {len(known)} labels of the data, "
            f"{_list(known)}",
            hint="Say which is which, as --labels 0=negative,1=positive.",
        )
    else:
        named = dict(zip(known, words, strict=True))
    _check_words(words, named)
    if missing := [label for label in known if label not in named]:
        raise EvaluationError(
            f"--labels: no word for {_list(missing)} of the data's labels",
            hint=f"The data's labels: {_list(known)}.",
        )
    return named


def _check_words(words: Sequence[str], named: Mapping[str, str]) -> None:
    for is_wrong, what in (
        (len(named) != len(words), "a label twice"),
        (not all(word.strip() for word in named.values()), "an empty word"),
        (len(set(named.values())) != len(named), "one word for two labels"),
    ):
        if is_wrong:
            raise UsageError(f"--labels {','.join(words)!r}: {what}")


def match_words(labels: Iterable[str], words: Sequence[str]) -> Answers:
    """Return the words that a language model chooses from."""
    named = name_labels(labels, words)
    if len(named) < 2:
        raise EvaluationError(
            f"the data has only one label, {_list(named)}: nothing to choose from",
            hint="Name the others too, as --labels 0=negative,1=positive.",
        )
    return Answers(tuple(named), tuple(named.values()))


def match_classes(labels: Iterable[str], words: Sequence[str], names: Sequence[str]) -> Answers:
    """Return the classes of a head in their order, with the labels they stand for.

    Parameters
    ----------
    labels, words
        As for `name_labels`; a word is the name or the number of a class.
    names : sequence of str
        The class names. If all match without regard to case, case is ignored.

    Raises
    ------
    EvaluationError
        If a label of the data matches no class.
    """
    named = name_labels(labels, words)
    exact, folded = list(names), [name.casefold() for name in names]
    numbers = (
        _find(named, exact, str)
        or _find(named, folded, str.casefold)
        or _find(named, [str(number) for number in range(len(names))], str)
    )
    if numbers is None:
        about = f"the data's labels are {_list(named)}"
        if words:
            about = f"--labels calls the data's labels {_list(named.values())}"
        heads = [f"{number}: {quoted(name)}" for number, name in enumerate(names)]
        raise EvaluationError(
            f"{about}, and not all are classes of the model's head:{listed(heads)}",
            hint="Say which is which by --labels LABEL=CLASS,LABEL=CLASS.",
        )
    # A class without a label keeps its name, unless a label of the data is called so.
    found = [f"class {number}" if name in named else name for number, name in enumerate(names)]
    for label, number in numbers.items():
        found[number] = label
    return Answers(tuple(found), tuple(names))


def _find(
    named: Mapping[str, str], names: Sequence[str], fold: Callable[[str], str]
) -> dict[str, int] | None:
    """Return the index of each label's word among distinct names, if each word has its own."""
    numbers = {name: number for number, name in enumerate(names)}
    found = {label: numbers.get(fold(word)) for label, word in named.items()}
    known = {label: number for label, number in found.items() if number is not None}
    is_clear = len(numbers) == len(names) and len(set(known.values())) == len(named)
    return known if is_clear else None


def _is_integer(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


def _list(labels: Iterable[str]) -> str:
    found = list(labels)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(map(quoted, found[:10])) + more


# The file of predictions


def check_suffix(path: Path) -> None:
    """Refuse a name that ends neither in ``.csv`` nor in ``.jsonl``."""
    if path.suffix not in _WRITERS:
        raise UsageError(
            f"--predictions {path}: expected a name that ends in {' or '.join(_WRITERS)}"
        )


def save_predictions(predictions: Predictions, dataset: Dataset, path: Path) -> None:
    """Write predictions beside labels and groups, one row for each row of the data.

    Parameters
    ----------
    predictions : Predictions
        The predictions to write.
    dataset : Dataset
        The rows they belong to.
    path : Path
        A ``.csv`` file, whose columns are ``row``, ``label``, ``predicted``, ``correct`` (1
        or 0), ``groups`` (with ``;`` between them), the further columns of the data, and
        ``score:LABEL`` for each label; or a ``.jsonl`` file of objects with the same keys,
        where ``columns`` and ``scores`` are objects and ``groups`` is a list.

    Raises
    ------
    OutputError
        If the file cannot be written; a file that was there stays.
    """
    write_whole(path, lambda place: _WRITERS[path.suffix](place, _rows(predictions, dataset)))


def _rows(predictions: Predictions, dataset: Dataset) -> Iterator[dict[str, Any]]:
    extra = {
        name: column
        for name, column in dataset.columns.items()
        if column != dataset.labels  # labels have their own column
    }
    for place, number in enumerate(dataset.rows):
        label, predicted = dataset.labels[place], predictions.predicted[place]
        scores = zip(predictions.answers.labels, predictions.scores[place], strict=True)
        yield {
            "row": number,
            "label": label,
            "predicted": predicted,
            "correct": predicted == label,
            "groups": list(dataset.groups[place]),
            "columns": {name: values[place] for name, values in extra.items()},
            "scores": dict(scores),
        }


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    columns, scores = row.pop("columns"), row.pop("scores")
    row |= {"correct": int(row["correct"]), "groups": ";".join(row["groups"])}
    scores = {f"score:{label}": score for label, score in scores.items()}
    # A column of the data whose name is taken gets another one.
    taken = row.keys() | scores.keys()
    return (
        row
        | {f"data:{name}" if name in taken else name: value for name, value in columns.items()}
        | scores
    )


_WRITERS: dict[str, Callable[[Path, Iterator[dict[str, Any]]], None]] = {
    ".csv": lambda path, rows: write_csv(path, map(_flat, rows)),
    ".jsonl": _write_jsonl,
}
