"""Leading triplets of a matrix whose first values dwarf the others that are wanted.

A LoRA update that was merged into the weights is of that kind: a few large values over the
rounding of storage. Products with such a matrix round by its first value, and what is
wanted beside it drowns. So its head is taken out, and the rest is iterated on by itself.
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
from svdcut.svd.krylov import NARROW, Head, krylov_triplets, measure_triplets

_LOOKED_AT = 16
"""A head of more than this part of the values is not seen."""

_FEW = 64
"""Of few columns noise is not iterated on for more values than this part of them (measured,
CPU)."""

_ROUNDING = 4.0
"""Of what is left of a matrix, in units of epsilon, by the norm of the whole."""


def leading_triplets(
    a: Tensor,
    k: int,
    *,
    energy: float,
    tolerance: float,
    generator: Generator,
    escalate: Callable[[int], object] = lambda _: None,
) -> Leading | Head | None:
    """Return at least the `k` + 1 leading triplets of `a`.

    Parameters
    ----------
    a, k, energy, tolerance, generator
        As for `krylov_triplets`.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    Leading, Head or None
        In float64 where there was a head to take out. The head alone where it leaves noise of a
        narrow matrix: the basis that this takes costs more than the Gram route. None as of
        `krylov_triplets`.

    Notes
    -----
    With `V` the right vectors of the head, the rest ``a - a V V.T`` is what `a` is at right
    angles to them: the largest value beyond its triplets is that of `a` beyond both. All of
    them together are rotated and measured on `a` itself, in float64, so that how well the
    head was separated is seen in their residuals.
    """
    n = a.shape[1]
    rest, exponent = a, 0
    head = torch.zeros(n, 0, dtype=torch.float64, device=a.device)
    while True:
        found = krylov_triplets(
            rest,
            k - head.shape[1],
            energy=energy if rest is a else sum_of_squares(rest),
            tolerance=tolerance,
            generator=generator,
        )
        if not isinstance(found, Head):
            break
        head = torch.cat((head, found.right), dim=1)
        if found.is_over_noise and n <= NARROW and k - head.shape[1] > n // _FEW:
            return found
        if rest is a:
            escalate(a.nbytes)
            rest = torch.empty_like(a)
        head = _sharpened(a, head)
        exponent = _take_out(a, head, rest)
    if found is None or rest is a:
        return found
    every = torch.cat((head, found.triplets.right.double()), dim=1)
    return _measured(a, every, energy=energy, next_square=found.next_square * 4.0**exponent)


def find_head(a: Tensor, k: int, *, energy: float, generator: Generator) -> Triplets | None:
    """Return leading triplets beside which float32 does not see the one after the `k`-th.

    Parameters
    ----------
    a, k, energy, generator
        As for `krylov_triplets`.

    Notes
    -----
    Costs the first 3 k columns or so of an iteration in float32. The triplets are in float64.
    """
    found = krylov_triplets(
        a.float(), k, energy=energy, tolerance=0.0, generator=generator, num_looks=1
    )
    if not isinstance(found, Head):
        return None
    return _measured(a, _sharpened(a, found.right), energy=energy, next_square=0.0).triplets


def hides_rest(product: Tensor, *, generator: Generator) -> bool:
    """Whether the rounding of a Gram matrix hides all but the leading part of its values.

    Parameters
    ----------
    product : Tensor of shape (n, n), float64
        Of a matrix, its short side along the columns.
    generator : Generator
        On the CPU.

    Notes
    -----
    Looks at what a step of the power method with n / 16 vectors leaves: n^3 / 4 operations, a
    hundredth of what `gram_triplets` takes.
    """
    n = len(product)
    block = torch.randn(n, n // _LOOKED_AT, generator=generator, dtype=torch.float64)
    block = torch.linalg.qr(product @ block.to(product.device)).Q
    energy = float(product.trace())
    rest = energy - float((block * (product @ block)).sum())
    return torch.finfo(torch.float64).eps * energy * n > VALUE_TOLERANCE * rest


def deflated_triplets(
    a: Tensor, head: Triplets, count: int | None = None, *, energy: float
) -> Leading | None:
    """Return leading triplets of `a`: those of its head as given, the others by a Gram matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), m >= n, float32 or float64
    head : Triplets
        From `find_head`.
    count : int, optional
        As for `gram_triplets`.
    energy : float
        Sum of squares of `a`.

    Returns
    -------
    Leading or None
        As of `gram_triplets`; None if the others are not smaller than the head.

    Raises
    ------
    torch.linalg.LinAlgError
        If eigh does not converge.

    Notes
    -----
    With `Q` an orthonormal basis of what is at right angles to the head, the others are those of
    ``Q.T G Q``, `G` the Gram matrix of what the head leaves of `a`. That rounds by the energy
    left, and not by all of it. What couples the two parts is in the measured residuals of the
    head, and counts for the others by the ratio of their values. Costs what `gram_triplets`
    does, a Gram matrix, and O(n^2 h) for h triplets of the head.
    """
    h = len(head.squares)
    normals = _reflector(head.right)
    product = gram(a, without=head.right)
    for _ in range(2):
        product = torch.addmm(product, normals, normals.T @ product, alpha=-2)[h:].T
    found = gram_triplets(product, None if count is None else max(count - h, 1))
    rest = found.triplets
    del product
    if rest.squares[0] > head.squares[-1]:
        return None
    rounding = _ROUNDING * torch.finfo(torch.float64).eps * energy**0.5
    coupling = float((head.residuals / head.squares.sqrt()).norm())
    lost = rest.residuals + (rounding + coupling) * rest.squares.sqrt()
    residuals = torch.cat((head.residuals + head.couplings, lost))
    right = torch.cat((head.right, _beside(normals, rest.right)), dim=1)
    squares = torch.cat((head.squares, rest.squares))
    return replace(found, triplets=Triplets(right, None, squares, residuals, residuals))


def _reflector(right: Tensor) -> Tensor:
    """Return `Y`, (n, h), with which ``1 - 2 Y Y.T`` turns vectors, (n, h), into the first axes.

    Notes
    -----
    The block reflector of [1]_: both sets of vectors are at right angles to within rounding.

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


def _beside(normals: Tensor, vectors: Tensor) -> Tensor:
    """Return vectors, (n - h, j), at right angles to the first h axes, as they were before."""
    h = normals.shape[1]
    padded = torch.nn.functional.pad(vectors, (0, 0, h, 0))
    return padded.addmm_(normals, normals[h:].T @ vectors, alpha=-2)


def _sharpened(a: Tensor, right: Tensor) -> Tensor:
    """Return vectors, (n, h), with less of the rest in them: by two steps of the power method."""
    for _ in range(2):
        right = torch.linalg.qr(multiply_rows(multiply(a, right).T, a).T).Q
    return right


def _take_out(a: Tensor, right: Tensor, rest: Tensor) -> int:
    """Make `rest` what is left of `a`, scaled by a power of two, and return the power."""
    left = multiply(a, right)
    for start, stop in row_blocks(a.shape, a.device):
        block = a[start:stop].to(torch.float64, copy=True)
        rest[start:stop] = block.addmm_(left[start:stop], right.T, alpha=-1)
    return normalise(rest)[1]


def _measured(a: Tensor, right: Tensor, *, energy: float, next_square: float) -> Leading:
    """Return the triplets of `a` in the span of some vectors, (n, j), measured in float64."""
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
