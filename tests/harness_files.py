"""Files that lm-evaluation-harness writes for a tiny model and tasks of our own.

``python tests/harness_files.py`` writes golden/harness_files anew; it needs
``pip install lm_eval==0.4.13``. Look at what changed. What depends on the machine or on the
day is left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import text_models

GOLDEN = Path(__file__).parent / "golden" / "harness_files"
DATE = "2026-01-01T00-00-00.000000"
KEPT = ("results", "groups", "group_subtasks", "higher_is_better", "n-samples", "lm_eval_version")
RUNS = {"task": "words", "group": "pair", "tasks": "words,more", "filters": "answer"}
"""Value of ``--tasks`` for each run."""

CHOICE = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}\\nSentiment:"
doc_to_choice: [bad, great]
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
FREE = """
task: answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: answer
generation_kwargs: {{max_gen_toks: 4, until: ["\\n"]}}
metric_list: [{{metric: exact_match}}]
filter_list:
- name: strict-match
  filter:
  - {{function: regex, regex_pattern: "#### (.*)", fallback: none}}
  - {{function: take_first}}
- name: flexible-extract
  filter:
  - {{function: regex, regex_pattern: "(.)", fallback: none}}
  - {{function: take_first}}
"""
GROUP = """
group: pair
task: [words, more]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


def documents(count, *, seed):
    """Examples with groups, a membership, and what a shortcut does."""
    return [
        {
            "text": found.text,
            "label": int(found.label),
            "source": found.group,
            "male": (n % 4) / 3,
            "easy": n % 5 != 0,
            "answer": ("none", "x")[n % 2],
        }
        for n, found in enumerate(text_models.make_examples(count, seed=seed))
    ]


def write_tasks(folder: Path) -> Path:
    """Write tasks and their data, for ``--include_path``."""
    folder.mkdir(exist_ok=True)
    for name, template, count in (("words", CHOICE, 12), ("more", CHOICE, 6), ("answer", FREE, 6)):
        data = folder / f"{name}.jsonl"
        lines = map(json.dumps, documents(count, seed=len(name)))
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        task = template.format(data=data, cache=folder / "cache")
        (folder / f"{name}.yaml").write_text(f"task: {name}{task}" if "task:" not in task else task)
    (folder / "pair.yaml").write_text(GROUP)
    return folder


def command(tasks: Path, names: str) -> list[str]:
    """Return the words of the command, as a user of ``svdcut sweep`` writes them."""
    words = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    words += ["--model_args", "pretrained={model},dtype=float32", "--tasks", names]
    return [*words, "--include_path", str(tasks), "--output_path", "{out}"]


STAND_IN = """#!{python}
import argparse, pathlib, shutil
parser = argparse.ArgumentParser()
for name in ("--model", "--model_args", "--tasks", "--output_path"):
    parser.add_argument(name, required=True)
asked = parser.parse_args()
folder = pathlib.Path(asked.output_path) / asked.model_args.replace("/", "__")
folder.mkdir(parents=True)
for path in pathlib.Path({golden!r}).iterdir():
    shutil.copy(path, folder)
"""


def write_stand_in(folder: Path) -> Path:
    """Write a command ``lm_eval`` that leaves the recorded files of a task."""
    folder.mkdir()
    path = folder / "lm_eval"
    path.write_text(STAND_IN.format(python=sys.executable, golden=str(GOLDEN / "task")))
    path.chmod(0o755)
    return folder


def record(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tasks = text_models.gpt2(folder / "model"), write_tasks(folder / "tasks")
        for run, names in RUNS.items():
            out = folder / "out" / run
            words = [w.format(model=model, out=out) for w in command(tasks, names)]
            subprocess.run(words, check=True, env=os.environ | {"HF_HOME": str(folder / "cache")})
            _keep(out, target / run)


def _keep(out: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in out.rglob("results_*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: document[key] for key in KEPT if key in document}
        (target / f"results_{DATE}.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    record(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
