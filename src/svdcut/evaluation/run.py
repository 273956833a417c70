"""Evaluate a checkpoint on a dataset."""

from __future__ import annotations

from pathlib import Path

from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.metrics import Evaluation, evaluate_predictions
from svdcut.evaluation.scores import Predictions, ScoringOptions
from svdcut.evaluation.scoring import load_predictor
from svdcut.progress import Observer


def run_evaluation(
    checkpoint: str | Path,
    dataset: Dataset,
    options: ScoringOptions,
    *,
    seed: int = 0,
    quiet: bool = False,
    observe: Observer = lambda progress: None,
) -> tuple[Evaluation, Predictions]:
    """Predict the labels of a dataset, and count which are right, by group.

    Parameters
    ----------
    checkpoint : str or Path
        A folder, or a Hub id ``org/name[@revision]``.
    dataset : Dataset
        Texts with labels and groups.
    options : ScoringOptions
        How to ask the model.
    seed : int
        Of the intervals.
    quiet : bool
        Whether downloads show no progress.
    observe : callable
        Told of each batch that is done.

    Returns
    -------
    Evaluation
        Accuracies and gaps.
    Predictions
        What they are of, row by row.

    Raises
    ------
    InputError, UsageError
        As `load_predictor` does.
    NonFiniteError
        If the model gives NaN or infinity.
    """
    predictor = load_predictor(checkpoint, dataset, options, quiet=quiet)
    predictions = predictor.predict(observe)
    correct = predictions.matches(dataset.labels)
    evaluation = evaluate_predictions(
        correct, dataset, seed=seed, num_truncated=predictions.num_truncated
    )
    return evaluation, predictions
