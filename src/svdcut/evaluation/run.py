"""Evaluate a model that is loaded, on its dataset."""

from __future__ import annotations

from dataclasses import replace

from svdcut.evaluation.dataset import Dataset
from svdcut.evaluation.metrics import Evaluation, evaluate_predictions
from svdcut.evaluation.scores import Predictions
from svdcut.evaluation.scoring import Predictor
from svdcut.record.progress import Observer


def run_evaluation(
    predictor: Predictor,
    dataset: Dataset,
    *,
    seed: int = 0,
    observe: Observer = lambda progress: None,
) -> tuple[Evaluation, Predictions]:
    """Predict the labels of a dataset, and count which are right, by group.

    Parameters
    ----------
    predictor : Predictor
        The model.
    dataset : Dataset
        Texts with labels and groups, as the predictor was made for.
    seed : int
        Of the intervals.
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
    NonFiniteError
        If the model gives NaN or infinity.
    """
    predictions = predictor.predict(observe)
    correct = predictions.matches(dataset.labels)
    evaluation = replace(
        evaluate_predictions(correct, dataset, seed=seed),
        num_truncated=predictions.num_truncated,
        chat_template=predictions.chat_template,
    )
    return evaluation, predictions
