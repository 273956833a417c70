"""The screen of ``svdcut truncate`` and ``svdcut extract``: what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from svdcut.choose.keep import Keep
from svdcut.cli.screen import (
    SHOWN_ROWS,
    Column,
    Screen,
    common_ends,
    first_names,
    no_room,
    print_more,
    print_table,
)
from svdcut.files.filenames import MANIFEST_NAME
from svdcut.files.tensorfile import Dtype, size_bytes
from svdcut.record.manifest import Manifest, WeightFileFact
from svdcut.record.summary import Group, summarize
from svdcut.shown import byte_size, counted, printable
from svdcut.svd.certificate import Method

if TYPE_CHECKING:
    from svdcut.api.truncation import Request
    from svdcut.pair.matching import Matching
    from svdcut.pair.pairing import Pairing

_CERTIFIED = {
    Keep.TOP: "Certified within {} of the best possible error at each rank",
    Keep.BOTTOM: "What was cut, the leading triplets, is certified within {} of the best possible "
    "error at its rank",
    Keep.RANDOM: "A random set is no best one: the energy that it keeps is certified within {} of "
    "the update's",
}
"""What is certified of the triplets that stay."""

_LARGE_BYTES = 10 << 20
"""Of a tensor that an adapter stores whole, where factors were hoped for."""

_COLUMNS = (
    Column("n", 1),
    Column("shape", 4),
    Column("rank"),
    Column("energy"),
    Column("cut", 2),
    Column("rounding", 3),
)
"""Of the table of a result."""

_SHOWN_FILES = 12
"""Names of a usual folder of a training run."""


def print_result(request: Request, manifests: Sequence[Manifest]) -> None:
    """Print what was done, one table for each output."""
    console = Screen(highlight=False)
    print_pairing(console, request)
    for output, manifest in zip(request.outputs, manifests, strict=True):
        groups = summarize(manifest)
        _print_groups(console, groups)
        console.print()
        for line in filter(None, (*_result_lines(manifest), _whole_line(manifest))):
            console.say(line)
        weights = (f for f in manifest.files.values() if isinstance(f, WeightFileFact))
        size = byte_size(sum(fact.size for fact in weights))
        console.say(
            f"[bold]{escape(str(output.path))}[/bold]: {size} in {manifest.totals.seconds:.1f} s "
            f"on {escape(manifest.device)}"
        )


def print_pairing(console: Screen, request: Request) -> None:
    """Print how the names of the two sides were matched, and what of both was left over."""
    plan = request.plan
    print_matching(console, plan.pairing)
    if plan.pairing.base_only:
        names = escape(first_names(plan.pairing.base_only))
        count = counted(len(plan.pairing.base_only), "tensor")
        console.say(f"Skipped {count} that only base has: {names}.")
    if request.left_behind:
        names = escape(first_names(request.left_behind, _SHOWN_FILES))
        console.say(f"Files of the fine-tuned side left behind: {names}.")


def print_matching(console: Screen, pairing: Pairing) -> None:
    """Print how the names of the two sides were matched."""
    for line in _matching_lines(pairing.matching):
        console.say(escape(printable(line)))


def _matching_lines(matching: Matching) -> Iterator[str]:
    for rename in matching.renames:
        if not rename.finetuned:
            yield f"Matched without the prefix {rename.base!r} of base."
        elif not rename.base:
            yield f"Matched without the prefix {rename.finetuned!r} of the fine-tuned side."
        else:
            yield f"Matched {rename.base!r} of base with {rename.finetuned!r}."
    if matching.wrappers:
        yield f"Matched without {', '.join(map(repr, matching.wrappers))} in names."


def _print_groups(console: Screen, groups: Sequence[Group]) -> None:
    start, end = common_ends([group.name for group in groups])
    rows = [
        [
            group.name[len(start) : len(group.name) - len(end)],
            str(group.count),
            "x".join(map(str, group.shape)),
            f"{group.rank_text()}/{group.full_rank}",
            f"{group.energy_retained:.1%}",
            f"{group.tail_norm:.1e}",
            f"{group.rounding_error:.0e}",
        ]
        for group in groups[:SHOWN_ROWS]
    ]
    title = f"{printable(start)} … {printable(end)}".strip()
    dropped = print_table(console, title, _COLUMNS, rows, gap=1, max_name=12) if rows else []
    print_more(console, len(groups), f"see {MANIFEST_NAME}")
    if dropped:
        console.say(no_room(dropped, MANIFEST_NAME), style="dim")


def _result_lines(manifest: Manifest) -> Iterator[str]:
    totals = manifest.totals
    energy = totals.energy_retained
    kept = "" if energy is None else f", {energy:.1%} of the update's energy kept"
    yield (
        f"{totals.truncated} of {totals.tensors} tensors truncated: rank {totals.rank} of "
        f"{totals.full_rank}{kept}."
    )
    cuts = [fact.truncation for fact in manifest.tensors.values() if fact.truncation]
    if cuts:
        methods = Counter(cut.svd.method for cut in cuts)
        routes = ", ".join(f"{count} by {method}" for method, count in sorted(methods.items()))
        worst = max(cut.svd.excess_bound for cut in cuts)
        keep = Keep(manifest.options["keep"])
        yield f"{_CERTIFIED[keep].format(f'{worst:.0e}')} ({routes})."
    fallbacks = sum(bool(cut.svd.rejected) and cut.svd.method == Method.EXACT for cut in cuts)
    if fallbacks:
        count = counted(fallbacks, "tensor")
        yield f"{count} fell back to the full SVD: see svd in {MANIFEST_NAME}."


def _whole_line(manifest: Manifest) -> str | None:
    """Say what an adapter stores beside factors; a large tensor is named."""
    adapter = manifest.adapter
    if adapter is None:
        return None
    sizes = {
        name: size_bytes(Dtype(fact.dtype), fact.shape)
        for name, fact in adapter.tensors.items()
        if ".lora_" not in name
    }
    if not sizes:
        return None
    largest = max(sizes, key=lambda name: sizes[name])
    noun = "tensor is" if len(sizes) == 1 else "tensors are"
    line = f"{len(sizes)} {noun} stored whole, {byte_size(sum(sizes.values()))}"
    if sizes[largest] < _LARGE_BYTES:
        return f"{line}."
    return (
        f"{line}, of which {escape(printable(largest))} {byte_size(sizes[largest])}: "
        "see docs/adapters.md."
    )
