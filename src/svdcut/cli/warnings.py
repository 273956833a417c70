"""Warnings about the two sides of an update, and about a result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from svdcut.cli.guard import warn
from svdcut.cli.screen import first_names
from svdcut.files.filenames import ADAPTER_CONFIG_NAME
from svdcut.files.tensorfile import Dtype
from svdcut.names import group_by_kind, is_in_numbered_layer, is_task_head
from svdcut.record.manifest import Manifest
from svdcut.record.summary import puts_much_back
from svdcut.shown import printable

if TYPE_CHECKING:
    from svdcut.files.checkpoint import Checkpoint
    from svdcut.pair.pairing import Pairing
    from svdcut.pair.plan import Plan

_UNMATCHED_SHARE = 0.01
"""Less than this, outside of the layers, is a head or an embedding that came new."""


def warn_of_plan(plan: Plan, what: str) -> None:
    """Warn of what is odd about the two sides of a plan; `what` is as for `warn_of_unmatched`."""
    warn_of_adapters(plan.base, plan.finetuned)
    warn_of_swap(plan.base, plan.finetuned, plan.pairing)
    warn_of_unmatched(plan.pairing, what)


def warn_of_unmatched(pairing: Pairing, what: str) -> None:
    """Warn where base has no tensor for many; a new head is usual.

    Parameters
    ----------
    pairing : Pairing
        Of the two sides.
    what : str
        What becomes of such a matrix, as ``copied whole``.
    """
    sizes = {pair.name: pair.finetuned.size_bytes for pair in pairing.pairs}
    names = [name for name in pairing.unmatched if not is_task_head(name)]
    share = sum(sizes[name] for name in names) / max(sum(sizes.values()), 1)
    if share < _UNMATCHED_SHARE and not any(map(is_in_numbered_layer, names)):
        return
    kinds = group_by_kind(names).items()
    shown = [kind if len(members) > 1 else members[0] for kind, members in kinds]
    hint = "If base has them under other names, --map OLD=NEW renames base's."
    if any("experts" in name for name in [*names, *pairing.base_only]):
        hint = (
            "Base may store its experts in another layout, one by one or in stacks: save both "
            "sides with one version of transformers."
        )
    noun = "matrix is" if len(names) == 1 else "matrices are"
    warn(
        f"{len(names)} {noun} {what}, {share:.1%} of the weights: base has no tensor of "
        f"that name: {first_names(shown)}.\n  {hint}"
    )


def warn_of_swap(base: Checkpoint, finetuned: Checkpoint, pairing: Pairing) -> None:
    """Warn where the sides seem to be the wrong way round."""
    from svdcut.spectra.lineage import signs_of_swap

    signs = list(signs_of_swap(base, finetuned, pairing))
    if signs:
        said = printable("; ".join(signs))
        warn(f"are BASE and FT the wrong way round? {said[0].upper()}{said[1:]}.")


def warn_of_no_update(*, differ: bool) -> None:
    """Warn where the sides do not differ."""
    if not differ:
        warn(
            "BASE and FT are the same in every matrix that was looked at: there is no update.\n"
            "  Is one of them named twice, or was only the rest of the model trained?"
        )


def warn_of_adapters(*sides: Checkpoint | None) -> None:
    """Warn of folders that hold a model and an adapter, of which loaders make another model."""
    for side in dict.fromkeys(side.source for side in sides if side and side.ignores_adapter):
        warn(
            f"{printable(side)}: holds an adapter too, {ADAPTER_CONFIG_NAME}: the weights of the "
            "model are taken as they are, without it"
        )


def warn_of_rounding(manifest: Manifest) -> None:
    """Warn where storage brings back much of what was cut."""
    totals = manifest.totals
    cuts = [fact.truncation for fact in manifest.tensors.values() if fact.truncation]
    norm = math.hypot(*(cut.update_norm for cut in cuts))
    if not puts_much_back(totals.rounding_error, totals.tail_norm, norm):
        return
    dtypes = sorted({fact.dtype for fact in manifest.tensors.values() if fact.truncation})
    narrow = {Dtype.F16.value, Dtype.BF16.value}
    remedy = " --dtype float32 avoids it" if narrow & set(dtypes) else ""
    if remedy:
        remedy += "." if manifest.adapter else ", and so does an adapter: svdcut extract."
    if totals.tail_norm == 0:
        what = f"adds an error of norm {totals.rounding_error:.2g} where nothing was cut"
    else:
        share = totals.rounding_error / totals.tail_norm
        what = (
            f"puts back {share:.0%} of what was cut (norm {totals.rounding_error:.2g} against "
            f"{totals.tail_norm:.2g})"
        )
    warn(
        f"at rank rule {manifest.options['rank']}, rounding to {', '.join(dtypes)} {what}.\n"
        f"  The stored update is not of low rank then.{remedy}"
    )
