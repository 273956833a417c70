"""Spectra as files: singular values in safetensors, facts in rows.

It writes nothing to a terminal.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from svdcut.files.atomic_write import write_whole
from svdcut.shown import safe_cell
from svdcut.spectra.facts import FACTS, SCHEMA, Cell, Spectra, TensorSpectra

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("tensor", "matrix", "shape", "dtype", *FACTS)
"""Of the rows."""


def rows(spectra: Spectra) -> Iterator[list[Cell]]:
    """Yield a row of `COLUMNS` for each matrix; ``matrix`` counts the experts of a stack."""
    for name, tensor in spectra.tensors.items():
        shape = "x".join(map(str, tensor.shape))
        for number, matrix in enumerate(tensor.matrices):
            cells: dict[str, Cell] = {key: matrix.cell(key) for key in FACTS}
            if matrix.sigma_last is not None and matrix.sigma_last < matrix.resolution:
                cells["sigma_last"] = f"<{matrix.resolution:.1e}"
            expert = number if tensor.stacked else None
            yield [name, expert, shape, tensor.dtype, *cells.values()]


def write_csv(stream: TextIO, head: Sequence[str], lines: Iterable[Sequence[Cell]]) -> None:
    """Write lines of cells below a head; a stranger's text in them computes and hides nothing."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(map(safe_cell, line) for line in lines)


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
