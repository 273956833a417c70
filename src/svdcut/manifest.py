"""The manifest: what was done to every tensor, with the numbers to check it by.

The file is ``svdcut.json``; its JSON Schema is `SCHEMA_PATH`. It computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCHEMA = "svdcut/manifest/1"
SCHEMA_PATH = Path(__file__).with_name("manifest.schema.json")


@dataclass(frozen=True, slots=True)
class FileFact:
    """Size and hash of an input file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """One input."""

    source: str
    revision: str | None
    prefix: str | None
    files: Mapping[str, FileFact]


@dataclass(frozen=True, slots=True)
class SvdFact:
    """How a decomposition was made and what is known of it."""

    method: str
    """exact, gram, krylov; none where the update is zero."""

    proof: str
    """spectrum or random_start: why the triplets are known to be the leading ones."""

    residual: float
    """Largest ``|A^T A v - s^2 v| / s_1^2`` of a kept triplet."""

    excess_bound: float
    """Relative bound on the error above the best possible one at that rank."""

    value_bound: float
    """Relative bound on the error of the singular values given."""

    certified: bool
    """Whether both bounds are met."""

    rejected: tuple[str, ...]
    """Routes that were tried before and missed them."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """What was done to one tensor; lists run over the experts of a stack."""

    rank: int | tuple[int, ...]
    full_rank: int
    rows: int
    """Rows that were truncated: fewer than the tensor's where the vocabulary grew."""

    rule: str
    keep: str
    energy_retained: float
    update_norm: float
    tail_norm: float
    sigma_first: float | tuple[float, ...]
    sigma_last_kept: float | tuple[float | None, ...] | None
    sigma_next: float | tuple[float | None, ...] | None
    noise_edge: float | tuple[float | None, ...] | None
    svd: SvdFact
    rounding_error: float
    zero_fraction: float


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One tensor of the result."""

    action: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    sha256: str
    truncation: Truncation | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all tensors."""

    tensors: int
    truncated: int
    copied: int
    rank: int
    full_rank: int
    energy_retained: float | None
    tail_norm: float
    rounding_error: float
    parameters_kept: int
    """Of the truncated updates as factors: the sum of rank * (rows + columns)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about one result."""

    svdcut_version: str
    torch_version: str
    created: str
    device: str
    command: tuple[str, ...]
    base: Source
    finetuned: Source
    options: Mapping[str, Any]
    totals: Totals
    tensors: Mapping[str, TensorFact]
    base_only: tuple[str, ...]
    """Tensors of base that have no place in the result."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        document: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        for name, fact in document["tensors"].items():
            truncation = fact.pop("truncation")
            document["tensors"][name] = {**fact, **(truncation or {})}
        return document

    def dumps(self) -> str:
        """Return the JSON text; every number is finite."""
        return json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
