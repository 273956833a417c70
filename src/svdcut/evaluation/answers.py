"""How a model is asked for labels, and which class or word stands for which label.

It knows no models, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from svdcut.errors import EvaluationError, UsageError, listed
from svdcut.files.jsonfile import quoted


class Kind(str, Enum):
    """How a model says which label a text has."""

    CLASSIFIER = "classifier"
    """By a head with a class for each label."""

    LANGUAGE_MODEL = "language model"
    """By how likely a word for each label is after a prompt."""


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How to ask a model for the labels of texts."""

    prompt: str | None = None
    """Of a language model: a template with ``{text}``, and ``{text_pair}`` where there are
    pairs; None for the texts themselves, a line each."""

    labels: tuple[str, ...] = ()
    """What the model calls the labels of the data: a word for each in their order, or
    ``LABEL=WORD``; nothing where it calls them by their own names."""

    normalize: bool = False
    """Of a language model: divide log-likelihoods by the number of characters of the word."""

    chat_template: bool = True
    """Whether a prompt is a message in the chat template of a language model that has one."""

    batch_size: int = 32
    max_length: int | None = None
    """Tokens of a text at most; None for what the model allows."""

    device: str = "auto"
    dtype: str = "auto"
    """``auto`` (bfloat16 on CUDA, float32 on a CPU), ``float32``, ``bfloat16`` or ``float16``."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The labels that a model chooses from."""

    labels: tuple[str, ...]
    """As the data has them; what it has none for keeps the model's own name."""

    words: tuple[str, ...]
    """What the model calls each: the name of a class, or the word after the prompt."""


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels: by number if all are integers, else by the alphabet."""
    found = sorted(set(labels))
    return tuple(sorted(found, key=int)) if all(map(_is_integer, found)) else tuple(found)


def name_labels(labels: Iterable[str], words: Sequence[str]) -> dict[str, str]:
    """Return what a model calls each label.

    Parameters
    ----------
    labels : iterable of str
        Those of the data; they may come more than once.
    words : sequence of str
        A word for each label in the order of `sort_labels`; or ``LABEL=WORD`` each, which
        may also name labels that no row has; or nothing where the labels are the words.

    Returns
    -------
    dict
        From label to word, in the order of `sort_labels`, or of `words`.

    Raises
    ------
    UsageError
        If the words cannot be meant.
    EvaluationError
        If they leave out a label of the data.
    """
    known = sort_labels(labels)
    if not words:
        return {label: label for label in known}
    pairs = [word.partition("=") for word in words]
    if all(equals for _, equals, _ in pairs):
        named = {label: word for label, _, word in pairs}
    elif any(equals for _, equals, _ in pairs):
        raise UsageError(
            f"--labels {','.join(words)!r}: some words have a label before them and some none",
            hint="As --labels negative,positive or --labels 0=negative,1=positive.",
        )
    else:
        named = dict(zip(known, words, strict=False))
        _check_count(known, words)
    _check_words(words, named)
    if missing := [label for label in known if label not in named]:
        raise EvaluationError(
            f"--labels: no word for {_list(missing)} of the data's labels",
            hint=f"The data's labels: {_list(known)}.",
        )
    return named


def _check_count(known: Sequence[str], words: Sequence[str]) -> None:
    if len(words) != len(known):
        raise EvaluationError(
            f"--labels: {len(words)} words, {_list(words)}, for {len(known)} labels of the data, "
            f"{_list(known)}",
            hint="Say which is which, as --labels 0=negative,1=positive.",
        )


def _check_words(words: Sequence[str], named: Mapping[str, str]) -> None:
    if len(named) != len(words):
        raise UsageError(f"--labels {','.join(words)!r}: a label twice")
    if not all(word.strip() for word in named.values()):
        raise UsageError(f"--labels {','.join(words)!r}: an empty word")
    if len(set(named.values())) != len(named):
        raise UsageError(f"--labels {','.join(words)!r}: one word for two labels")


def match_words(labels: Iterable[str], words: Sequence[str]) -> Answers:
    """Return the words that a language model chooses from."""
    named = name_labels(labels, words)
    if len(named) < 2:
        raise EvaluationError(
            f"the data has one label alone, {_list(named)}: nothing to choose from",
            hint="Name the others too, as --labels 0=negative,1=positive.",
        )
    return Answers(tuple(named), tuple(named.values()))


def match_classes(
    labels: Iterable[str], words: Sequence[str], classes: Mapping[int, str]
) -> Answers:
    """Return the classes of a head, with the labels of the data that they stand for.

    Parameters
    ----------
    labels, words
        As for `name_labels`; the words are then names or numbers of classes.
    classes : mapping
        From number to name, as ``id2label`` of a config.

    Returns
    -------
    Answers
        In the order of the head. Names that differ in case alone are the same, where no
        two classes do.

    Raises
    ------
    EvaluationError
        If a label of the data is neither a name nor a number of a class.
    """
    named = name_labels(labels, words)
    names = [classes[number] for number in range(len(classes))]
    numbers = _by_name(named, names) or _by_number(named, len(names))
    if numbers is None:
        about = f"the data's labels are {_list(named)}"
        if words:
            about = f"--labels calls the data's labels {_list(list(named.values()))}"
        heads = [f"{number}: {quoted(name)}" for number, name in enumerate(names)]
        raise EvaluationError(
            f"{about}, and not all are classes of the model's head:{listed(heads)}",
            hint="Say which is which by --labels LABEL=CLASS,LABEL=CLASS.",
        )
    ours = {number: label for label, number in numbers.items()}
    taken = set(ours.values())
    rest = (_unlike(name, number, taken) for number, name in enumerate(names))
    return Answers(tuple(ours.get(n, other) for n, other in enumerate(rest)), tuple(names))


def _by_name(named: Mapping[str, str], names: Sequence[str]) -> dict[str, int] | None:
    for fold in (str, str.casefold):
        places = {fold(name): number for number, name in enumerate(names)}
        words = {fold(word) for word in named.values()}
        if len(places) == len(names) and len(words) == len(named) and words <= places.keys():
            return {label: places[fold(word)] for label, word in named.items()}
    return None


def _by_number(named: Mapping[str, str], count: int) -> dict[str, int] | None:
    places = {str(number): number for number in range(count)}
    if all(word in places for word in named.values()):
        return {label: places[word] for label, word in named.items()}
    return None


def _unlike(name: str, number: int, taken: set[str]) -> str:
    """Return a name for a class that the data has no label for, unlike all that it has."""
    return f"class {number}" if name in taken else name


def _is_integer(label: str) -> bool:
    return label.isdecimal() or (label[:1] == "-" and label[1:].isdecimal())


def _list(labels: Iterable[str]) -> str:
    found = list(labels)
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(map(quoted, found[:10])) + more
