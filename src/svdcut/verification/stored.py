"""What can be said of a stored tensor that is not reproduced to the byte.

Another processor, device or version may round otherwise. Here are the bounds that hold
all the same: see `tolerances` for how they are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.choose.keep import Keep
from svdcut.record.manifest import Truncation
from svdcut.streaming.stored_matrix import MatrixSides
from svdcut.streaming.update import Update
from svdcut.svd.decomposition import PRODUCT_BYTES, Decomposition, row_blocks
from svdcut.svd.product import Product, rows_of
from svdcut.verification.claims import joined
from svdcut.verification.spectrum import Contradiction, Spectrum, tail_tolerance
from svdcut.verification.tolerances import (
    DOUBLE,
    SINGLE,
    cut_difference,
    lack,
    product_rounding,
)

_COPIES = 8
"""Of a block of rows in float64, at work at a time."""

_SLACK = 1 + 1e-6
"""Of the sums of squares below, taken in float64 over blocks."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Norms of one stored matrix against base, its update, and the intended result."""

    tail: float
    """Of the stored update beyond its first `k` singular values."""

    error: float
    """Of the update minus the stored one over the scale; 0 at scale 0."""

    beyond: float
    """Of what a rounding to the storage dtype cannot explain of ``stored - intended``."""

    half_ulp: float
    """Of the largest rounding error that storage allows."""

    work: float
    """Bound on the rounding of the intended result in the arithmetic that makes it."""

    drift: float
    """Bound on the difference of two intended results; infinite where there is none."""


def exact_values(rank: int, full_rank: int, scale: float, sides: MatrixSides) -> Tensor | None:
    """Return the values that a result must round, where no SVD decides on them."""
    cpu = torch.device("cpu")
    if rank == 0:
        assert sides.base is not None
        return sides.base.read(cpu)
    if rank == full_rank and scale == 1 and sides.update is None:
        return sides.finetuned.read(cpu)
    return None


def measure_exact(wanted: Tensor, stored: Tensor, spectrum: Spectrum) -> Measured | None:
    """Measure a stored matrix whose values are known; None if they are others."""
    if not torch.equal(wanted.to(stored.dtype).view(torch.uint8), stored.view(torch.uint8)):
        return None
    error = math.sqrt(spectrum.energy(spectrum.norm or 1.0, kept=False)) * spectrum.norm
    rounding = float((stored.double() - wanted.double()).norm())
    return Measured(tail=0, error=error, beyond=0, half_ulp=rounding, work=0, drift=0)


def measure_stored(
    update: Update,
    found: Decomposition,
    spectrum: Spectrum,
    stored: Tensor,
    cut: Truncation,
    keep: Keep,
    scale: float,
) -> Measured:
    """Measure a stored matrix.

    Parameters
    ----------
    update : Update
        As `found` has scaled it.
    found : Decomposition
        Of the update.
    spectrum : Spectrum
        Of the update, with the triplets that stay.
    stored : Tensor
        (m, n), of the result.
    cut : Truncation
        What is claimed of the tensor.
    keep, scale
        As the options say.
    """
    k = spectrum.rank
    left, right = (factor.double() for factor in found.factors(spectrum.indices))
    assert update.base is not None
    theirs = update.base.read(stored.device)
    scaled = found.matrix.T if found.transposed else found.matrix
    squares = torch.zeros(4, dtype=torch.float64)
    for start, stop in row_blocks(
        stored.shape, stored.device, itemsize=8 * _COPIES, num_bytes=PRODUCT_BYTES
    ):
        ours, base = stored[start:stop].double(), theirs[start:stop].double()
        ideal = rows_of(scaled, start, stop).double() * found.scale
        error = ideal - (ours - base) / scale if scale else torch.zeros(())
        intended = (left[start:stop] @ right).mul_(found.scale * scale).add_(base)
        half = half_ulp(ours, stored.dtype)
        beyond = ((ours - intended).abs() - half).clamp_min(0)
        parts = (error, beyond, half, intended)
        squares += torch.stack([part.square().sum().cpu() for part in parts])
    error_norm, beyond_norm, half_norm, intended_norm = squares.sqrt().tolist()
    kept = math.sqrt(spectrum.energy(spectrum.norm, kept=True)) * spectrum.norm * abs(scale)
    narrow = stored.dtype in (torch.float16, torch.bfloat16)
    work = SINGLE if narrow and not update.is_wide else DOUBLE
    exact = isinstance(update.matrix, Product) or update.matrix.dtype == torch.float64
    factors = DOUBLE if exact else SINGLE
    # One of the two factors is orthonormal: it spans what the stored update should.
    span = left if found.transposed else right
    drift = _drift(spectrum, cut, keep) * abs(scale) if scale else 0.0
    drift += product_rounding(k, max(update.matrix.shape) + k, factors, kept)
    return Measured(
        tail=_tail(theirs, stored, (span, found.transposed), cut.rounding_error),
        error=error_norm,
        beyond=beyond_norm,
        half_ulp=half_norm,
        work=product_rounding(k, k, work, kept) + 2 * work * intended_norm,
        drift=drift,
    )


