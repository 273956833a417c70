"""Cuts of a sweep evaluated by a command of the user's own, on checkpoints written for it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from svdcut.errors import EvaluationError
from svdcut.evaluation.dataset import Columns
from svdcut.evaluation.metrics import Evaluation
from svdcut.pair.plan import Output
from svdcut.record.provenance import InputHashes
from svdcut.sweeps.bench import Bench, Measured, Setting
from svdcut.sweeps.facts import Variant
from svdcut.sweeps.harness import read_harness
from svdcut.sweeps.outcome import read_outcome
from svdcut.sweeps.stored import Decomposed
from svdcut.truncation.run import run_truncation

CHECKPOINT_NAME = "checkpoint"
"""Of the folder, within that of a sweep, that a command evaluates."""

_MAX_SAID = 300
"""Characters of what a failed command said."""

_STDERR = 2
_PLACEHOLDER = re.compile(r"\{(model|out)\}")


@dataclass(frozen=True, slots=True)
class CommandEvaluator:
    """Evaluates by a command of the user's own, on checkpoints that are written for it."""

    writes_checkpoints: ClassVar[bool] = True

    command: str
    """With ``{model}`` where the folder of the checkpoint goes, and perhaps ``{out}`` for an
    empty folder, from which the files of lm-evaluation-harness are read then."""

    columns: Columns
    """Of the documents in those files."""

    seed: int
    """Of the intervals of gaps."""

    @property
    def writes_files(self) -> bool:
        """Whether the outcome is in files, and not on stdout."""
        return "{out}" in self.command

    def identity(self) -> dict[str, str]:
        """Return the command, and the options by which its files are read."""
        command = {"--eval-command": self.command}
        if not (self.writes_files and self.columns.grouping):
            return command
        columns = self.columns
        named = {
            "--group": columns.group,
            "--group-columns": columns.group_columns,
            "--label": (columns.label,) if columns.group_columns else (),
            "--aligned": () if columns.aligned is None else (columns.aligned,),
        }
        given = {option: shlex.join(names) for option, names in named.items() if names}
        return {**command, **given, "evaluation --seed": str(self.seed)}

    def open(self, setting: Setting) -> Bench:
        """Set up; no model is loaded. The inputs are hashed once, for all checkpoints."""
        return _OnDisk(setting, self, setting.until_end.enter_context(InputHashes(setting.plan)))


@dataclass(frozen=True, slots=True)
class _OnDisk:
    """Evaluates checkpoints that are written, one at a time, and removed."""

    setting: Setting
    evaluator: CommandEvaluator
    hashes: InputHashes

    def finetuned(self) -> Evaluation:
        with self.setting.loadable(self.hashes) as finetuned:
            folder = finetuned.directory or finetuned.files[0].path
            return self._run(folder, finetuned.source)

    def evaluate(self, decomposed: Decomposed, variant: Variant) -> Measured:
        setting = self.setting
        folder = setting.folder / CHECKPOINT_NAME
        shutil.rmtree(folder, ignore_errors=True)
        options = replace(setting.options, keep=variant.keep)
        output = Output(folder, variant.rule, restart=True)
        cutter = decomposed.cut_tensor if decomposed.describes(variant) else None
        (made,) = run_truncation(setting.plan, [output], options, self.hashes, cutter=cutter)
        try:
            return Measured(self._run(folder), made.totals.rounding_error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, model: Path, name: str | None = None) -> Evaluation:
        """Evaluate a checkpoint; `name` is what the user calls it."""
        evaluator, called = self.evaluator, f"--eval-command on {name or model}"
        if not evaluator.writes_files:
            return _read_stdout(self._call(called, model), called)
        out = (self.setting.folder / "evaluation").resolve()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        try:
            self._call(called, model, out)
            return read_harness(out, evaluator.columns, seed=evaluator.seed)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def _call(self, called: str, model: Path, out: Path | None = None) -> str:
        """Run the command; return what it says on stdout, unless it writes to `out`."""
        values = {"model": str(model), "out": str(out)}
        words = [
            _PLACEHOLDER.sub(lambda match: values[match[1]], word)
            for word in shlex.split(self.evaluator.command)
        ]
        aside = subprocess.DEVNULL if self.setting.quiet else _STDERR
        stdout = subprocess.PIPE if out is None else aside
        try:
            done = subprocess.run(
                words, stdout=stdout, encoding="utf-8", errors="replace", check=False
            )
        except OSError as error:
            raise EvaluationError(f"--eval-command: cannot run {words[0]!r}: {error}") from error
        if done.returncode:
            raise EvaluationError(
                f"{called}: exit code {done.returncode}",
                hint="What it said on stderr is above.",
            )
        return done.stdout or ""


def _read_stdout(said: str, called: str) -> Evaluation:
    try:
        document = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{called}: expected one JSON document on stdout, found {said[:_MAX_SAID]!r}",
            hint='As {"accuracy": 0.9}; for files of lm_eval, name {out} in the command.',
        ) from error
    return read_outcome(document, called)
