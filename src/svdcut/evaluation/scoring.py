"""Predict labels: tokenise a dataset once, and score it as often as the weights change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from svdcut.device import device_name
from svdcut.errors import NonFiniteError, SvdcutError, UsageError
from svdcut.evaluation.batches import Item, make_batches
from svdcut.evaluation.causal import encode_prompts, make_word_scorer
from svdcut.evaluation.classifier import encode_texts, make_head_scorer, read_classes
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.labels import match_words
from svdcut.evaluation.model import LoadedModel, load_model
from svdcut.evaluation.scores import Answers, Kind, Predictions, ScoringOptions
from svdcut.files.checkpoint import Checkpoint
from svdcut.record.progress import Observer, Progress


class Scorer(Protocol):
    """Runs a model on a batch."""

    def score(self, model: Any, batch: Sequence[Item]) -> list[dict[int, float]]:  # noqa: ANN401
        """Return the scores of some answers for each item, by their places."""
        ...


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model, and a dataset that is tokenised for it."""

    model: Any
    """Of transformers. Its weights may be changed in place between calls of `predict`."""

    source: str
    """The checkpoint, as the user named it."""

    kind: Kind
    answers: Answers
    batches: tuple[tuple[Item, ...], ...]
    rows: tuple[int, ...]
    """Their numbers in the file of the dataset."""

    num_truncated: int
    """Rows that were too long, and were cut."""

    chat_template: bool | None
    """Whether prompts are messages in a chat template; None of a classifier."""

    scorer: Scorer

    def predict(self, observe: Observer = lambda progress: None) -> Predictions:
        """Run the model on every row.

        Parameters
        ----------
        observe : callable
            Told of each batch that is done; the sizes are texts.

        Returns
        -------
        Predictions
            In the order of the dataset; the same for any size and order of batches, but
            for rounding.

        Raises
        ------
        NonFiniteError
            If the model gives NaN or infinity.
        SvdcutError
            If a batch does not fit into memory.

        Notes
        -----
        One pass of the model for each row of a classifier; for a language model one for
        each word, or for all words that are one token.
        """
        scores = [[math.nan] * len(self.answers.labels) for _ in self.rows]
        total, num_items = len(self.rows), sum(map(len, self.batches))
        done = told = 0
        self.model.eval()
        for batch in self.batches:
            for item, found in zip(batch, self._score(batch), strict=True):
                for answer, score in found.items():
                    scores[item.row][answer] = score
            done += len(batch)
            # A text is an item, or one for each of its answers.
            finished = done * total // num_items
            observe(Progress("evaluate", self.source, finished - told, total))
            told = finished
        return self._describe(scores)

    def _score(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        try:
            with torch.inference_mode():
                return self.scorer.score(self.model, batch)
        except torch.OutOfMemoryError as error:
            raise SvdcutError(
                f"{self.source}: a batch of {len(batch)} sequences of {len(batch[0].ids)} tokens "
                f"needs more memory than there is on {self.model.device}",
                hint=f"Take smaller ones: --batch-size {max(len(batch) // 4, 1)}.",
            ) from error

    def _describe(self, scores: Sequence[Sequence[float]]) -> Predictions:
        predicted = []
        for row, found in zip(self.rows, scores, strict=True):
            if not all(map(math.isfinite, found)):
                raise NonFiniteError(
                    f"{self.source}: the model gives NaN or infinity for row {row} of the data",
                    hint="Its weights are damaged, or its numbers too large for this dtype.",
                )
            predicted.append(self.answers.labels[max(range(len(found)), key=found.__getitem__)])
        return Predictions(
            kind=self.kind,
            answers=self.answers,
            predicted=tuple(predicted),
            scores=tuple(map(tuple, scores)),
            num_truncated=self.num_truncated,
            chat_template=self.chat_template,
            device=device_name(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
        )


def load_predictor(
    checkpoint: str | Path | Checkpoint,
    dataset: Dataset,
    options: ScoringOptions,
    *,
    quiet: bool = False,
) -> Predictor:
    """Load a model, match its labels with those of a dataset, and tokenise the dataset.

    Parameters
    ----------
    checkpoint : str, Path or Checkpoint
        A folder, a Hub id ``org/name[@revision]``, or a checkpoint that is open: a sequence
        classifier, or a causal language model.
    dataset : Dataset
        The texts.
    options : ScoringOptions
        How to ask.
    quiet : bool
        Whether downloads show no progress.

    Returns
    -------
    Predictor
        With the model on the device.

    Raises
    ------
    CheckpointError, HubError
        If the model cannot be read.
    EvaluationError
        If it cannot be evaluated on this data.
    UsageError
        If an option is not of this kind of model.
    """
    loaded = load_model(checkpoint, options, quiet=quiet)
    build = _for_classifier if loaded.kind is Kind.CLASSIFIER else _for_language_model
    answers, items, num_truncated, scorer = build(loaded, dataset, options)
    return Predictor(
        model=loaded.model,
        source=loaded.source,
        kind=loaded.kind,
        answers=answers,
        batches=make_batches(items, options.batch_size),
        rows=dataset.rows,
        num_truncated=num_truncated,
        chat_template=(
            None if loaded.kind is Kind.CLASSIFIER else bool(loaded.tokenizer.chat_template)
        ),
        scorer=scorer,
    )


_Parts = tuple[Answers, list[Item], int, Scorer]


def _for_classifier(loaded: LoadedModel, dataset: Dataset, options: ScoringOptions) -> _Parts:
    for option, value in (
        ("--prompt", options.prompt),
        ("--normalize", options.normalize),
        ("--no-chat-template", not options.chat_template),
    ):
        if value:
            raise UsageError(f"{option} is of language models; {loaded.source} is a classifier")
    answers = read_classes(loaded, dataset.classes, options.labels)
    items, num_truncated = encode_texts(loaded, dataset, options)
    return answers, items, num_truncated, make_head_scorer(loaded, items)


def _for_language_model(loaded: LoadedModel, dataset: Dataset, options: ScoringOptions) -> _Parts:
    answers = match_words(dataset.classes, options.labels)
    items, num_truncated = encode_prompts(loaded, dataset, answers, options)
    return answers, items, num_truncated, make_word_scorer(answers, normalize=options.normalize)
