"""Time a sweep over ten ranks beside its decomposition and its evaluations.

    python bench/sweep.py [--texts 1000] [--hidden 384]

The model is made here, of random numbers. What is left of the time of the sweep, as a share
of the two together, is what swapping weights, loading and writing cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import svdcut
from svdcut.evaluation.scoring import Predictor
from svdcut.sweeps import run

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import text_models

RANKS = "1,2,3,4,6,8,12,16,32,64"


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def call(*arguments: object, **options: object) -> object:
        began = time.perf_counter()
        result = function(*arguments, **options)
        seconds.append(time.perf_counter() - began)
        return result

    return call


def make_pair(folder: Path, hidden: int, texts: int) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=6,
        num_attention_heads=hidden // 32,
        vocab_size=8000,
        max_position_embeddings=64,
        id2label={0: "0", 1: "1"},
    )
    model = BertForSequenceClassification(config)
    text_models.save(model, text_models.word_tokenizer(), folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))
    text_models.save(model, text_models.word_tokenizer(), folder / "ft")
    text_models.write_csv(folder / "data.csv", text_models.make_examples(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=384)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    make_pair(folder, options.hidden, options.texts)
    decompositions: list[float] = []
    evaluations: list[float] = []
    run.decompose_update = timed(run.decompose_update, decompositions)
    Predictor.predict = timed(Predictor.predict, evaluations)  # type: ignore[method-assign]
    began = time.perf_counter()
    sides = (folder / "base", folder / "ft", folder / "data.csv", folder / "out")
    svdcut.sweep(*sides, ranks=RANKS, group=["group"], device="cpu")
    total = time.perf_counter() - began
    parts = sum(decompositions) + sum(evaluations)
    print(f"sweep over {len(RANKS.split(','))} ranks and both ends: {total:.1f} s")
    print(f"{len(decompositions)} decomposition: {sum(decompositions):.1f} s")
    print(f"{len(evaluations)} evaluations: {sum(evaluations):.1f} s")
    print(f"beside these: {total / parts - 1:.1%}")


if __name__ == "__main__":
    main()
