"""Cut one matrix: decompose it, apply a rank rule, certify the error.

It joins the rank rules to the engine; it reads and writes no files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from svdcut.choose.keep import Keep, choose_indices, first_left_out
from svdcut.choose.noise import Storage, update_edge
from svdcut.choose.ranks import Rule
from svdcut.errors import QualityError
from svdcut.svd.certificate import Bounds, MeasuredValues, allowed_value_error
from svdcut.svd.decomposition import Decomposition
from svdcut.svd.engine import decompose
from svdcut.svd.product import Product, full_rank
from svdcut.svd.route import Route


@dataclass(frozen=True, slots=True)
class CutRequest:
    """The triplets asked for of a matrix."""

    rule: Rule
    keep: Keep
    seed: int
    """Seed of a random choice."""

    rank: int | None = None
    """The rank, where a joint rule has allocated it."""

    def known_rank(self, full_rank: int) -> int | None:
        """Return the rank, if it does not depend on the spectrum."""
        return self.rule.known_rank(full_rank) if self.rank is None else self.rank


@dataclass(frozen=True, slots=True)
class Cut:
    """The triplets of a matrix that stay; norms and values in the matrix's own units."""

    indices: Sequence[int]
    """Indices of the triplets that stay, ascending."""

    bounds: Bounds
    residual: float
    edge: float | None
    kept_norm: float
    tail_norm: float
    sigma_first: float
    sigma_last_kept: float | None
    sigma_next: float | None

    @property
    def rank(self) -> int:
        """Number of triplets that stay."""
        return len(self.indices)


