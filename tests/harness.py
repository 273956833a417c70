"""Golden numbers: results of lm-evaluation-harness for the models of `text_models`.

``python tests/harness.py`` measures them anew and writes golden/harness.json. It needs
``pip install lm_eval==0.4.13``. Review each change.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import text_models
from text_models import ANSWERS, Example

GOLDEN = Path(__file__).parent / "golden" / "harness.json"


@dataclass(frozen=True)
class Case:
    """A model, and how it is asked."""

    model: str
    prompt: str
    delimiter: str = " "
    chat: bool = False

    @property
    def name(self) -> str:
        return f"{self.model} {self.prompt!r}{' as a message' if self.chat else ''}"


CASES = [
    Case("gpt2", "{text}\nSentiment:"),
    Case("gpt2", "{text}\n", delimiter=""),
    Case("gpt2", "It is a review, said x: {text} I call it ", delimiter=""),
    Case("gpt2_short", "{text}\nSentiment:"),
    Case("llama", "{text}\nSentiment:"),
    Case("llama_chat", "{text}\nSentiment:", chat=True),
    Case("llama_chat", "{text}\nSentiment:"),
]


def examples():
    """Texts of many lengths, and some that are awkward to tokenise."""
    awkward = ["<s> begins by itself", "spaces at the end   ", "naïve — café ☕", "{label} {text}"]
    found = [Example(text, "", str(n % 3), "g") for n, text in enumerate(awkward)]
    return text_models.make_examples(20, labels=("0", "1", "2"), seed=3) + found


def measure(case: Case, folder: Path) -> list[dict]:
    """Return log-likelihoods and hits of each row, by the harness."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = getattr(text_models, case.model)(folder / "model")
    data = text_models.write_csv(folder / "data.csv", examples())
    task = {
        "task": "words",
        "dataset_path": "csv",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": case.prompt.replace("{text}", "{{text}}"),
        "doc_to_choice": list(ANSWERS),
        "doc_to_target": "label",
        "target_delimiter": case.delimiter,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=5)
    options = {"apply_chat_template": case.chat, "bootstrap_iters": 0}
    done = simple_evaluate(model=lm, tasks=[task], log_samples=True, **options)
    samples = sorted(done["samples"]["words"], key=lambda sample: sample["doc_id"])
    return [
        {
            "context": sample["arguments"][0][0],
            "loglikelihoods": [found[0][0] for found in sample["resps"]],
            "acc": sample["acc"],
            "acc_norm": sample["acc_norm"],
        }
        for sample in samples
    ]


def measure_all() -> dict:
    import lm_eval
    import transformers

    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found[case.name] = {"case": asdict(case), "rows": measure(case, Path(folder))}
    versions = {"lm_eval": lm_eval.__version__, "transformers": transformers.__version__}
    return {"recipe": "python tests/harness.py", **versions, "cases": found}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    target.write_text(
        json.dumps(measure_all(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
