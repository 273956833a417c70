"""Evaluations of a classifier by group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svdcut.adapter.reading import OpenedModel, open_model
from svdcut.api.public import public
from svdcut.choose.options import Options, ignore
from svdcut.evaluation.answers import Predictions, check_suffix, save_predictions
from svdcut.evaluation.dataset import Dataset, read_dataset
from svdcut.evaluation.metrics import Evaluation
from svdcut.evaluation.options import DataOptions, EvaluateOptions
from svdcut.files import hub
from svdcut.write.destination import check_target

if TYPE_CHECKING:
    from svdcut.record.progress import Observer


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """An evaluation that can be carried out: the data is read, of the model the headers."""

    model: OpenedModel
    dataset: Dataset
    options: EvaluateOptions


@public(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> Evaluation:
    """Measure how often a classifier is right, over all texts and in each group.

    Returns
    -------
    Evaluation
        Accuracies with their intervals, the worst group, and the gaps.

    Raises
    ------
    UsageError
        If an option is wrong, or transformers is not installed.
    InputError
        If the model or the data cannot be used, or they do not match.
    OutputError
        If the predictions cannot be written, or the merged adapter.

    Notes
    -----
    The model is a sequence classifier of transformers, or a causal language model, which
    chooses the likeliest of some words. An adapter of one is merged into its base in a
    temporary folder.
    """
    return carry_out_evaluation(prepare_evaluation(options), observe=options.observe)[0]


def prepare_evaluation(options: EvaluateOptions) -> EvaluationRequest:
    """Check options, read data and headers, before torch is imported; see `evaluate`."""
    predictions, base = options.predictions, options.base
    if predictions is not None:
        check_suffix(predictions)
        sides = [
            Path(side) for side in (options.checkpoint, base) if side and hub.is_local(str(side))
        ]
        check_target(predictions, [*sides, Path(options.data)])
    dataset = read_data(options.data, options)
    model = open_model(options.checkpoint, base, quiet=options.quiet)
    if predictions is not None and model.base is not None and model.base.directory is not None:
        check_target(predictions, [model.base.directory])
    return EvaluationRequest(model, dataset, options)


def read_data(data: str | Path, options: DataOptions) -> Dataset:
    """Check options and read the data."""
    options.template()  # refuses a prompt that does not fit
    return read_dataset(data, options)


def carry_out_evaluation(
    request: EvaluationRequest, *, observe: Observer = ignore
) -> tuple[Evaluation, Predictions]:
    """Evaluate what was prepared, and write its predictions; see `evaluate`."""
    # Later: the import of torch takes a second or two.
    from svdcut.device import resolve_device
    from svdcut.evaluation.model import compute_dtype, find_kind
    from svdcut.evaluation.scoring import load_predictor
    from svdcut.record.progress import Progress
    from svdcut.truncation.merging import loadable

    model, options = request.model, request.options
    dtype = str(compute_dtype(resolve_device(options.device))).removeprefix("torch.")
    merge = Options(device=options.device, dtype=dtype)
    find_kind(model.checkpoint)  # an adapter is not merged in vain
    with loadable(model.base, model.checkpoint, merge, observe=observe) as checkpoint:
        observe(Progress("load", checkpoint.source, 0, 0))
        predictor = load_predictor(checkpoint, request.dataset, options, quiet=options.quiet)
    evaluation, predictions = predictor.evaluate(seed=options.seed, observe=observe)
    if options.predictions is not None:
        save_predictions(predictions, request.dataset, options.predictions)
    return evaluation, predictions
