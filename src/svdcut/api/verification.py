"""Verification of a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from svdcut.adapter.reading import open_finetuned
from svdcut.api.truncation import RunOptions, resolve_options
from svdcut.checkpoint import open_checkpoint
from svdcut.errors import UsageError
from svdcut.options import Options
from svdcut.verification.findings import Verification

if TYPE_CHECKING:
    from svdcut.progress import Observer


def verify(
    out: str | Path,
    *,
    base: str | Path | None = None,
    finetuned: str | Path | None = None,
    sample: int | None = None,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
    observe: Observer | None = None,
) -> Verification:
    """Check a result against its manifest, and against what it was made from.

    Parameters
    ----------
    out : str or Path
        The folder of the result.
    base, finetuned : str or Path, optional
        The two sides, named as for `truncate`. With them every number is computed again.
    sample : int, optional
        Compute only so many truncated tensors again.
    seed : int
        Of the choice.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    quiet : bool
        Show no progress of downloads.
    observe : callable, optional
        Told of each tensor that is done; see `svdcut.progress.Progress`.

    Returns
    -------
    Verification
        Every claim that does not hold. A false claim raises nothing.

    Raises
    ------
    UsageError
        If only one side is given, or a sample without them.
    InputError
        If `out` holds no manifest, or a side cannot be read.
    """
    from svdcut.verification.run import Inputs, run_verification

    inputs = None
    if base is not None and finetuned is not None:
        ours = open_checkpoint(base, quiet=quiet)
        inputs = Inputs(
            ours,
            lambda renames: open_finetuned(finetuned, ours, renames=renames, quiet=quiet),
            sample,
            seed,
            device,
        )
    elif base is not None or finetuned is not None:
        raise UsageError("one side of two", hint="Name both: --base BASE --ft FT.")
    elif sample is not None:
        raise UsageError(
            "a sample of nothing: without the inputs no tensor is computed again",
            hint="Name them: --base BASE --ft FT.",
        )
    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample}: expected at least 1")
    return run_verification(
        Path(out).expanduser(),
        inputs,
        _resolve_recorded,
        observe or (lambda progress: None),
    )


def _resolve_recorded(options: Mapping[str, Any]) -> Options:
    """Return the options of a manifest."""
    return resolve_options(cast("RunOptions", options))
