"""The spectra of a checkpoint, as data.

It computes nothing but what follows from its own fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from svdcut.shown import brief
from svdcut.spectra.columns import COLUMNS, ZERO_FRACTION
from svdcut.spectra.matrix import Spectrum

SCHEMA = "svdcut/spectrum/1"


class Subject(str, Enum):
    """Whether the singular values are those of weights or of an update."""

    WEIGHTS = "weights"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class TensorSpectra:
    """The spectra of one tensor: of one matrix, or of each expert of a stack."""

    __repr__ = brief

    shape: tuple[int, ...]
    dtype: str
    stacked: bool
    matrices: tuple[Spectrum, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; in a stack every value of a matrix is a list."""
        documents = [_document(matrix) for matrix in self.matrices]
        facts: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype}
        return facts | join_documents(documents, stacked=self.stacked)


def join_documents(documents: Sequence[dict[str, Any]], *, stacked: bool) -> dict[str, Any]:
    """Return the JSON object of a tensor: that of its one matrix, or a list for each value."""
    if not stacked:
        return documents[0]
    return {key: [document[key] for document in documents] for key in documents[0]}


def _document(matrix: Spectrum) -> dict[str, Any]:
    found = matrix.intruders
    return {
        "singular_values": list(matrix.singular_values),
        "resolution": matrix.resolution,
        **{column.key: matrix.numbers[column.key] for column in COLUMNS if column.in_json},
        "intruders": found
        and {
            "count": found.count,
            "threshold": found.threshold,
            "cosines": list(found.cosines),
        },
    }


@dataclass(frozen=True, slots=True)
class Spectra:
    """The spectra of a checkpoint's weights, or of its update."""

    __repr__ = brief

    svdcut_version: str
    torch_version: str
    device: str
    subject: Subject
    base: str | None
    """As the user named it; None where the values are those of weights."""

    checkpoint: str
    """As the user named it: the fine-tuned side of an update."""

    top: int | None
    """Number of leading values asked for; None for all."""

    tensors: Mapping[str, TensorSpectra]
    """Spectra by tensor, in the order of the model."""

    left_out: tuple[str, ...]
    """Tensors of the checkpoint without a spectrum: vectors, or what base lacks."""

    seconds: float

    @property
    def matrices(self) -> list[tuple[str, Spectrum]]:
        """The spectra of all matrices, with the names of their tensors."""
        return [
            (name, matrix) for name, tensor in self.tensors.items() for matrix in tensor.matrices
        ]

    @property
    def zero_fraction(self) -> float | None:
        """Share of the entries of all matrices that are exactly zero; None where there are none."""
        return ZERO_FRACTION.joined([matrix for _, matrix in self.matrices])

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "schema": SCHEMA,
            "svdcut_version": self.svdcut_version,
            "torch_version": self.torch_version,
            "device": self.device,
            "subject": self.subject.value,
            "base": self.base,
            "checkpoint": self.checkpoint,
            "top": self.top,
            "seconds": self.seconds,
            "tensors": {name: tensor.to_json() for name, tensor in self.tensors.items()},
            "left_out": list(self.left_out),
        }
