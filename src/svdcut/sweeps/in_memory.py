"""Evaluate cuts in memory: put their weights into a model that is loaded once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from svdcut.adapter.memory import Piece, parameters_by_any_name
from svdcut.errors import EvaluationError
from svdcut.evaluation.metrics import Evaluation
from svdcut.evaluation.model import find_kind, load_model
from svdcut.evaluation.scoring import load_predictor
from svdcut.files.checkpoint import Checkpoint
from svdcut.files.tensorfile import TensorEntry, read_bytes
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Plan, PlannedTensor
from svdcut.record.progress import Observer, Progress
from svdcut.streaming.stored_matrix import TORCH_DTYPES
from svdcut.sweeps.decomposition import Decomposition
from svdcut.sweeps.options import SweepRequest
from svdcut.sweeps.result import Measured, Variant, read_outcome
from svdcut.truncation.reconstruction import measure_rounding


@dataclass(frozen=True, slots=True)
class InMemoryBench:
    """Evaluates one model, whose weights are replaced for each cut."""

    evaluate_model: Callable[[], Evaluation]
    model: SwappedModel

    def finetuned(self) -> Evaluation:
        """Evaluate the model as it was loaded."""
        return self.evaluate_model()

    def evaluate(self, decomposed: Decomposition, variant: Variant) -> Measured:
        """Put a cut in, and evaluate it."""
        rounding_error = self.model.put(decomposed, variant)
        return Measured(self.evaluate_model(), rounding_error)


def open_in_memory(request: SweepRequest, observe: Observer) -> InMemoryBench:
    """Load the fine-tuned model, to be evaluated on the data or by the user's function."""
    find_kind(request.plan.finetuned)  # refuses before an adapter is merged
    with request.loadable(observe) as loaded:
        model, evaluate = _load(request, loaded, observe)
        return InMemoryBench(evaluate, SwappedModel(model, request.plan, loaded))


def _load(
    request: SweepRequest, checkpoint: Checkpoint, observe: Observer
) -> tuple[Any, Callable[[], Evaluation]]:
    """Return a model, and a function that evaluates it with the weights it then has."""
    options, dataset = request.options, request.dataset
    if dataset is not None:
        observe(Progress("load", checkpoint.source, 0, 0))
        predictor = load_predictor(checkpoint, dataset, options, quiet=options.quiet)
        return predictor.model, lambda: predictor.evaluate(seed=options.seed, observe=observe)[0]
    assert options.evaluate is not None
    function, model = options.evaluate, load_model(checkpoint, options, quiet=options.quiet).model
    return model, lambda: read_outcome(function(model), "evaluate")


class SwappedModel:
    """A model whose matrices are replaced in place.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model as it was loaded.
    plan : Plan
        The plan of the two sides.
    loaded : Checkpoint
        The checkpoint it was loaded from: the fine-tuned side, an adapter merged.

    Raises
    ------
    EvaluationError
        If a truncated tensor is not a parameter of the model, and so cannot be replaced.
    """

    def __init__(self, model: Any, plan: Plan, loaded: Checkpoint) -> None:  # noqa: ANN401
        self._plan = plan
        self._parameters = _match(model, plan, loaded)
        pairs = [planned.pair for planned in plan.tensors if planned.pair.name in self._parameters]
        self._rest = [pair for pair in pairs if pair.action is Action.COPY_BASE]
        """Tensors that are copied from base, until the first cut."""

    def put(self, decomposed: Decomposition, variant: Variant) -> float:
        """Replace every truncated tensor with what ``svdcut truncate`` would store.

        Returns
        -------
        float
            Norm of what storing the tensors rounds.
        """
        with torch.no_grad():
            while self._rest:
                pair = self._rest.pop()
                assert pair.base is not None
                self._parameters[pair.name].copy_(_read(pair.base))
            squares = [
                self._put_tensor(decomposed, planned, variant)
                for planned in self._plan.tensors
                if planned.pair.action is Action.TRUNCATE
            ]
        return math.sqrt(math.fsum(squares))

    def _put_tensor(
        self, decomposed: Decomposition, planned: PlannedTensor, variant: Variant
    ) -> float:
        """Replace a tensor; return the square of its rounding error's norm."""
        target = self._parameters[planned.pair.name].view(-1)
        dtype = TORCH_DTYPES[planned.target.dtype]
        square = 0.0
        for matrix in decomposed.cut_tensor(variant, planned.pair):
            sides = matrix.sides
            start = sides.finetuned.first
            for rows in matrix.rows(dtype, decomposed.options.scale):
                stop = start + rows.stored.numel()
                target[start:stop].copy_(rows.stored.reshape(-1))
                square += measure_rounding(planned, sides, rows)
                start = stop
        return square


_Place = tuple[str, tuple[int, ...], Piece]
"""Name and shape of a parameter, and the part of it that a tensor of the file may be."""


def _match(model: Any, plan: Plan, loaded: Checkpoint) -> dict[str, Tensor]:  # noqa: ANN401
    """Return the parameter, or the part of one, of each tensor to replace; values must agree."""
    state: dict[str, Tensor] = model.state_dict()
    places = _places(model, loaded)
    found = {}
    for pair in (planned.pair for planned in plan.tensors):
        entry = loaded.tensors[pair.name]
        replaced = pair.action is Action.TRUNCATE or (
            pair.action is Action.COPY_BASE
            and entry.dtype in TORCH_DTYPES
            and _differ(pair.base, entry)
        )
        if replaced:
            found[pair.name] = _find(state, places[pair.name], entry)
    return found


def _places(model: Any, loaded: Checkpoint) -> Mapping[str, list[_Place]]:  # noqa: ANN401
    """Return where each tensor may be: as it is, renamed, or as part of a stack of experts."""
    prefix = f"{model.base_model_prefix}."
    types = (model.config.model_type, model.config.get_text_config().model_type)
    shapes = {name: entry.shape for name, entry in loaded.tensors.items()}
    found: dict[str, list[_Place]] = defaultdict(list)
    for name, parameter in parameters_by_any_name(shapes, types).items():
        names = dict.fromkeys((name, prefix + name, name.removeprefix(prefix)))
        for piece in parameter.pieces:
            found[piece.tensor] += [(known, parameter.shape, piece) for known in names]
    return found


def _differ(ours: TensorEntry | None, theirs: TensorEntry) -> bool:
    if ours is None or (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return True
    return read_bytes(ours) != read_bytes(theirs)


def _find(state: Mapping[str, Tensor], places: Iterable[_Place], entry: TensorEntry) -> Tensor:
    """Return the parameter, or the part of one, that holds the values of a tensor."""
    expected = _read(entry)
    for name, shape, piece in places:
        parameter = state.get(name)
        if parameter is None or parameter.shape != shape:
            continue
        part = parameter if shape == entry.shape else _part(parameter, piece)
        if part.is_contiguous() and torch.equal(part, expected.to(part.device, part.dtype)):
            return part
    raise EvaluationError(
        f"tensor {entry.name!r} of the fine-tuned side, {list(entry.shape)}: transformers loads "
        "it into no parameter of that name, shape and values, nor into a part of one, so that it "
        "cannot be replaced in memory",
        hint="Leave the tensor out with --skip, or evaluate written checkpoints: --eval-command.",
    )


def _part(parameter: Tensor, piece: Piece) -> Tensor:
    expert = parameter[piece.expert]
    return expert if piece.rows is None else expert[slice(*piece.rows)]


def _read(entry: TensorEntry) -> Tensor:
    data = read_bytes(entry)
    return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
