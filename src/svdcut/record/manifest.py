"""The manifest: what was done to each tensor, with the numbers that `verify` checks.

The file is ``svdcut.json``; its JSON Schema is `SCHEMA_PATH`. It computes no claim.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svdcut.files.jsonfile import parse_dataclass
from svdcut.pair.matching import Rename
from svdcut.shown import brief

SCHEMA = "svdcut/manifest/2"
SCHEMA_PATH = Path(__file__).with_name("manifest.schema.json")

_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class FileFact:
    """Size and hash of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightFileFact:
    """Size of a weight file, and hash of its header; its tensors have their own."""

    size: int
    header_sha256: str
    """Hash of the header and the 8 bytes of its length before it."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input."""

    __repr__ = brief

    source: str
    revision: str | None
    prefix: str | None
    files: Mapping[str, FileFact]


@dataclass(frozen=True, slots=True)
class SvdFact:
    """How a decomposition was made and what is known of it."""

    method: str
    """exact, gram, krylov, factored; none where the update is zero."""

    proof: str
    """spectrum or random_start: why the triplets are known to be the leading ones."""

    residual: float
    """Largest ``|A^T A v - s^2 v| / s_1^2`` of a kept triplet."""

    excess_bound: float
    """Relative bound on the error above the best possible one at that rank."""

    value_bound: float
    """Relative bound on the error of the singular values given."""

    certified: bool
    """True if both bounds are met."""

    rejected: tuple[str, ...]
    """Routes that were tried before and missed them."""


@dataclass(frozen=True, slots=True)
class MatrixFact:
    """Rank and singular values at the cut of one matrix."""

    rank: int
    sigma_first: float
    sigma_last_kept: float | None
    """None at rank 0."""

    sigma_next: float | None
    """The largest singular value that was cut; None at full rank."""

    noise_edge: float | None
    """The value that the noise rule compared with; None under other rules."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """The truncation of one tensor."""

    __repr__ = brief

    rule: str
    keep: str
    rows: int
    """Rows that were truncated: fewer than the tensor's where the vocabulary grew."""

    full_rank: int
    """min(rows, columns) of each matrix, or the rank of an adapter's factors."""

    energy_retained: float
    update_norm: float
    tail_norm: float
    rounding_error: float
    zero_fraction: float
    svd: SvdFact
    matrices: tuple[MatrixFact, ...]
    """One entry, or one for each expert of a stack."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each matrix."""
        return tuple(matrix.rank for matrix in self.matrices)


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One tensor of the result."""

    __repr__ = brief

    action: str
    shape: tuple[int, ...]
    dtype: str
    """The dtype as stored; in an adapter, that of the factors."""

    file: str | None
    """None where an adapter holds nothing of the tensor, because base has the same."""

    sha256: str | None
    """Hash of the tensor's bytes; in an adapter, of the factors: left then right, by matrix."""

    truncation: Truncation | None = None

    @property
    def parameters_kept(self) -> int:
        """Parameters of the truncated update as factors."""
        cut, shape = self.truncation, self.shape
        if cut is None:
            return 0
        is_stack = len(shape) == 3 and shape[0] == len(cut.matrices)
        columns = shape[2] if is_stack else math.prod(shape[1:])
        return sum(cut.ranks) * (cut.rows + columns)


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
    """Parameters of the truncated updates as factors: the sum of rank * (rows + columns)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class MatchingFact:
    """How the tensors of both sides were matched by their names."""

    __repr__ = brief

    renames: tuple[Rename, ...] = ()
    wrappers: tuple[str, ...] = ()
    """Parts that were left out of the middle of names."""

    unmatched: tuple[str, ...] = ()
    """Matrices that were copied whole, because base has nothing to compare them with."""


@dataclass(frozen=True, slots=True)
class StoredFact:
    """One tensor in the file of an adapter."""

    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterFact:
    """The content of an adapter, beside its ranks."""

    __repr__ = brief

    tensors: Mapping[str, StoredFact]
    """In its file, by the names there."""

    config: Mapping[str, Any]
    """The entries of the fine-tuned config.json about its task that base's lacks."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about one result."""

    __repr__ = brief

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

    matching: MatchingFact = MatchingFact()

    adapter: AdapterFact | None = None
    """None for a checkpoint, whose files hold the tensors by their own names."""

    files: Mapping[str, WeightFileFact | FileFact] = field(default_factory=dict)
    """Every file of the result but the manifest."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        document: dict[str, Any] = json.loads(self.dumps())
        return document

    def dumps(self) -> str:
        """Return the JSON text; every number is finite.

        The last value, ``digest``, is the SHA-256 of the text with 64 zeros in its place.
        """
        document = {"schema": SCHEMA, **asdict(self), "digest": _NO_DIGEST}
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        start, end = text.rsplit(_NO_DIGEST, 1)
        return start + hashlib.sha256(text.encode()).hexdigest() + end

    @staticmethod
    def loads(text: str) -> Manifest:
        """Return the manifest that `dumps` made this of.

        Raises
        ------
        ValueError
            If it is none. What was added or changed shows in the text of `dumps`.
        """
        return parse_dataclass(Manifest, json.loads(text))
