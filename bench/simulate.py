"""How evenly the tensors of large models are shared among workers: from shapes alone.

Prints the largest share over the mean one, by estimated cost and by bytes.

    python bench/simulate.py [-k 64]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pairs import Shape

from svdcut.choose.options import Options
from svdcut.choose.ranks import parse_rule
from svdcut.files.tensorfile import Dtype, TensorEntry
from svdcut.pair.pairing import Action, Pair
from svdcut.truncation.sharing import estimate_cost, share

MODELS = {
    "70B, Llama 3": Shape(80, 8192, 28672, 64, 8, 128256),
    "671B, experts as DeepSeek V3": Shape(61, 7168, 2048, 128, 128, 129280, experts=256),
}


def as_pair(name: str, shape: tuple[int, ...]) -> Pair:
    """Return a tensor of both sides in bfloat16."""
    entry = TensorEntry(name, Dtype.BF16, shape, Path("model.safetensors"), 0)
    action = Action.TRUNCATE if len(shape) > 1 else Action.COPY_FINETUNED
    return Pair(name, action, entry, entry, name)


def balance(costs: Sequence[float], shares: Sequence[frozenset[int]]) -> float:
    """Return the largest sum of a share over the mean one."""
    return max(sum(costs[n] for n in own) for own in shares) * len(shares) / sum(costs)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", default="64")
    rules = [parse_rule(parser.parse_args().k)]
    print("model                         workers  tensors  largest share: cost   bytes")
    for model, shape in MODELS.items():
        pairs = [as_pair(name, size) for name, size in shape.tensors()]
        costs = [estimate_cost(pair, rules, Options()) for pair in pairs]
        sizes = [float(pair.finetuned.size_bytes) for pair in pairs]
        for count in (8, 64):
            shares = share(costs, count)
            cost, size = (f"{balance(x, shares):.3f}" for x in (costs, sizes))
            print(f"{model:30}{count:7}{len(pairs):9}{cost:>21}{size:>8}")


if __name__ == "__main__":
    main()
