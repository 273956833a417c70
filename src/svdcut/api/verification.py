"""Verification of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svdcut.adapter.reading import open_finetuned
from svdcut.api.public import public
from svdcut.choose.options import ignore
from svdcut.errors import UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.verification.findings import Verification
from svdcut.verification.options import VerifyOptions

if TYPE_CHECKING:
    from svdcut.record.progress import Observer
    from svdcut.verification.run import Inputs


@public(VerifyOptions)
def verify(options: VerifyOptions) -> Verification:
    """Check a result against its manifest, and against what it was made from.

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
    return carry_out_verification(options, observe=options.observe)


def carry_out_verification(options: VerifyOptions, *, observe: Observer = ignore) -> Verification:
    """Do what `verify` does."""
    from svdcut.verification.run import run_verification

    return run_verification(options.out, _open_inputs(options), observe)


def _open_inputs(options: VerifyOptions) -> Inputs | None:
    from svdcut.verification.run import Inputs

    base, finetuned, quiet = options.base, options.finetuned, options.quiet
    if (base is None) != (finetuned is None):
        raise UsageError("one side of two", hint="Name both: --base BASE --ft FT.")
    if base is None or finetuned is None:
        if options.sample is not None:
            raise UsageError(
                "a sample of nothing: without the inputs no tensor is computed again",
                hint="Name them: --base BASE --ft FT.",
            )
        return None
    ours = open_checkpoint(base, quiet=quiet)
    return Inputs(
        ours,
        lambda renames: open_finetuned(finetuned, ours, renames=renames, quiet=quiet),
        options.sample,
        options.seed,
        options.device,
    )
