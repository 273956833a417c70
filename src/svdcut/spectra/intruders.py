"""Intruder dimensions: leading vectors of fine-tuned weights that base has no match for.

It looks at weights, where the rest of the package looks at their difference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from svdcut.spectra.matrix import Intruders
from svdcut.streaming.memory import NUM_LEADING
from svdcut.streaming.stored_matrix import MatrixEntry, MatrixSides
from svdcut.streaming.update import read_weights
from svdcut.svd.decomposition import multiply, normalise, solver_errors
from svdcut.svd.dense import gram
from svdcut.svd.subspace import leading_spaces

THRESHOLD = 0.5
"""Cosines below it match nothing."""

_VECTOR_FLOOR = 1e-6
"""Vectors of base with values below this share of the first are noise: of storage in 16
bits by far, in float32 about, and of a Gram matrix in float64 soon."""

_ALIKE = 4 * torch.finfo(torch.float64).eps
"""Squared values that differ by this share of their norm are one to a Gram matrix."""


def find_intruders(
    sides: MatrixSides,
    device: torch.device,
    *,
    seed: int,
    escalate: Callable[[int], object] = lambda _: None,
) -> Intruders:
    """Compare the leading left vectors of fine-tuned weights with all of base's.

    Parameters
    ----------
    sides : MatrixSides
        Where the weights lie, with a base.
    device : torch.device
        Where to compute.
    seed : int
        Of the engine's random blocks.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    Intruders
        The largest cosine of each of the first `NUM_LEADING` vectors; 0 where base is zero.

    Raises
    ------
    SolverError
        If no route converges.

    Notes
    -----
    The definition is that of [1]_. Vectors are those with a value: a null space has none
    of its own. Where values of base are one and the same, so is any choice of vectors in
    their space, and the one that fits best counts. Leading values of the fine-tuned side
    that agree within a thousandth leave its vectors to rounding likewise; there the
    cosines say little.

    The leading vectors cost what `leading_spaces` does; all of base's, an eigenvalue
    decomposition of the float64 Gram matrix of the short side, about 9 n^3 in 4 n^2
    numbers. On the long side no vector is formed: with ``a = u s v^T``, ``u^T x`` is
    ``v^T a^T x / s``.

    References
    ----------
    .. [1] R. Shuttleworth, J. Andreas, A. Torralba, P. Sharma, "LoRA vs full fine-tuning:
       an illusion of equivalence", arXiv:2410.21228, with k = 10 and epsilon = 0.5.
    """
    assert sides.base is not None
    weights = read_weights(sides, device)
    spaces = leading_spaces(weights, NUM_LEADING, seed=seed, escalate=escalate)
    del weights  # base's need its memory
    if not spaces.rank:
        return Intruders((), THRESHOLD)
    return Intruders(tuple(_best_cosines(sides.base, spaces.left)), THRESHOLD)


def _best_cosines(base: MatrixEntry, x: Tensor) -> list[float]:
    """Return the largest |cosine| of each column of `x` (m, k) with a left vector of base."""
    # The weights themselves are gone before the vectors need memory.
    product, images, on_long_side = _project(base, x)
    with solver_errors():
        squares, vectors = torch.linalg.eigh(product)
    energies = (vectors.T @ images).square_()
    kept = squares > _VECTOR_FLOOR**2 * squares[-1]
    energies, kept_squares = energies[kept], squares[kept]
    if on_long_side:
        energies /= kept_squares.unsqueeze(1)
    best = _sum_alike(energies, kept_squares, _ALIKE * float(squares.norm()))
    return [min(energy**0.5, 1.0) for energy in best.tolist()]


def _project(base: MatrixEntry, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the Gram matrix of base's short side, `x` seen from there, and if that moved it."""
    weights, _ = normalise(read_weights(MatrixSides(None, base), x.device))
    if weights.shape[0] <= weights.shape[1]:
        return gram(weights.T), x, False
    return gram(weights), multiply(weights.T, x), True


def _sum_alike(energies: Tensor, squares: Tensor, apart: float) -> Tensor:
    """Return the largest energy (k,) of those of (r, k), summed where values are one."""
    if not len(squares):
        return energies.new_zeros(energies.shape[1])
    group = torch.zeros(len(squares), dtype=torch.long, device=squares.device)
    group[1:] = (squares.diff() > apart).cumsum(0)
    sums = torch.zeros_like(energies).index_add_(0, group, energies)
    return sums.amax(dim=0)
