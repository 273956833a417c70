"""Verification of a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from svdcut.adapter.reading import open_finetuned
from svdcut.api.keywords import public
from svdcut.api.truncation import RunOptions, resolve_options
from svdcut.choose.options import Options
from svdcut.errors import UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.verification.findings import Verification

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from svdcut.record.progress import Observer
    from svdcut.verification.run import Inputs


class VerifyOptions(TypedDict, total=False):
    """Options of `verify`, as keyword arguments; all have defaults."""

    base: str | Path | None
    """The side before fine-tuning, named as for `truncate`."""

    finetuned: str | Path | None
    """The other side. With both, every number is computed again."""

    sample: int | None
    """Compute only so many truncated tensors again."""

    seed: int
    """Of the choice."""

    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""

    quiet: bool
    """Show no progress of downloads."""


@public(VerifyOptions)
def verify(
    out: str | Path, *, observe: Observer | None = None, **options: Unpack[VerifyOptions]
) -> Verification:
    """Check a result against its manifest, and against what it was made from.

    Parameters
    ----------
    out : str or Path
        The folder of the result.
    observe : callable, optional
        Told of each tensor that is done; see `svdcut.Progress`.
    **options : VerifyOptions
        The options of the command line by the same names; ``finetuned`` is ``--ft``.

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
    return carry_out_verification(out, options, observe=observe)


def carry_out_verification(
    out: str | Path, options: VerifyOptions, *, observe: Observer | None = None
) -> Verification:
    """Do what `verify` does."""
    from svdcut.verification.run import run_verification

    return run_verification(
        Path(out).expanduser(),
        _open_inputs(options),
        _resolve_recorded,
        observe or (lambda progress: None),
    )


def _open_inputs(options: VerifyOptions) -> Inputs | None:
    from svdcut.verification.run import Inputs

    base, finetuned = options.get("base"), options.get("finetuned")
    sample, quiet = options.get("sample"), options.get("quiet", False)
    if (base is None) != (finetuned is None):
        raise UsageError("one side of two", hint="Name both: --base BASE --ft FT.")
    if base is None or finetuned is None:
        if sample is not None:
            raise UsageError(
                "a sample of nothing: without the inputs no tensor is computed again",
                hint="Name them: --base BASE --ft FT.",
            )
        return None
    if sample is not None and sample < 1:
        raise UsageError(f"--sample {sample}: expected at least 1")
    ours = open_checkpoint(base, quiet=quiet)
    return Inputs(
        ours,
        lambda renames: open_finetuned(finetuned, ours, renames=renames, quiet=quiet),
        sample,
        options.get("seed", 0),
        options.get("device", "auto"),
    )


def _resolve_recorded(options: Mapping[str, Any]) -> Options:
    """Return the options of a manifest."""
    return resolve_options(cast("RunOptions", options))
