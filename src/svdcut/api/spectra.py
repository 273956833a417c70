"""Spectra of a checkpoint, and comparisons of two updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svdcut.adapter.reading import open_finetuned
from svdcut.api.public import public
from svdcut.choose.options import ignore
from svdcut.errors import UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import Spectra
from svdcut.spectra.options import CompareOptions, SpectraOptions, SpectrumOptions
from svdcut.spectra.plan import ComparisonPlan, SpectraPlan, plan_comparison, plan_spectra

if TYPE_CHECKING:
    from svdcut.record.progress import Observer


@dataclass(frozen=True, slots=True)
class SpectraRequest:
    """Spectra that can be measured: checked, planned, not begun."""

    plan: SpectraPlan
    options: SpectraOptions


@public(SpectrumOptions)
def spectrum(options: SpectrumOptions) -> Spectra:
    """Measure the singular values of a checkpoint's weights, or of an update.

    Returns
    -------
    Spectra
        Of every matrix; singular values within 1e-5, relatively. With `finetuned`, they are
        those of ``finetuned - checkpoint``.

    Raises
    ------
    UsageError
        If an option or a pattern is wrong.
    InputError
        If an input cannot be used, or the two do not match.
    """
    return measure_spectra(prepare_spectra(options), observe=options.observe)


def prepare_spectra(options: SpectrumOptions) -> SpectraRequest:
    """Check and plan what `spectrum` measures, from headers alone."""
    if options.finetuned is None and (options.intruders or options.map):
        option = "--intruders" if options.intruders else "--map"
        raise UsageError(f"{option} needs two checkpoints", hint="Name both: BASE FT.")
    first = open_checkpoint(options.checkpoint, quiet=options.quiet)
    if options.finetuned is None:
        return SpectraRequest(plan_spectra(None, first, options), options)
    last = open_finetuned(options.finetuned, first, renames=options.map, quiet=options.quiet)
    return SpectraRequest(plan_spectra(first, last, options), options)


def measure_spectra(request: SpectraRequest, *, observe: Observer = ignore) -> Spectra:
    """Measure what was prepared; see `spectrum` for what it returns and raises."""
    from svdcut.spectra.run import run_spectra

    return run_spectra(request.plan, request.options, observe=observe)


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """A comparison that can be made: checked, planned, not begun."""

    plan: ComparisonPlan
    options: SpectraOptions


@public(CompareOptions)
def compare_spectra(options: CompareOptions) -> Comparison:
    """Measure two updates of one base, and how much their leading spaces have in common.

    Returns
    -------
    Comparison
        Both spectra, and the overlaps of the matrices that both updates have.

    Raises
    ------
    UsageError
        If an option or a pattern is wrong.
    InputError
        If an input cannot be used, or does not match base.

    Notes
    -----
    Each fine-tuned side is matched with base by itself, under the same options.
    """
    return measure_comparison(prepare_comparison(options), observe=options.observe)


def prepare_comparison(options: CompareOptions) -> ComparisonRequest:
    """Check and plan what `compare_spectra` measures, from headers alone."""
    ours = open_checkpoint(options.base, quiet=options.quiet)
    first, second = (
        open_finetuned(side, ours, renames=options.map, quiet=options.quiet)
        for side in (options.finetuned, options.other)
    )
    plan = plan_comparison(ours, first, second, options.rank, options)
    return ComparisonRequest(plan, options)


def measure_comparison(request: ComparisonRequest, *, observe: Observer = ignore) -> Comparison:
    """Measure what was prepared; see `compare_spectra` for what it returns and raises."""
    from svdcut.spectra.run import run_comparison

    return run_comparison(request.plan, request.options, observe=observe)