def stable_seed(*words: object) -> int:
    """Return a seed that depends on the words alone, in every process and version."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def cut_matrix(
    matrix: Tensor | Product,
    requests: Sequence[CutRequest],
    *,
    storage: Storage | None,
    route: Route,
    tolerance: float,
    seed: int,
    escalate: Callable[[int], object] = lambda _: None,
) -> tuple[Decomposition, list[Cut]]:
    """Decompose a matrix once, and cut it once for each request.

    Parameters
    ----------
    matrix : Tensor of shape (m, n), float32 or float64, or Product
        Finite; a tensor is scaled in place.
    requests : sequence of CutRequest
        What to keep.
    storage : Storage or None
        Of the fine-tuned side, for the noise rule. With None nothing was rounded: the edge
        is that of what float64 tells from zero.
    route : Route
        Where the engine starts; for a product there is one.
    tolerance : float
        Relative excess error that every cut must be certified for.
    seed : int
        Of the engine's random blocks.
    escalate : callable
        As for `svdcut.svd.engine.decompose`.

    Returns
    -------
    tuple of Decomposition and list of Cut
        One cut for each request.

    Raises
    ------
    QualityError
        If not even the exact route is certified to `tolerance`.
    """
    cutter = _Cutter(requests, storage, matrix, tolerance)
    found = decompose(
        matrix,
        cutter.num_needed(),
        accept=cutter.accept,
        num_needed=cutter.num_needed,
        route=route,
        tolerance=tolerance,
        seed=seed,
        escalate=escalate,
    )
    if not found.energy:
        # The engine accepts a matrix of zeros by itself.
        cutter.accept(found)
    worst = max(cut.bounds.excess for cut in cutter.cuts)
    if worst > tolerance:
        raise QualityError(
            f"no route reached an excess error of {tolerance:g}; the exact one is certified "
            f"to {worst:.1e}",
            hint="Ask for a --tolerance that float64 can reach.",
        )
    return found, cutter.cuts


class _Cutter:
    """Cuts the matrix anew for each decomposition that the engine tries.

    Rules see whole spectra alone: leading triplets are cut at the ranks chosen before.
    """

    def __init__(
        self,
        requests: Sequence[CutRequest],
        storage: Storage | None,
        matrix: Tensor | Product,
        tolerance: float,
    ) -> None:
        self.cuts: list[Cut] = []
        self._requests = self._settled = requests
        self._edge: float | None = None
        self._storage, self._tolerance = storage, tolerance
        self._shape, self._full_rank = matrix.shape, full_rank(matrix)

    def accept(self, found: Decomposition) -> bool:
        """Make the cuts, and return whether all are certified."""
        measured, requests = found.measured(), self._settled
        if measured.is_complete and found.energy:
            requests = self._requests
            if any(request.rule.needs_edge for request in requests):
                values = measured.singular_values()
                self._edge = update_edge(self._storage, self._shape, values)
        self.cuts = [choose_cut(measured, request, self._edge) for request in requests]
        ranks = (cut.rank for cut in self.cuts)
        self._settled = [replace(r, rank=rank) for r, rank in zip(requests, ranks, strict=True)]
        return all(is_certified(cut.bounds, self._tolerance) for cut in self.cuts)

    def num_needed(self) -> int | None:
        """Return how many leading triplets the cuts need, as far as known; None for all."""
        return _num_needed(self._settled, self._full_rank)


def is_certified(bounds: Bounds, tolerance: float) -> bool:
    """Whether the error of a cut and the values reported with it are within their tolerances."""
    return bounds.excess <= tolerance and bounds.value <= allowed_value_error(tolerance)


def _num_needed(requests: Sequence[CutRequest], full_rank: int) -> int | None:
    """Return how many leading triplets serve all requests; None for all of them."""
    most = 0
    for request in requests:
        rank = request.known_rank(full_rank)
        if rank is None or rank >= full_rank or (request.keep is not Keep.TOP and rank > 0):
            return None
        most = max(most, rank)
    return most


def choose_cut(measured: MeasuredValues, request: CutRequest, edge: float | None) -> Cut:
    """Choose the triplets that a request keeps of a matrix, and bound the error.

    Parameters
    ----------
    measured : MeasuredValues
        Of the matrix: as many as the request needs.
    request : CutRequest
        What to keep.
    edge : float or None
        Noise edge, for the noise rule.
    """
    full_rank = measured.full_rank
    if measured.energy == 0:
        return Cut(range(0), Bounds(0.0, 0.0), 0.0, None, 0.0, 0.0, 0.0, None, 0.0)
    s = measured.singular_values()
    rank = request.known_rank(full_rank)
    if rank is None:
        rank = request.rule.rank(s, full_rank, edge=edge or 0.0)
    indices = choose_indices(request.keep, rank, full_rank, seed=request.seed)
    kept, tail = kept_energies(measured, indices)
    residual = max((measured.residuals[i] for i in indices), default=0.0)
    return Cut(
        indices=indices,
        bounds=_bounds(measured, request.keep, indices),
        residual=residual / measured.squares[0],
        edge=edge if request.rule.needs_edge else None,
        kept_norm=math.sqrt(kept) * measured.scale,
        tail_norm=math.sqrt(tail) * measured.scale,
        sigma_first=s[0],
        sigma_last_kept=s[indices[-1]] if indices else None,
        sigma_next=s[first_left_out(indices)] if rank < full_rank else None,
    )


def kept_energies(measured: MeasuredValues, indices: Sequence[int]) -> tuple[float, float]:
    """Return the energy of the triplets that stay and of all others, in scaled units."""
    kept = math.fsum(measured.squares[i] for i in indices)
    chosen = set(indices)
    cut = math.fsum(value for i, value in enumerate(measured.squares) if i not in chosen)
    return kept, cut + measured.rest


def _bounds(measured: MeasuredValues, keep: Keep, indices: Sequence[int]) -> Bounds:
    if keep is Keep.TOP or not indices:
        return measured.bounds(len(indices))
    if keep is Keep.BOTTOM:
        # The last triplets are the complement of the leading ones.
        return measured.bounds(measured.full_rank - len(indices))
    # A chosen set minimises nothing: what can be wrong is the energy that it holds.
    moved = math.fsum(measured.residuals[i] for i in indices)
    whole = measured.bounds(measured.full_rank)
    return Bounds(excess=moved / (2 * measured.energy), value=whole.value)
