"""Spectra as files: singular values in safetensors, facts in rows.

It writes nothing to a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from svdcut.spectra.facts import SCHEMA, Spectra, Spectrum, TensorSpectra
from svdcut.wholefile import write_whole

if TYPE_CHECKING:
    from torch import Tensor

_PER_MATRIX = (
    "full_rank",
    "norm",
    "base_norm",
    "relative_norm",
    "sigma_first",
    "sigma_last",
    "stable_rank",
    "effective_rank",
    "rank_90",
    "rank_99",
    "noise_edge",
    "above_noise_edge",
    "zero_fraction",
    "method",
    "value_bound",
    "intruders",
)

COLUMNS = ("tensor", "matrix", "shape", "dtype", *_PER_MATRIX)
"""Of the rows."""

Cell = str | int | float | None


def rows(spectra: Spectra) -> Iterator[list[Cell]]:
    """Yield a row of `COLUMNS` for each matrix; ``matrix`` counts the experts of a stack."""
    for name, tensor in spectra.tensors.items():
        shape = "x".join(map(str, tensor.shape))
        for number, matrix in enumerate(tensor.matrices):
            s = matrix.singular_values
            found = matrix.intruders
            own: dict[str, Cell] = {
                "sigma_first": s[0],
                "sigma_last": _last(matrix),
                "intruders": None if found is None else found.count,
            }
            facts = [own[key] if key in own else getattr(matrix, key) for key in _PER_MATRIX]
            yield [name, number if tensor.stacked else None, shape, tensor.dtype, *facts]


def _last(matrix: Spectrum) -> Cell:
    """Return the smallest value, or what it is known to be below; None where it is not at hand."""
    last = matrix.singular_values[-1]
    if len(matrix.singular_values) < matrix.full_rank:
        return None
    return last if last >= matrix.resolution else f"<{matrix.resolution:.1e}"


def save_values(spectra: Spectra, path: Path) -> None:
    """Write all singular values to a safetensors file.

    Parameters
    ----------
    spectra : Spectra
        What to write.
    path : Path
        A ``.safetensors`` file. By the name of each tensor it holds its singular values,
        float64, (r,), or (experts, r) for a stack; its metadata says of what.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    from safetensors.torch import save_file

    said = {"base": spectra.base or "", "checkpoint": spectra.checkpoint}
    metadata = {
        "format": "pt",
        "schema": SCHEMA,
        "subject": spectra.subject.value,
        "svdcut_version": spectra.svdcut_version,
        # Half a surrogate pair stands for a byte of a path that is no text: escape it.
        **{key: text.encode("utf-8", "backslashreplace").decode() for key, text in said.items()},
    }
    tensors = {name: _values(tensor) for name, tensor in spectra.tensors.items()}
    write_whole(path, lambda place: save_file(tensors, place, metadata))


def _values(tensor: TensorSpectra) -> Tensor:
    import torch

    values = [
        torch.tensor(matrix.singular_values, dtype=torch.float64) for matrix in tensor.matrices
    ]
    return torch.stack(values) if tensor.stacked else values[0]
