"""Verification of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svdcut.api.public import public
from svdcut.choose.options import ignore
from svdcut.errors import UsageError
from svdcut.verification.findings import Verification
from svdcut.verification.options import VerifyOptions

if TYPE_CHECKING:
    from svdcut.record.progress import Observer


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

    if (options.base is None) != (options.finetuned is None):
        raise UsageError("one side of two", hint="Name both: --base BASE --ft FT.")
    if options.base is None and options.sample is not None:
        raise UsageError(
            "a sample of nothing: without the inputs no tensor is computed again",
            hint="Name them: --base BASE --ft FT.",
        )
    return run_verification(options, observe)
