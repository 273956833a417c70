"""What is known of the spectra of a checkpoint, as data.

It computes nothing but what follows from its own fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from svdcut.shown import brief

SCHEMA = "svdcut/spectrum/1"
RESOLUTION = 1e-7
"""Of the first singular value: what is smaller is beneath the resolution of float32 inputs."""


FACTS = (
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
"""Of a `Spectrum`, as files name them; columns of a table, in this order."""


Cell = str | int | float | None


class Subject(str, Enum):
    """Of what the singular values are."""

    WEIGHTS = "weights"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Intruders:
    """Leading left vectors of a fine-tuned matrix, against all of base's.

    Ten of them, or as many as the matrix has; none for a matrix of zeros.
    """

    cosines: tuple[float, ...]
    """Of each of them, the largest with any left vector of base, 0 to 1."""

    threshold: float

    @property
    def count(self) -> int:
        """How many match no vector of base."""
        return sum(cosine < self.threshold for cosine in self.cosines)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The singular values of one matrix, and what follows from them; in its own units."""

    __repr__ = brief

    singular_values: Sequence[float]
    """Descending; all min(m, n), or the leading ones that were asked for."""

    full_rank: int
    """min(m, n)."""

    norm: float
    """Frobenius norm."""

    base_norm: float | None
    """Frobenius norm of base's matrix; None where the values are those of weights."""

    stable_rank: float | None
    """``norm^2 / s_1^2``; None for a matrix of zeros."""

    effective_rank: float | None
    """``exp(entropy of s / sum s)``; None without all values, or for a matrix of zeros."""

    rank_90: int | None
    """Smallest rank with 90 % of the energy; None where it lies beyond the values at hand."""

    rank_99: int | None
    noise_edge: float | None
    """Largest singular value that storage rounding explains; None where it is not known."""

    above_noise_edge: int | None
    """How many singular values are larger; None where it is not known."""

    zero_fraction: float
    """Share of the entries that are exactly zero."""

    method: str
    """gram, krylov or exact; none for a matrix of zeros."""

    value_bound: float
    """Relative error of a singular value, at most."""

    intruders: Intruders | None = None

    @property
    def resolution(self) -> float:
        """Singular values below it are only known to be smaller."""
        return RESOLUTION * self.sigma_first

    @property
    def relative_norm(self) -> float | None:
        """Norm over base's norm; None where there is no base, or base is zero."""
        return self.norm / self.base_norm if self.base_norm else None

    @property
    def sigma_first(self) -> float:
        """The largest singular value."""
        return self.singular_values[0]

    @property
    def sigma_last(self) -> float | None:
        """The smallest singular value; None where not all values are at hand."""
        whole = len(self.singular_values) == self.full_rank
        return self.singular_values[-1] if whole else None

    def cell(self, fact: str) -> Cell:
        """Return one of `FACTS` as a table has it: of intruders the count."""
        value: Cell | Intruders = getattr(self, fact)
        return value.count if isinstance(value, Intruders) else value


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
    # The first and the last value are among all of them.
    facts = {key: getattr(matrix, key) for key in FACTS if not key.startswith("sigma_")}
    return {
        "singular_values": list(matrix.singular_values),
        "resolution": matrix.resolution,
        **facts,
        "intruders": None
        if found is None
        else {
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
    """How many leading values were asked for; None for all."""

    tensors: Mapping[str, TensorSpectra]
    """By name, in the order of the model."""

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
        return self._zeros(changed=False)

    @property
    def changed_zero_fraction(self) -> float | None:
        """The same of matrices that are not all zeros: of an update, those that changed."""
        return self._zeros(changed=True)

    def _zeros(self, *, changed: bool) -> float | None:
        zeros, entries = 0.0, 0
        for tensor in self.tensors.values():
            size = math.prod(tensor.shape) // max(len(tensor.matrices), 1)
            counted = [matrix for matrix in tensor.matrices if matrix.norm or not changed]
            entries += size * len(counted)
            zeros += size * math.fsum(matrix.zero_fraction for matrix in counted)
        return zeros / entries if entries else None

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
