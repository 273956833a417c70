"""Every option that shapes a result, resolved.

Plain data; importable without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from svdcut.choose.ranks import Keep, RankOverride, Rule
from svdcut.files.tensorfile import Dtype
from svdcut.svd.route import Route


class Rest(str, Enum):
    """Where tensors come from that are not truncated."""

    FINETUNED = "ft"
    BASE = "base"


class Experts(str, Enum):
    """How an adapter holds experts that the model's file has one by one."""

    FUSED = "fused"
    """As the stacks that transformers makes of them."""

    SEPARATE = "separate"
    """Two matrices for each matrix of each expert, all of one rank."""


class StoredDtype(str, Enum):
    """How truncated tensors are stored."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @classmethod
    def _missing_(cls, value: object) -> StoredDtype | None:
        """Understand the short names."""
        return {"fp32": cls.FLOAT32, "bf16": cls.BFLOAT16, "fp16": cls.FLOAT16}.get(str(value))


STORED_DTYPES = {
    StoredDtype.FLOAT32: Dtype.F32,
    StoredDtype.BFLOAT16: Dtype.BF16,
    StoredDtype.FLOAT16: Dtype.F16,
}


@dataclass(frozen=True, slots=True)
class Options:
    """Every option that shapes the result."""

    rank_for: tuple[RankOverride, ...] = ()
    keep: Keep = Keep.TOP
    seed: int = 0
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    """Of an adapter: tensors that it may leave as they are in base."""

    experts: Experts = Experts.FUSED
    """Of an adapter."""

    rest: Rest = Rest.FINETUNED
    scale: float = 1.0
    renames: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    svd: Route = Route.AUTO
    tolerance: float = 1e-6
    dtype: StoredDtype = StoredDtype.AUTO
    max_shard_size: str | None = None

    def to_json(self, rule: Rule) -> dict[str, Any]:
        """Return the options by the names of the command line."""
        return {
            "rank": str(rule),
            "rank_for": [f"{override.pattern}={override.rule}" for override in self.rank_for],
            "keep": self.keep.value,
            "seed": self.seed,
            "only": list(self.only),
            "skip": list(self.skip),
            "drop": list(self.drop),
            "experts": self.experts.value,
            "rest": self.rest.value,
            "scale": self.scale,
            "map": dict(self.renames),
            "device": self.device,
            "svd": self.svd.value,
            "tolerance": self.tolerance,
            "dtype": self.dtype.value,
            "max_shard_size": self.max_shard_size,
        }
