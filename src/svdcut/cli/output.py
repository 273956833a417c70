"""Screens: the plan, the progress, the result.

Everything for people, through rich; JSON goes straight to stdout.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from svdcut.choose.keep import Keep
from svdcut.cli import tables
from svdcut.cli.guard import warn
from svdcut.cli.tables import no_room, print_table
from svdcut.files.filenames import ADAPTER_CONFIG_NAME, MANIFEST_NAME
from svdcut.files.tensorfile import Dtype, size_bytes
from svdcut.names import collapse_numbers, is_in_numbered_layer, is_task_head
from svdcut.record.manifest import Manifest, WeightFileFact
from svdcut.record.summary import Group, puts_much_back, summarize
from svdcut.shown import byte_size, counted, printable
from svdcut.svd.measured import Method

if TYPE_CHECKING:
    from svdcut.api.truncation import Request
    from svdcut.files.checkpoint import Checkpoint
    from svdcut.pair.matching import Matching
    from svdcut.pair.pairing import Pairing
    from svdcut.pair.plan import Plan
    from svdcut.record.progress import Observer
    from svdcut.record.progress import Progress as TensorDone

_STAGES = {
    "spectra": "pass 1 of 2: spectra",
    "truncate": "truncating",
    "merge": "merging",
    "load": "loading the model",
    "spectrum": "measuring",
    "result": "reading the result",
    "inputs": "reading the inputs",
    "recompute": "computing again",
    "evaluate": "evaluating",
    "decompose": "decomposing",
    "sweep": "evaluating",
}
_COUNTS_TEXTS = ("evaluate", "sweep")
_CERTIFIED = {
    Keep.TOP: "Certified within {} of the best possible error at each rank",
    Keep.BOTTOM: "What was cut, the leading triplets, is certified within {} of the best possible "
    "error at its rank",
    Keep.RANDOM: "A random set is no best one: the energy that it keeps is certified within {} of "
    "the update's",
}
"""What is certified of the triplets that stay."""

_BAR_WIDTH = 10
"""Columns of a terminal; what is left is for the name."""

_WIDE = 80
"""In fewer columns a bar and the time would leave no room for the name."""

_LARGE_BYTES = 10 << 20
"""Of a tensor that an adapter stores whole, where factors were hoped for."""

SHOWN_ROWS = 40
"""Rows of a table, which a screen still holds; a usual model has a dozen."""

_COLUMNS = (
    tables.Column("n", 1),
    tables.Column("shape", 4),
    tables.Column("rank"),
    tables.Column("energy"),
    tables.Column("cut", 2),
    tables.Column("rounding", 3),
)
"""Of the table of a result."""

_SHOWN_FILES = 12
"""Names of a usual folder of a training run."""

_UNMATCHED_SHARE = 0.01
"""Less than this, outside of the layers, is a head or an embedding that came new."""


class Screen(Console):
    """A console that leaves a closed pipe to `guard`, as `print_json` does.

    Sentences wrap between words on a terminal, and not at all in a pipe or a file.
    """

    def say(self, text: str, *, style: str | None = None, markup: bool = True) -> None:
        """Print a sentence."""
        self.print(text, style=style, markup=markup, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Let the error through."""
        raise  # noqa: PLE0704 - called while the BrokenPipeError is handled


def print_json(document: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


class _Amount(DownloadColumn):
    """How much of a stage is done: bytes, or texts; nothing where nothing is counted."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        if task.total is None:
            return Text("")
        if task.fields["texts"]:
            return Text(f"{task.completed:.0f}/{task.total:.0f} texts", style="progress.download")
        return super().render(task)


class _TailOfName(ProgressColumn):
    """The name of what is done, cut at its start: its end tells it from others."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True, ratio=1))

    def render(self, task: Task) -> _Tail:
        """Return the column's text."""
        return _Tail(printable(task.fields["name"]))


@dataclass(frozen=True, slots=True)
class _Tail:
    """As much of the end of a text as there is room for."""

    text: str

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width
        fits = len(self.text) <= room
        yield Text(self.text if fits else f"…{self.text[1 - room :]}", overflow="ellipsis")


def progress_bar(console: Console, *, quiet: bool) -> Progress:
    """Return bars that draw on a terminal alone; on a narrow one, names and amounts."""
    whole = Column(no_wrap=True)
    wide = console.width >= _WIDE
    columns = (
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=_BAR_WIDTH) if wide else None,
        _Amount(table_column=whole),
        TimeRemainingColumn(compact=True, table_column=whole) if wide else None,
        _TailOfName(),
    )
    return Progress(
        *filter(None, columns),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
        expand=True,
    )


