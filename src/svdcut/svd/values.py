"""All singular values of a matrix, without its vectors.

Half the work and memory of a decomposition. It decides on no rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcut.svd.certificate import VALUE_FLOOR, VALUE_TOLERANCE
from svdcut.svd.decomposition import Method, SolverError, is_solver_failure, normalise
from svdcut.svd.dense import gram, is_tall

_ROUNDING = 4.0
"""Backward error of a route in units of epsilon, by the Frobenius norm of what it reduces.

Householder reductions are backward stable by that norm, with a factor that grows slowly
in theory and stays below one in practice; `tests/test_values.py` looks at it.
"""


@dataclass(frozen=True, slots=True)
class Values:
    """All singular values of a matrix."""

    singular_values: list[float]
    """min(m, n) of them, descending, in the caller's units."""

    method: Method
    bound: float
    """Relative error of any of them, at most; by rounding analysis, not by measurement.

    Values below `VALUE_FLOOR` of the first are held to the accuracy that it has.
    """


def singular_values(a: Tensor, *, escalate: Callable[[], object] = lambda: None) -> Values:
    """Return all singular values of a matrix.

    Parameters
    ----------
    a : Tensor of shape (m, n), float32 or float64
        Finite. It is scaled in place by a power of two.
    escalate : callable
        Called once before the exact route is taken: it needs more memory.

    Returns
    -------
    Values
        Within `VALUE_TOLERANCE`.

    Raises
    ------
    SolverError
        If no route converges.

    Notes
    -----
    With ``m >= n``, the eigenvalues of the float64 Gram matrix: O(m n^2) for it and
    4/3 n^3 for its reduction, in two float64 matrices of n x n. An eigenvalue is
    off by eps times the norm of the Gram matrix, so that a small value loses digits by
    the square of its share; where that is too much, the exact route follows, a float64
    SVD without vectors: 8/3 n^3, slower than its operations, in the memory of
    `exact_triplets`.
    """
    tall = a if a.shape[0] >= a.shape[1] else a.T
    tall, exponent = normalise(tall)
    scale = math.ldexp(1.0, exponent)
    found = _by_gram(tall)
    if found is None or found.bound > VALUE_TOLERANCE:
        escalate()
        found = _by_svd(tall)
    return Values([value * scale for value in found.singular_values], found.method, found.bound)


def _by_gram(a: Tensor) -> Values | None:
    try:
        squares = torch.linalg.eigvalsh(gram(a))
    except RuntimeError as failure:
        if not is_solver_failure(failure):
            raise
        return None
    size = float(squares.norm())
    if size == 0:
        return Values([0.0] * a.shape[1], Method.NONE, 0.0)
    s = squares.flip(0).clamp_min_(0).sqrt_()
    error = _ROUNDING * torch.finfo(torch.float64).eps * size
    smallest, first = float(s[-1]), float(s[0])
    # From the inside: the value itself may be rounding.
    moved = error / max(smallest + math.sqrt(max(smallest**2 - error, 0.0)), VALUE_FLOOR * first)
    return Values(s.tolist(), Method.GRAM, moved / max(smallest, VALUE_FLOOR * first))


def _by_svd(a: Tensor) -> Values:
    wide = a.double()
    try:
        if is_tall(a):
            wide = torch.linalg.qr(wide, mode="r").R
        s = torch.linalg.svdvals(wide)
    except RuntimeError as failure:
        if is_solver_failure(failure):
            raise SolverError(str(failure)) from failure
        raise
    values: list[float] = s.tolist()
    first = values[0]
    moved = _ROUNDING * torch.finfo(torch.float64).eps * float(s.norm())
    return Values(values, Method.EXACT, moved / max(values[-1], VALUE_FLOOR * first))
