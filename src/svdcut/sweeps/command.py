"""Evaluate checkpoints by a command: write one, run the command on it, read what it says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from svdcut.errors import EvaluationError
from svdcut.evaluation.metrics import Evaluation
from svdcut.pair.plan import Output
from svdcut.record.progress import Observer
from svdcut.record.provenance import InputHashes
from svdcut.sweeps.decomposition import Decomposition
from svdcut.sweeps.harness import read_harness
from svdcut.sweeps.request import CommandEvaluator, Measured, SweepRequest, read_outcome
from svdcut.sweeps.result import Variant
from svdcut.truncation.run import run_truncation

CHECKPOINT_NAME = "checkpoint"
"""Of the folder, within that of a sweep, that a command evaluates."""

_MAX_SAID = 300
"""Characters of what a command said."""

_STDERR = 2
_PLACEHOLDER = re.compile(r"\{(model|out)\}")


@dataclass(frozen=True, slots=True)
class CommandBench:
    """Evaluates checkpoints that are written, one at a time, and removed."""

    request: SweepRequest
    evaluator: CommandEvaluator
    hashes: InputHashes
    observe: Observer

    def finetuned(self) -> Evaluation:
        """Evaluate the fine-tuned side as it is; an adapter is merged for that."""
        with self.request.loadable(self.observe, self.hashes) as finetuned:
            folder = finetuned.directory or finetuned.files[0].path
            return self._run(folder, finetuned.source)

    def evaluate(self, decomposed: Decomposition, variant: Variant) -> Measured:
        """Write a cut as a checkpoint, and evaluate that."""
        request = self.request
        with _own_folder(request.options.out / CHECKPOINT_NAME) as folder:
            (made,) = run_truncation(
                request.plan,
                [Output(folder, variant.rule, restart=True)],
                replace(request.shape, keep=variant.keep),
                self.hashes,
                cutter=decomposed.cut_tensor,
            )
            return Measured(self._run(folder, str(folder)), made.totals.rounding_error)

    def _run(self, model: Path, name: str) -> Evaluation:
        """Evaluate a checkpoint; `name` is what the user calls it."""
        evaluator, called = self.evaluator, f"--eval-command on {name}"
        if not evaluator.writes_files:
            return _read_stdout(self._call(called, model), called)
        with _own_folder((self.request.options.out / "evaluation").resolve()) as out:
            out.mkdir(parents=True)
            self._call(called, model, out)
            return read_harness(out)

    def _call(self, called: str, model: Path, out: Path | None = None) -> str:
        """Run the command; return what it says on stdout, unless it writes to `out`."""
        values = {"model": str(model), "out": str(out)}
        words = [
            _PLACEHOLDER.sub(lambda match: values[match[1]], word)
            for word in shlex.split(self.evaluator.command)
        ]
        aside = subprocess.DEVNULL if self.request.options.quiet else _STDERR
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


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """Yield a path where nothing is, and remove what is there in the end."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _read_stdout(said: str, called: str) -> Evaluation:
    try:
        document = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{called}: expected one JSON document on stdout, found {said[:_MAX_SAID]!r}",
            hint='As {"accuracy": 0.9}; for files of lm_eval, name {out} in the command.',
        ) from error
    return read_outcome(document, called)
