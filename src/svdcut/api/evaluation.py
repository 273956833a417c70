"""Evaluations of a classifier by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, overload

from svdcut.adapter.own_base import OpenedModel, open_model
from svdcut.api.keywords import public, texts
from svdcut.choose.options import Options, StoredDtype
from svdcut.errors import UsageError
from svdcut.evaluation.dataset import Columns, Dataset, read_dataset
from svdcut.evaluation.files import check_suffix, save_predictions
from svdcut.evaluation.metrics import Evaluation
from svdcut.evaluation.prompts import check_prompt
from svdcut.evaluation.scores import Predictions, ScoringOptions
from svdcut.files import hub
from svdcut.write.destination import check_target

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from svdcut.record.progress import Observer


class DataOptions(TypedDict, total=False):
    """Options of every command that evaluates, as keyword arguments; all have defaults."""

    text: str
    """Column of the texts."""

    text_pair: str | None
    """Column of the other text of each pair."""

    label: str
    """Column of the labels."""

    group: str | Sequence[str]
    """Columns whose values, together, part the rows into groups."""

    group_columns: str | Sequence[str]
    """Columns of numbers from 0 to 1, each of a group that a row is in from 0.5 up, and that
    its label parts; they may overlap."""

    aligned: str | None
    """Column that says which rows the shortcut serves."""

    prompt: str | None
    """Of a language model: a template with ``{text}``, and ``{text_pair}`` for pairs."""

    labels: str | Sequence[str]
    """What the model calls the labels: a word for each in their order, or ``LABEL=WORD``."""

    normalize: bool
    """Of a language model: divide log-likelihoods by the length of the word."""

    chat_template: bool
    """Of a language model: make each prompt a message in its chat template, if it has one."""

    limit: int | None
    """Take only so many rows, at random."""

    seed: int
    """Of that choice, and of the intervals."""

    batch_size: int
    """Texts that go through the model at once."""

    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""

    quiet: bool
    """Show no progress of downloads."""


class EvaluateOptions(DataOptions, total=False):
    """Options of `evaluate`."""

    base: str | Path | None
    """Of an adapter: the base to evaluate it on, instead of the one that its config names."""

    predictions: str | Path | None
    """A ``.csv`` or ``.jsonl`` file to write what was predicted for each row to."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """An evaluation that can be carried out: the data is read, of the model the headers."""

    model: OpenedModel
    dataset: Dataset
    options: ScoringOptions
    seed: int
    predictions: Path | None
    quiet: bool


@public(EvaluateOptions)
def evaluate(
    checkpoint: str | Path,
    data: str | Path,
    *,
    observe: Observer | None = None,
    **options: Unpack[EvaluateOptions],
) -> Evaluation:
    """Measure how often a classifier is right, over all texts and in each group.

    Parameters
    ----------
    checkpoint : str or Path
        Directory or Hub id ``org/name[@revision]``: a sequence classifier of transformers,
        or a causal language model, which chooses the likeliest of some words; or a PEFT
        adapter of one, which is merged into its base in a temporary folder.
    data : str or Path
        File of labelled texts.
    observe : callable, optional
        Told of each batch that is done, and of each tensor of an adapter's base that is
        merged; see `svdcut.Progress`.
    **options : EvaluateOptions
        The options of the command line by the same names.

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
    """
    return carry_out_evaluation(prepare_evaluation(checkpoint, data, **options), observe=observe)[0]


def prepare_evaluation(
    checkpoint: str | Path, data: str | Path, **options: Unpack[EvaluateOptions]
) -> EvaluationRequest:
    """Check options, read data and headers, before torch is imported; see `evaluate`."""
    target = options.get("predictions")
    predictions = None if target is None else Path(target).expanduser()
    base, seed, quiet = options.get("base"), options.get("seed", 0), options.get("quiet", False)
    if predictions is not None:
        check_suffix(predictions)
        sides = [Path(side) for side in (checkpoint, base) if side and hub.is_local(str(side))]
        check_target(predictions, [*sides, Path(data)])
    dataset, scoring = read_data(data, options)
    model = open_model(checkpoint, base, quiet=quiet)
    if predictions is not None and model.base is not None and model.base.directory is not None:
        check_target(predictions, [model.base.directory])
    return EvaluationRequest(model, dataset, scoring, seed, predictions, quiet)


@overload
def read_data(data: str | Path, options: DataOptions) -> tuple[Dataset, ScoringOptions]: ...
@overload
def read_data(
    data: str | Path | None, options: DataOptions
) -> tuple[Dataset | None, ScoringOptions]: ...
def read_data(
    data: str | Path | None, options: DataOptions
) -> tuple[Dataset | None, ScoringOptions]:
    """Check options and read the data, if there is any."""
    scoring = _resolve_scoring(options)
    if data is None:
        return None, scoring
    columns = resolve_columns(options)
    if scoring.prompt is not None:
        check_prompt(scoring.prompt, has_pairs=columns.text_pair is not None)
    limit, seed = options.get("limit"), options.get("seed", 0)
    return read_dataset(data, columns, limit=limit, seed=seed), scoring


def carry_out_evaluation(
    request: EvaluationRequest, *, observe: Observer | None = None
) -> tuple[Evaluation, Predictions]:
    """Evaluate what was prepared, and write its predictions; see `evaluate`."""
    # Later: the import of torch takes a second or two.
    from svdcut.evaluation.model import dtype_name, find_kind
    from svdcut.evaluation.run import run_evaluation
    from svdcut.evaluation.scoring import load_predictor
    from svdcut.record.progress import Progress
    from svdcut.truncation.merging import loadable

    observe = observe or (lambda progress: None)
    model, scoring = request.model, request.options
    merge = Options(device=scoring.device, dtype=StoredDtype(dtype_name(scoring)))
    find_kind(model.checkpoint)  # an adapter is not merged in vain
    with loadable(model.base, model.checkpoint, merge, observe=observe) as checkpoint:
        observe(Progress("load", checkpoint.source, 0, 0))
        predictor = load_predictor(checkpoint, request.dataset, scoring, quiet=request.quiet)
    evaluation, predictions = run_evaluation(
        predictor, request.dataset, seed=request.seed, observe=observe
    )
    if request.predictions is not None:
        save_predictions(predictions, request.dataset, request.predictions)
    return evaluation, predictions


def resolve_columns(options: DataOptions) -> Columns:
    """Return what is in which column."""
    return Columns(
        text=options.get("text", "text"),
        label=options.get("label", "label"),
        text_pair=options.get("text_pair"),
        group=texts(options, "group"),
        group_columns=texts(options, "group_columns"),
        aligned=options.get("aligned"),
    )


def _resolve_scoring(options: DataOptions) -> ScoringOptions:
    batch_size, limit = options.get("batch_size", 32), options.get("limit")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: expected at least 1")
    return ScoringOptions(
        prompt=options.get("prompt"),
        labels=texts(options, "labels"),
        normalize=options.get("normalize", False),
        chat_template=options.get("chat_template", True),
        batch_size=batch_size,
        device=options.get("device", "auto"),
    )
