"""Put the weights of a cut into a model that is loaded.

It knows no data and evaluates nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from svdcut.device import resolve_device
from svdcut.errors import EvaluationError
from svdcut.matrix_entry import TORCH_DTYPES
from svdcut.pairing import Action
from svdcut.plan import Plan, PlannedTensor
from svdcut.sweeps.facts import Variant
from svdcut.sweeps.stored import Decomposed
from svdcut.tensorfile import TensorEntry, read_bytes


class SwappedModel:
    """A model whose matrices are replaced in place.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        As it was loaded from the fine-tuned checkpoint.
    plan : Plan
        Of the two sides.

    Raises
    ------
    EvaluationError
        If a truncated tensor is no parameter of the model: then it could not be replaced.
    """

    def __init__(self, model: Any, plan: Plan) -> None:  # noqa: ANN401
        self._plan = plan
        self._parameters = _match(model, plan)
        self._has_rest = False

    def put(self, decomposed: Decomposed, variant: Variant) -> None:
        """Replace every truncated tensor, as ``svdcut truncate`` would write it.

        Parameters
        ----------
        decomposed : Decomposed
            Of the same plan.
        variant : Variant
            How to cut.

        Notes
        -----
        Numbers are those of the checkpoint to the last bit of float64, before they are
        rounded to the dtype that the checkpoint would be stored in.
        """
        with torch.no_grad():
            self._put_rest()
            for planned in self._plan.tensors:
                if planned.pair.action is Action.TRUNCATE:
                    self._put_tensor(decomposed, planned, variant)

    def _put_rest(self) -> None:
        """Put in what comes from base as it is, once."""
        if self._has_rest:
            return
        for planned in self._plan.tensors:
            base = planned.pair.base
            if planned.pair.name in self._parameters and planned.pair.action is Action.COPY_BASE:
                assert base is not None
                self._parameters[planned.pair.name].copy_(_read(base))
        self._has_rest = True

    def _put_tensor(self, decomposed: Decomposed, planned: PlannedTensor, variant: Variant) -> None:
        target = self._parameters[planned.pair.name].view(-1)
        dtype = TORCH_DTYPES[planned.target.dtype]
        scale = decomposed.options.scale
        device = resolve_device(decomposed.options.device)
        for matrix in decomposed.kept_matrices(planned.pair, variant, device):
            start = matrix.sides.finetuned.first
            for rows in matrix.rows(dtype, scale):
                stop = start + rows.stored.numel()
                target[start:stop].copy_(rows.stored.reshape(-1))
                start = stop


def _match(model: Any, plan: Plan) -> dict[str, Tensor]:  # noqa: ANN401
    """Return the parameter that each tensor to be replaced became, known by its values."""
    state: dict[str, Tensor] = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    found = {}
    for pair in (planned.pair for planned in plan.tensors):
        replaced = pair.action is Action.TRUNCATE or (
            pair.action is Action.COPY_BASE
            and pair.finetuned.dtype in TORCH_DTYPES
            and _differ(pair.base, pair.finetuned)
        )
        if replaced:
            names = (pair.name, prefix + pair.name, pair.name.removeprefix(prefix))
            found[pair.name] = _find(state, names, pair.finetuned)
    return found


def _differ(ours: TensorEntry | None, theirs: TensorEntry) -> bool:
    same = ours is not None and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    return not (same and ours is not None and read_bytes(ours) == read_bytes(theirs))


def _find(state: dict[str, Tensor], names: tuple[str, ...], entry: TensorEntry) -> Tensor:
    expected = _read(entry)
    for name in dict.fromkeys(names):
        parameter = state.get(name)
        if parameter is None or parameter.shape != expected.shape:
            continue
        same = torch.equal(parameter, expected.to(parameter.device, parameter.dtype))
        if same and parameter.is_contiguous():
            return parameter
    raise EvaluationError(
        f"tensor {entry.name!r} of the fine-tuned side, {list(entry.shape)}: transformers loads "
        "it into no parameter of that name, shape and values, so that it cannot be replaced in "
        "memory",
        hint="As with experts that it fuses. Leave the tensor out with --skip, or evaluate "
        "written checkpoints: --eval-command.",
    )


def _read(entry: TensorEntry) -> Tensor:
    data = read_bytes(entry)
    return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
