"""Make a real pair of checkpoints from the Python package `rxnfp`: a BERT and two fine-tunes.

Tensor names and values stay as published, prefix mismatch included; nothing is trained here.

    python scripts/real_pair.py [DIR=demo]
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

WHEEL_NAME = "rxnfp-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"
REQUIREMENT = f"rxnfp==0.1.0 --hash=sha256:{WHEEL_SHA256}\n"

FILES = (
    "LICENSE",
    "README.md",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

# rxnfp/tokenization.py, SMI_REGEX_PATTERN, less its outer group.
SMILES_TOKEN = (
    r"\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@"
    r"|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
)

# The published config names two labels for a head of 50. These are the 50 classes of the data
# it was trained on (Schneider et al., 2015), in the order that puts its held-out accuracy at 99 %.
REACTION_CLASSES = tuple(
    """
    1.2.1 1.2.4 1.2.5 1.3.6 1.3.7 1.3.8 1.6.2 1.6.4 1.6.8 1.7.4 1.7.6 1.7.7 1.7.9 1.8.5
    10.1.1 10.1.2 10.1.5 10.2.1 10.4.2 2.1.1 2.1.2 2.1.7 2.2.3 2.3.1 2.6.1 2.6.3 2.7.2
    3.1.1 3.1.5 3.1.6 3.3.1 3.4.1 5.1.1 6.1.1 6.1.3 6.1.5 6.2.1 6.2.2 6.2.3 6.3.1 6.3.7
    7.1.1 7.2.1 7.3.1 7.9.2 8.1.4 8.1.5 8.2.1 9.1.6 9.3.1
    """.split()
)

CARD = """\
---
license: mit
library_name: transformers
tags:
- chemistry
- reaction-smiles
- bert
---

# {title}

{text}

Converted from `{member}` in the Python package `rxnfp` 0.1.0 (MIT, see `LICENSE`): tensor names
and values are unchanged, the format is safetensors. `config.json` gained the entries that
current transformers need, and `tokenizer.json` is the package's SMILES tokenizer.

Schwaller et al., *Mapping the space of chemical reactions using attention-based neural
networks*, Nature Machine Intelligence 3, 144-152 (2021).
"""


@dataclass(frozen=True)
class RealPair:
    """Three checkpoint directories of the same encoder."""

    base: Path
    "Pretrained with masked tokens; names start with `bert.`."
    finetuned: Path
    "Fine-tuned with a head for 50 reaction classes; names start with `bert.`."
    finetuned_encoder: Path
    "Another fine-tune, encoder only; names lack `bert.`."

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.base, self.finetuned, self.finetuned_encoder))


@dataclass(frozen=True)
class Recipe:
    """How one directory is made."""

    name: str
    source: str
    architecture: str
    title: str
    text: str
    labels: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where the wheel keeps this checkpoint."""
        return f"rxnfp/models/transformers/{self.source}"