def half_ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest error of a rounding of float64 that gives each value."""
    info = torch.finfo(dtype)
    # frexp puts the significand below 1, finfo the unit of 1 itself: hence the halves.
    units = torch.exp2(torch.frexp(values)[1].double() - 1) * info.eps
    units[values == 0] = 0
    half = units.clamp_min(info.smallest_normal * info.eps) / 2
    if dtype in (torch.float16, torch.bfloat16):
        # torch rounds float64 to float32 on the way to these.
        half += values.abs() * SINGLE + 2.0**-149
    return half


def _tail(base: Tensor, stored: Tensor, found: tuple[Tensor, bool], limit: float) -> float:
    """Return the norm of ``stored - base`` beyond its first `k` singular values, at most.

    What lies outside of any `k` dimensions is at least that, and proves enough where it is
    within the limit already. Where it is not, the singular values themselves decide.

    Parameters
    ----------
    base, stored : Tensor of shape (m, n)
        In their own dtypes.
    found : tuple of Tensor and bool
        `k` orthonormal vectors of the update, and whether they are left ones, (m, k), or
        right ones, (k, n).
    limit : float
        What it should not exceed.
    """
    span, are_left = found
    k = span.shape[1 if are_left else 0]
    if min(stored.shape) == k:
        return 0.0
    # The stored update is of rank k but for its rounding: one step finds its own vectors.
    left = span if are_left else torch.cat([d @ span.T for _, d in _changes(base, stored)])
    right = stored.new_zeros(stored.shape[1], k, dtype=torch.float64)
    for start, change in _changes(base, stored):
        right.addmm_(change.T, left[start : start + len(change)])
    right = torch.linalg.qr(right)[0]
    total = 0.0
    for _, change in _changes(base, stored):
        total += float((change - (change @ right) @ right.T).square_().sum())
    if total <= limit * limit:
        return math.sqrt(total)
    values = torch.linalg.svdvals(stored.double() - base.double())
    rounding = len(values) * 8 * torch.finfo(torch.float64).eps * float(values[0])
    return max(0.0, float(values[k:].norm()) - rounding)


def _changes(base: Tensor, stored: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield blocks of rows of ``stored - base`` in float64, each with its first row."""
    for start, stop in row_blocks(
        stored.shape, stored.device, itemsize=8 * _COPIES, num_bytes=PRODUCT_BYTES
    ):
        yield start, stored[start:stop].double() - base[start:stop].double()


def _drift(spectrum: Spectrum, cut: Truncation, keep: Keep) -> float:
    """Bound the difference of the claimed cut and the computed one, at scale 1."""
    if keep is Keep.RANDOM:
        return math.inf
    size, norm = len(spectrum.values), spectrum.norm
    boundary = size - spectrum.rank if keep is Keep.BOTTOM else spectrum.rank
    if boundary in (0, size):
        return 0.0
    best = math.sqrt(spectrum.energy(norm, kept=keep is Keep.BOTTOM))
    lacks = [lack(best, 1.0, excess) for excess in (cut.svd.excess_bound, spectrum.excess)]
    squares = [(value / norm) ** 2 for value in spectrum.values]
    return cut_difference(squares, boundary, lacks) * norm


def compare_stored(
    cut: Truncation,
    keep: Keep,
    scale: float,
    measured: Sequence[Measured],
    spectra: Sequence[Spectrum],
) -> Iterator[Contradiction]:
    """Yield every claim that the stored matrices of a tensor contradict.

    Parameters
    ----------
    cut : Truncation
        The claims.
    keep, scale
        As the options say.
    measured : sequence of Measured
        Of each matrix that an SVD decides on.
    spectra : sequence of Spectrum
        Of the same ones.
    """
    rounding, work = cut.rounding_error, math.fsum(item.work for item in measured)
    tail = math.hypot(*(item.tail for item in measured))
    if not tail <= (rounding + work) * _SLACK:
        found = f"an update {tail:.3g} from rank {joined(cut.ranks)}"
        yield "rank", found, f"at most {rounding:.3g}"
    half = math.hypot(*(item.half_ulp for item in measured))
    if not rounding <= (half + work) * _SLACK:
        yield "rounding_error", half, rounding
    drift = math.hypot(*(item.drift for item in measured))
    beyond = math.hypot(*(item.beyond for item in measured))
    if not beyond <= (drift + work) * _SLACK:
        yield "result", f"norm {beyond:.3g} away, beyond rounding", f"at most {drift + work:.3g}"
    if scale != 0:
        yield from _compare_error(cut, keep, scale, measured, spectra)


def _compare_error(
    cut: Truncation,
    keep: Keep,
    scale: float,
    measured: Sequence[Measured],
    spectra: Sequence[Spectrum],
) -> Iterator[Contradiction]:
    """Compare the error of the stored update with the best one at its rank."""
    error = math.hypot(*(item.error for item in measured))
    unit = math.hypot(*(spectrum.norm for spectrum in spectra))
    best = math.fsum(spectrum.energy(unit, kept=False) for spectrum in spectra)
    off = math.fsum(tail_tolerance(cut, keep, spectrum, unit) for spectrum in spectra)
    low, high = (math.sqrt(max(0.0, best + sign * off)) * unit for sign in (-1, 1))
    allowed = cut.rounding_error + math.fsum(item.work for item in measured)
    kept = [math.sqrt(s.energy(unit, kept=True)) * unit for s in spectra]
    factors = math.fsum(
        product_rounding(s.rank, len(s.values) + s.rank, SINGLE, norm)
        for s, norm in zip(spectra, kept, strict=True)
    )
    allowed = (allowed / abs(scale) + factors) * _SLACK
    if not low - allowed <= error <= high + allowed:
        yield "error", error, f"{math.sqrt(best) * unit:.6g}, within {allowed:.2g}"