@contextmanager
def show_progress(*, quiet: bool, verbose: bool) -> Iterator[Observer]:
    """Give an observer that draws a bar, on a terminal alone.

    Parameters
    ----------
    quiet : bool
        Draw nothing.
    verbose : bool
        Print a line for each tensor too.
    """
    console = Console(stderr=True)
    bar = progress_bar(console, quiet=quiet)
    tasks: dict[str, Any] = {}
    resumed: list[str] = []
    of_tasks = Lock()  # workers tell of their tensors at once

    def task_of(done: TensorDone) -> Any:  # noqa: ANN401 - a number of rich's
        with of_tasks:
            if "load" in tasks and done.stage != "load":
                bar.remove_task(tasks.pop("load"))
            if done.stage not in tasks:
                tasks[done.stage] = bar.add_task(
                    _STAGES[done.stage],
                    total=done.total or None,
                    name="",
                    texts=done.stage in _COUNTS_TEXTS,
                )
            return tasks[done.stage]

    def observe(done: TensorDone) -> None:
        bar.update(task_of(done), advance=done.size, name=done.name)
        if done.resumed and done.facts:
            resumed.append(done.name)
        if verbose and done.facts:
            console.print(_describe(done), highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield observe
    if resumed and not quiet:
        console.print(f"{len(resumed)} tensors were finished by an earlier run.")


def _describe(done: TensorDone) -> str:
    fact = done.facts[0]
    if done.resumed:
        return f"{printable(done.name)}: finished by an earlier run"
    if fact.truncation is None:
        return f"{printable(done.name)}: {fact.action}"
    svd, ranks = fact.truncation.svd, fact.truncation.ranks
    rank = ranks[0] if len(ranks) == 1 else ranks
    return (
        f"{printable(done.name)}: rank {rank} of {fact.truncation.full_rank}, "
        f"{svd.method}, excess error at most {svd.excess_bound:.1e}"
        + "".join(f", after {route}" for route in svd.rejected)
    )


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


def print_more(console: Screen, rows: int, where: str) -> None:
    """Print how many rows of a table were left out, and where they are."""
    if rows > SHOWN_ROWS:
        console.say(f"and {rows - SHOWN_ROWS} more rows: {where}", style="dim")


def print_pairing(console: Screen, request: Request) -> None:
    """Print how the names of the two sides were matched, and what of both was left over."""
    plan = request.plan
    print_matching(console, plan.pairing)
    if plan.pairing.base_only:
        names = escape(_first_names(plan.pairing.base_only))
        count = counted(len(plan.pairing.base_only), "tensor")
        console.say(f"Skipped {count} that only base has: {names}.")
    if request.left_behind:
        names = escape(_first_names(request.left_behind, _SHOWN_FILES))
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


def _first_names(names: Sequence[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(map(printable, names[:shown])) + (f" and {more} more" if more > 0 else "")


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


def common_ends(names: Sequence[str]) -> tuple[str, str]:
    """Return the dotted parts that all names start with, and end with."""
    if len(names) < 2:
        return "", ""
    parts = [name.split(".") for name in names]
    room = min(map(len, parts)) - 1
    start = 0
    while start < room and len({part[start] for part in parts}) == 1:
        start += 1
    end = 0
    while start + end < room and len({part[-1 - end] for part in parts}) == 1:
        end += 1
    first = parts[0]
    head = "".join(f"{part}." for part in first[:start])
    return head, "".join(f".{part}" for part in first[len(first) - end :])


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
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(collapse_numbers(name), []).append(name)
    shown = [kind if len(members) > 1 else members[0] for kind, members in kinds.items()]
    hint = "If base has them under other names, --map OLD=NEW renames base's."
    if any("experts" in name for name in [*names, *pairing.base_only]):
        hint = (
            "Base may store its experts in another layout, one by one or in stacks: save both "
            "sides with one version of transformers."
        )
    noun = "matrix is" if len(names) == 1 else "matrices are"
    warn(
        f"{len(names)} {noun} {what}, {share:.1%} of the weights: base has no tensor of "
        f"that name: {_first_names(shown)}.\n  {hint}"
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
