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
from svdcut.spectra.columns import COLUMNS, EFFECTIVE_RANK, NORM, SIGMA_LAST
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import SCHEMA, Spectra, TensorSpectra
from svdcut.spectra.matrix import Value

if TYPE_CHECKING:
    from torch import Tensor

HEAD = ("tensor", "matrix", "shape", "dtype", *(column.key for column in COLUMNS))
"""The first line of a CSV file."""


def rows(spectra: Spectra) -> Iterator[list[Value]]:
    """Yield a line below `HEAD` for each matrix; ``matrix`` counts the experts of a stack."""
    for name, tensor in spectra.tensors.items():
        shape = "x".join(map(str, tensor.shape))
        for number, matrix in enumerate(tensor.matrices):
            cells = dict(matrix.numbers)
            if SIGMA_LAST.is_below(matrix):
                cells[SIGMA_LAST.key] = f"<{matrix.resolution:.1e}"
            expert = number if tensor.stacked else None
            yield [name, expert, shape, tensor.dtype, *(cells[c.key] for c in COLUMNS)]


COMPARISON_HEAD = (
    "tensor",
    "matrix",
    "rank",
    "norm_first",
    "norm_second",
    "effective_rank_first",
    "effective_rank_second",
    "energy_distance",
    "left_overlap",
    "left_chance",
    "right_overlap",
    "right_chance",
    "gap_first",
    "gap_second",
)


def comparison_rows(comparison: Comparison) -> Iterator[list[Value]]:
    """Yield a line below `COMPARISON_HEAD` for each matrix that both updates have."""
    for name, both in comparison.matrices:
        overlap = both.overlap
        yield [
            name,
            both.number,
            overlap.rank,
            *(column.of(side) for column in (NORM, EFFECTIVE_RANK) for side in both.sides),
            overlap.energy_distance,
            overlap.left_overlap,
            overlap.left_chance,
            overlap.right_overlap,
            overlap.right_chance,
            *(overlap.gaps or (None, None)),
        ]


def write_csv(stream: TextIO, head: Sequence[str], lines: Iterable[Sequence[Value]]) -> None:
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
