"""Predict labels: tokenise a dataset once, score it each time the weights change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from svdcut.errors import NonFiniteError, SvdcutError
from svdcut.evaluation.answers import Item, Kind, Predictions, Task
from svdcut.evaluation.classifier import ask_classifier
from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.language_model import ask_language_model
from svdcut.evaluation.metrics import Evaluation, evaluate_predictions
from svdcut.evaluation.model import LoadedModel, load_model
from svdcut.evaluation.options import DataOptions
from svdcut.files.checkpoint import Checkpoint
from svdcut.record.progress import Observer, Progress


@dataclass(frozen=True, slots=True)
class Predictor:
    """A model, and a dataset that is tokenised for it."""

    loaded: LoadedModel
    """Its weights may be changed in place between calls of `predict`."""

    dataset: Dataset
    task: Task
    batches: tuple[tuple[Item, ...], ...]

    @property
    def model(self) -> Any:  # noqa: ANN401
        """The model of transformers."""
        return self.loaded.model

    def evaluate(
        self, *, seed: int = 0, observe: Observer = lambda progress: None
    ) -> tuple[Evaluation, Predictions]:
        """Predict the labels, and count which are right, by group; `seed` is for intervals.

        It observes and raises as `predict` does.
        """
        predictions = self.predict(observe)
        data = self.dataset
        correct = predictions.matches(data.labels)
        evaluation = replace(
            evaluate_predictions(correct, data.groups, data.aligned, seed=seed),
            num_truncated=predictions.num_truncated,
            chat_template=predictions.chat_template,
        )
        return evaluation, predictions

    def predict(self, observe: Observer = lambda progress: None) -> Predictions:
        """Run the model on every row.

        Parameters
        ----------
        observe : callable
            Called after each batch; sizes count texts.

        Returns
        -------
        Predictions
            In the order of the dataset. Batch size and order change them by rounding at most.

        Raises
        ------
        NonFiniteError
            If the model gives NaN or infinity.
        SvdcutError
            If a batch does not fit into memory.

        Notes
        -----
        A classifier takes one pass for each row. A language model takes one for each word, or
        one for all words of a single token.
        """
        total, num_items = len(self.dataset.rows), len(self.task.items)
        scores = [[math.nan] * len(self.task.answers.labels) for _ in range(total)]
        done = told = 0
        self.model.eval()
        for batch in self.batches:
            for item, found in zip(batch, self._score(batch), strict=True):
                for answer, score in found.items():
                    scores[item.row][answer] = score
            done += len(batch)
            # A text has one or more items.
            finished = done * total // num_items
            observe(Progress("evaluate", self.loaded.source, finished - told, total))
            told = finished
        return self._describe(scores)

    def _score(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        try:
            with torch.inference_mode():
                return self.task.score(self.model, batch)
        except torch.OutOfMemoryError as error:
            raise SvdcutError(
                f"{self.loaded.source}: a batch of {len(batch)} sequences of "
                f"{len(batch[0].ids)} tokens needs more memory than there is on "
                f"{self.model.device}",
                hint=f"Take smaller ones: --batch-size {max(len(batch) // 4, 1)}.",
            ) from error

    def _describe(self, scores: Sequence[Sequence[float]]) -> Predictions:
        loaded, labels = self.loaded, self.task.answers.labels
        predicted = []
        for row, found in zip(self.dataset.rows, scores, strict=True):
            if not all(map(math.isfinite, found)):
                raise NonFiniteError(
                    f"{loaded.source}: the model gives NaN or infinity for row {row} of the data",
                    hint="Its weights are damaged, or its numbers too large for this dtype.",
                )
            predicted.append(labels[max(range(len(found)), key=found.__getitem__)])
        is_classifier = loaded.kind is Kind.CLASSIFIER
        return Predictions(
            kind=loaded.kind,
            answers=self.task.answers,
            predicted=tuple(predicted),
            scores=tuple(map(tuple, scores)),
            num_truncated=self.task.num_truncated,
            chat_template=None if is_classifier else bool(loaded.tokenizer.chat_template),
            dtype=str(self.model.dtype).removeprefix("torch."),
        )


def load_predictor(
    checkpoint: str | Path | Checkpoint,
    dataset: Dataset,
    options: DataOptions,
    *,
    quiet: bool = False,
) -> Predictor:
    """Load a model, match its labels with those of a dataset, and tokenise the dataset.

    It takes and raises what `load_model` does, and raises further:

    Raises
    ------
    EvaluationError
        If the model cannot be evaluated on this data.
    UsageError
        If an option does not apply to this kind of model.
    """
    loaded = load_model(checkpoint, options, quiet=quiet)
    ask = ask_classifier if loaded.kind is Kind.CLASSIFIER else ask_language_model
    task = ask(loaded, dataset, options)
    return Predictor(loaded, dataset, task, _make_batches(task.items, options.batch_size))


def _make_batches(items: Iterable[Item], size: int) -> tuple[tuple[Item, ...], ...]:
    """Return batches, the longest items first: too little memory shows at once.

    The order depends on the tokens alone, so that the order of the rows changes no batch.
    """
    ordered = sorted(items, key=lambda item: (-len(item.ids), item.ids, item.row))
    return tuple(tuple(ordered[n : n + size]) for n in range(0, len(ordered), size))
