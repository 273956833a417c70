"""Deflation: leading triplets where a few dominant ones hide the others in rounding.

A LoRA update merged into the weights has a few large singular values above the rounding of
storage. Rounding of products is proportional to the first value, and hides the small ones.
So the dominant triplets are projected out, and the rest is decomposed by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from svdcut.svd.certificate import VALUE_TOLERANCE
from svdcut.svd.decomposition import (
    Leading,
    Triplets,
    multiply,
    multiply_rows,
    normalise,
    row_blocks,
    sum_of_squares,
)
from svdcut.svd.dense import gram, gram_triplets
from svdcut.svd.krylov import NARROW, Dominant, krylov_triplets, measure_triplets

_LOOKED_AT = 16
"""`hides_rest` sees dominant triplets if they are at most this part of all."""

_FEW = 64
"""In narrow matrices, iterating on noise pays only for less than this part of the values
(measured, CPU)."""

_ROUNDING = 4.0
"""Rounding of the deflated matrix, in units of epsilon times the norm of the whole."""


def leading_triplets(
    a: Tensor,
    k: int,
    *,
    energy: float,
    tolerance: float,
    generator: Generator,
    escalate: Callable[[int], object] = lambda _: None,
) -> Leading | Dominant | None:
    """Return at least the `k` + 1 leading triplets of `a`, by iteration with deflation.

    Parameters
    ----------
    a, k, energy, tolerance, generator
        As for `krylov_triplets`.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    Leading, Dominant or None
        In float64 after a deflation. The dominant triplets alone if a narrow matrix has only
        noise beside them: the Gram route is faster then. None as for `krylov_triplets`.

    Notes
    -----
    With `V` the dominant right vectors, iterates on the deflated matrix ``a - a V V.T``. All
    triplets together are then rotated and measured on `a` in float64, so that an incomplete
    separation shows in their residuals. The largest value beyond the triplets of the deflated
    matrix is the largest of `a` beyond all of them.
    """
    n = a.shape[1]
    rest, exponent = a, 0
    dominant = torch.zeros(n, 0, dtype=torch.float64, device=a.device)
    while True:
        found = krylov_triplets(
            rest,
            k - dominant.shape[1],
            energy=energy if rest is a else sum_of_squares(rest),
            tolerance=tolerance,
            generator=generator,
        )
        if not isinstance(found, Dominant):
            break
        dominant = torch.cat((dominant, found.right), dim=1)
        if found.is_over_noise and n <= NARROW and k - dominant.shape[1] > n // _FEW:
            return found
        if rest is a:
            escalate(a.nbytes)
            rest = torch.empty_like(a)
        dominant = _sharpened(a, dominant)
        exponent = _deflate(a, dominant, rest)
    if found is None or rest is a:
        return found
    every = torch.cat((dominant, found.triplets.right.double()), dim=1)
    return _measured(a, every, energy=energy, next_square=found.next_square * 4.0**exponent)


def find_dominant(a: Tensor, k: int, *, energy: float, generator: Generator) -> Triplets | None:
    """Return the dominant triplets: those that hide the one after the `k`-th from float32.

    Parameters
    ----------
    a, k, energy, generator
        As for `krylov_triplets`.

    Notes
    -----
    Costs an iteration in float32 with a basis of about 3 k columns. Returns float64.
    """
    found = krylov_triplets(
        a.float(), k, energy=energy, tolerance=0.0, generator=generator, num_looks=1
    )
    if not isinstance(found, Dominant):
        return None
    return _measured(a, _sharpened(a, found.right), energy=energy, next_square=0.0).triplets


def hides_rest(product: Tensor, *, generator: Generator) -> bool:
    """Whether rounding of a Gram matrix hides all but a few dominant values.

    Parameters
    ----------
    product : Tensor of shape (n, n), float64
        From `gram`.
    generator : Generator
        On the CPU.

    Notes
    -----
    Measures the energy outside n / 16 vectors after one step of the power method: n^3 / 4
    operations, a hundredth of `gram_triplets`.
    """
    n = len(product)
    block = torch.randn(n, n // _LOOKED_AT, generator=generator, dtype=torch.float64)
    block = torch.linalg.qr(product @ block.to(product.device)).Q
    energy = float(product.trace())
    rest = energy - float((block * (product @ block)).sum())
    return torch.finfo(torch.float64).eps * energy * n > VALUE_TOLERANCE * rest


def deflated_triplets(
    a: Tensor, dominant: Triplets, count: int | None = None, *, energy: float
) -> Leading | None:
    """Return leading triplets of `a`: the dominant ones as given, the others by the Gram route.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64
    dominant : Triplets
        From `find_dominant`.
    count : int, optional
        As for `gram_triplets`.
    energy : float
        Sum of squares of `a`.

    Returns
    -------
    Leading or None
        As from `gram_triplets`; None if another value is larger than a dominant one.

    Raises
    ------
    torch.linalg.LinAlgError
        If eigh does not converge.

    Notes
    -----
    With `Q` an orthonormal basis of the complement of the dominant right vectors, and `G` the
    Gram matrix of the deflated `a`, the others are the triplets of ``Q.T G Q``. Its rounding is
    proportional to the energy left, not to all of it. The coupling of the two parts shows in
    the measured residuals of the dominant triplets, and is added to those of the others by the
    ratio of their values. Costs a Gram matrix, `gram_triplets`, and O(n^2 h) for h dominant
    triplets.
    """
    h = len(dominant.squares)
    normals = _reflector(dominant.right)
    product = gram(a, without=dominant.right)
    for _ in range(2):
        product = torch.addmm(product, normals, normals.T @ product, alpha=-2)[h:].T
    found = gram_triplets(product, None if count is None else max(count - h, 1))
    rest = found.triplets
    del product
    if rest.squares[0] > dominant.squares[-1]:
        return None
    rounding = _ROUNDING * torch.finfo(torch.float64).eps * energy**0.5
    coupling = float((dominant.residuals / dominant.squares.sqrt()).norm())
    lost = rest.residuals + (rounding + coupling) * rest.squares.sqrt()
    residuals = torch.cat((dominant.residuals + dominant.couplings, lost))
    right = torch.cat((dominant.right, _in_complement(normals, rest.right)), dim=1)
    squares = torch.cat((dominant.squares, rest.squares))
    return replace(found, triplets=Triplets(right, None, squares, residuals, residuals))


def _reflector(right: Tensor) -> Tensor:
    """Return `Y`, (n, h): the reflection ``1 - 2 Y Y.T`` maps vectors, (n, h), to the first axes.

    Notes
    -----
    The block reflector of [1]_, orthogonal to rounding.

    References
    ----------
    .. [1] R. Schreiber, B. Parlett, "Block reflectors: theory and computation", SIAM
       Journal on Numerical Analysis 25, 1988.
    """
    h = right.shape[1]
    u, _, vh = torch.linalg.svd(right[:h])
    normals = right.clone()
    normals[:h] += u @ vh
    basis: Tensor = torch.linalg.qr(normals).Q
    return basis


def _in_complement(normals: Tensor, vectors: Tensor) -> Tensor:
    """Return vectors, (n - h, j), of the reflected complement in the original axes."""
    h = normals.shape[1]
    padded = torch.nn.functional.pad(vectors, (0, 0, h, 0))
    return padded.addmm_(normals, normals[h:].T @ vectors, alpha=-2)


def _sharpened(a: Tensor, right: Tensor) -> Tensor:
    """Return vectors, (n, h), after two more steps of the power method in float64."""
    for _ in range(2):
        right = torch.linalg.qr(multiply_rows(multiply(a, right).T, a).T).Q
    return right


def _deflate(a: Tensor, right: Tensor, rest: Tensor) -> int:
    """Write ``a - a V V.T``, scaled by a power of two, to `rest`; return the power."""
    left = multiply(a, right)
    for start, stop in row_blocks(a.shape, a.device):
        block = a[start:stop].to(torch.float64, copy=True)
        rest[start:stop] = block.addmm_(left[start:stop], right.T, alpha=-1)
    return normalise(rest)[1]


def _measured(a: Tensor, right: Tensor, *, energy: float, next_square: float) -> Leading:
    """Return the triplets of `a` in the span of `right`, (n, j), measured in float64."""
    basis = torch.linalg.qr(right).Q
    images, triangle = torch.linalg.qr(multiply(a, basis))
    left, s, rotation = torch.linalg.svd(triangle)
    return measure_triplets(
        a,
        rotation @ basis.T,
        ((images @ left) * s).T.contiguous(),
        s,
        energy=energy,
        beyond=lambda _: next_square,
    )
