"""Spectra of a checkpoint, and comparisons of two updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from svdcut.adapter.reading import open_finetuned
from svdcut.api.keywords import prefixes, public, texts
from svdcut.errors import UsageError
from svdcut.files.checkpoint import open_checkpoint
from svdcut.spectra.comparison import Comparison
from svdcut.spectra.facts import Spectra
from svdcut.spectra.plan import (
    ComparisonPlan,
    SpectraOptions,
    SpectraPlan,
    plan_comparison,
    plan_spectra,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from svdcut.record.progress import Observer


class SpectrumOptions(TypedDict, total=False):
    """Options of `spectrum`, as keyword arguments; all have defaults."""

    only: str | Sequence[str]
    """Globs: look at these tensors alone."""

    skip: str | Sequence[str]
    """Globs: leave these tensors out."""

    map: Mapping[str, str]
    """Prefixes of base's names, old to new."""

    top: int | None
    """Compute only so many leading values; None for all."""

    intruders: bool
    """Look for intruder dimensions; needs two sides."""

    device: str
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""

    quiet: bool
    """Show no progress of downloads."""


@dataclass(frozen=True, slots=True)
class SpectraRequest:
    """Spectra that can be measured: checked, planned, not begun."""

    plan: SpectraPlan
    options: SpectraOptions


@public(SpectrumOptions)
def spectrum(
    checkpoint: str | Path,
    finetuned: str | Path | None = None,
    *,
    observe: Observer | None = None,
    **options: Unpack[SpectrumOptions],
) -> Spectra:
    """Measure the singular values of a checkpoint's weights, or of an update.

    Parameters
    ----------
    checkpoint : str or Path
        Directory, ``.safetensors`` file, or Hub id ``org/name[@revision]``. With
        `finetuned`, the base.
    finetuned : str or Path, optional
        The fine-tuned side, named likewise: the values are those of
        ``finetuned - base`` then.
    observe : callable, optional
        Told of each tensor that is done; see `svdcut.Progress`.
    **options : SpectrumOptions
        The options of the command line by the same names.

    Returns
    -------
    Spectra
        Of every matrix; singular values within 1e-5, relatively.

    Raises
    ------
    UsageError
        If an option or a pattern is wrong.
    InputError
        If an input cannot be used, or the two do not match.
    """
    return measure_spectra(prepare_spectra(checkpoint, finetuned, **options), observe=observe)


def prepare_spectra(
    checkpoint: str | Path,
    finetuned: str | Path | None = None,
    **options: Unpack[SpectrumOptions],
) -> SpectraRequest:
    """Check and plan what `spectrum` measures, from headers alone."""
    resolved = _resolve_spectrum_options(options)
    if finetuned is None and (resolved.intruders or resolved.renames):
        option = "--intruders" if resolved.intruders else "--map"
        raise UsageError(f"{option} needs two checkpoints", hint="Name both: BASE FT.")
    quiet = options.get("quiet", False)
    first = open_checkpoint(checkpoint, quiet=quiet)
    if finetuned is None:
        return SpectraRequest(plan_spectra(None, first, resolved), resolved)
    last = open_finetuned(finetuned, first, renames=resolved.renames, quiet=quiet)
    return SpectraRequest(plan_spectra(first, last, resolved), resolved)


def measure_spectra(request: SpectraRequest, *, observe: Observer | None = None) -> Spectra:
    """Measure what was prepared; see `spectrum` for what it returns and raises."""
    from svdcut.spectra.run import run_spectra

    return run_spectra(request.plan, request.options, observe=observe or (lambda progress: None))


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
    """A comparison that can be made: checked, planned, not begun."""

    plan: ComparisonPlan
    options: SpectraOptions


@public(SpectrumOptions)
def compare_spectra(
    base: str | Path,
    finetuned: str | Path,
    other: str | Path,
    *,
    rank: int = 16,
    observe: Observer | None = None,
    **options: Unpack[SpectrumOptions],
) -> Comparison:
    """Measure two updates of one base, and how much their leading spaces have in common.

    Parameters
    ----------
    base, finetuned, other : str or Path
        Base and two fine-tuned sides, named as for `spectrum`; each is matched with base
        by itself.
    rank : int
        Of the spaces that are compared.
    observe : callable, optional
        Told of each tensor that is done; see `svdcut.Progress`.
    **options : SpectrumOptions
        Those of `spectrum`, for both.

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
    """
    request = prepare_comparison(base, finetuned, other, rank=rank, **options)
    return measure_comparison(request, observe=observe)


def prepare_comparison(
    base: str | Path,
    finetuned: str | Path,
    other: str | Path,
    *,
    rank: int = 16,
    **options: Unpack[SpectrumOptions],
) -> ComparisonRequest:
    """Check and plan what `compare_spectra` measures, from headers alone."""
    if rank < 1:
        raise UsageError(f"rank {rank} of the spaces to compare: expected at least 1")
    resolved = _resolve_spectrum_options(options)
    quiet = options.get("quiet", False)
    ours = open_checkpoint(base, quiet=quiet)
    first, second = (
        open_finetuned(side, ours, renames=resolved.renames, quiet=quiet)
        for side in (finetuned, other)
    )
    return ComparisonRequest(plan_comparison(ours, first, second, rank, resolved), resolved)


def measure_comparison(
    request: ComparisonRequest, *, observe: Observer | None = None
) -> Comparison:
    """Measure what was prepared; see `compare_spectra` for what it returns and raises."""
    from svdcut.spectra.run import run_comparison

    return run_comparison(request.plan, request.options, observe=observe or (lambda progress: None))


def _resolve_spectrum_options(options: SpectrumOptions) -> SpectraOptions:
    top = options.get("top")
    if top is not None and top < 1:
        raise UsageError(f"--top {top}: expected at least 1")
    return SpectraOptions(
        only=texts(options, "only"),
        skip=texts(options, "skip"),
        renames=prefixes(options),
        top=top,
        intruders=options.get("intruders", False),
        device=options.get("device", "auto"),
    )
