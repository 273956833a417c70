"""What ``truncate`` and ``extract`` share: their options, and how a request is carried out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from svdcut.api import CutOptions, Request, ShapeOptions, carry_out
from svdcut.choose.keep import Keep
from svdcut.choose.options import Rest, StoredDtype
from svdcut.choose.ranks import EXAMPLES, parse_rules
from svdcut.cli.guard import Unfinished, guard, warn
from svdcut.cli.output import (
    print_json,
    print_result,
    show_progress,
    warn_of_no_update,
    warn_of_plan,
    warn_of_rounding,
)
from svdcut.cli.plan import print_plan
from svdcut.cli.shared import (
    COMPUTATION,
    TENSORS,
    DeviceOption,
    QuietOption,
    RenameOption,
    parse_rename,
    screen_flag,
)
from svdcut.errors import UsageError
from svdcut.svd.route import Route
from svdcut.write.destination import partial_path
from svdcut.write.journal import count_finished
from svdcut.write.writer import TENSOR

_Command = TypeVar("_Command", bound=Callable[..., None])

_RULES = """\
RULE says how many triplets (left vector, singular value, right vector)
stay of each update:

- `64`: that many; all of them where the matrix has fewer.

- `full`: all; `0`: none, which gives base's values.

- `energy=0.9`: the least number with that share of the squared singular
  values.

- `ratio=0.05`: those of at least that share of the first.

- `noise`: those above the edge that rounding in storage explains.

- `budget=0.1`: over all tensors together, that share of the parameters of
  full-rank updates, spent where it keeps most energy. Reads twice.
"""

RANK = "Rank"
OUTPUT = "Output"

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        help="The model before fine-tuning: a directory, a .safetensors file, or a Hub id "
        "org/name, org/name@revision.",
    ),
]
FinetunedArgument = Annotated[
    str,
    typer.Argument(
        metavar="FT",
        help="The model fine-tuned from it, named likewise, or a PEFT adapter of it.",
    ),
]


def complete_rules() -> list[str]:
    """Return a rule of each kind, for a shell to offer."""
    return list(EXAMPLES)


RankOption = Annotated[
    str,
    typer.Option(
        "--rank",
        "-k",
        metavar="RULE",
        autocompletion=complete_rules,
        help="How many triplets to keep, see above. Several rules, separated by commas, "
        "give several outputs from one decomposition; name them with {k} in --out.",
        rich_help_panel=RANK,
    ),
]


def _parse_dtype(text: str | StoredDtype) -> StoredDtype:
    """Return the dtype of an option, by its name or a short one."""
    try:
        return StoredDtype(text)
    except ValueError:
        names = ", ".join(dtype.value for dtype in StoredDtype)
        raise typer.BadParameter(f"{text!r} is none of {names}, fp32, bf16, fp16") from None


def dtype_option(what: str) -> Any:  # noqa: ANN401 - as typer has it
    """Return the option ``--dtype``, by what is stored so."""
    return typer.Option(
        "--dtype",
        metavar="DTYPE",
        parser=_parse_dtype,
        autocompletion=lambda: [dtype.value for dtype in StoredDtype],
        help=what,
        rich_help_panel=OUTPUT,
    )


DtypeOption = Annotated[
    StoredDtype,
    dtype_option(
        "Store truncated tensors in float32, bfloat16 or float16; auto is the fine-tuned "
        "tensor's own dtype."
    ),
]


@dataclass(frozen=True, slots=True)
class ShapeParameters:
    """Options that shape a cut."""

    rank_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB=RULE",
            help="Use another rule for tensors whose name matches; the last match wins.",
            rich_help_panel=RANK,
        ),
    ] = None
    scale: Annotated[
        float,
        typer.Option(metavar="F", help="Multiply the kept update by this.", rich_help_panel=RANK),
    ] = 1.0
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Truncate only tensors whose name matches.",
            rich_help_panel=TENSORS,
        ),
    ] = None
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Do not truncate tensors whose name matches, as '*embed*'.",
            rich_help_panel=TENSORS,
        ),
    ] = None
    rest: Annotated[
        Rest,
        typer.Option(help="Which side every other tensor comes from.", rich_help_panel=TENSORS),
    ] = Rest.FINETUNED
    rename: RenameOption = None
    device: DeviceOption = "auto"
    svd: Annotated[
        Route,
        typer.Option(
            help="Algorithm to start with; a more careful one follows where its error bound is "
            "not met.",
            rich_help_panel=COMPUTATION,
        ),
    ] = Route.AUTO

    def shape_options(self) -> ShapeOptions:
        """Return them as the API takes them."""
        return {
            "rank_for": self.rank_for or [],
            "scale": self.scale,
            "only": self.only or [],
            "skip": self.skip or [],
            "rest": self.rest.value,
            "map": dict(parse_rename(text) for text in self.rename or []),
            "device": self.device,
            "svd": self.svd.value,
        }


@dataclass(frozen=True, slots=True)
class RunParameters:
    """Options of how a cut is carried out and told of."""

    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an existing OUT.", rich_help_panel=OUTPUT),
    ] = False
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Drop unfinished work in OUT.partial, instead of going on from it.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the plan, from headers alone; write nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False
    json: Annotated[
        bool,
        screen_flag("--json", help="Print the manifest on stdout, or the plan of a dry run."),
    ] = False
    quiet: QuietOption = False
    verbose: Annotated[
        bool,
        screen_flag(
            "--verbose",
            "-v",
            help="Print a line for each tensor, and the traceback of an error.",
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class CutParameters(ShapeParameters):
    """Options of ``truncate`` and ``extract``."""

    keep: Annotated[
        Keep,
        typer.Option(
            help="Which triplets stay; bottom and random are the controls of an experiment.",
            rich_help_panel=RANK,
        ),
    ] = Keep.TOP
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of --keep random.", rich_help_panel=RANK)
    ] = 0
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="F",
            help="Certify the error of every cut to be within this share of the best possible "
            "error at its rank.",
            rich_help_panel=COMPUTATION,
        ),
    ] = 1e-6

    def cut_options(self, dtype: StoredDtype, how: RunParameters) -> CutOptions:
        """Return them, and those of `how`, as the API takes them."""
        return {
            **self.shape_options(),
            "keep": self.keep.value,
            "seed": self.seed,
            "tolerance": self.tolerance,
            "dtype": dtype.value,
            "force": how.force,
            "restart": how.restart,
            "quiet": how.quiet,
        }


def explain_rules(command: _Command) -> _Command:
    """Add the rules to what a command says of itself."""
    command.__doc__ = f"{inspect.getdoc(command)}\n\n{_RULES}"
    return command


def outputs(rank: str, out: str) -> dict[str, Path]:
    """Return the folder of each rule."""
    rules = parse_rules(rank)
    if len(rules) > 1 and "{k}" not in out:
        raise UsageError("several ranks need {k} in the output's name", hint="As -o 'out-{k}'.")
    return {str(rule): Path(out.replace("{k}", str(rule))) for rule in rules}


def run(prepare: Callable[[], Request], how: RunParameters, *, others: str) -> None:
    """Prepare a request, carry it out, and print what was done.

    Parameters
    ----------
    prepare : callable
        Called under the guard of errors and signals.
    how : RunParameters
        As the options say.
    others : str
        What becomes of matrices that base has nothing to compare with.
    """
    planned: list[Request] = []
    with guard(verbose=how.verbose, find_unfinished=lambda: _find_unfinished(planned)):
        request = prepare()
        for text in request.preflight.warnings():
            warn(text)
        plan = request.plan
        warn_of_plan(plan, others)
        if how.dry_run:
            print_plan(request, as_json=how.json)
            request.preflight.refuse()
            return
        planned.append(request)
        with show_progress(quiet=how.quiet, verbose=how.verbose) as observe:
            manifests = carry_out(request, command=["svdcut", *sys.argv[1:]], observe=observe)
        if plan.num_truncated:
            warn_of_no_update(differ=manifests[0].totals.energy_retained is not None)
        for manifest in manifests:
            warn_of_rounding(manifest)
        if how.json:
            documents = [manifest.to_json() for manifest in manifests]
            print_json(documents if len(documents) > 1 else documents[0])
        elif not how.quiet:
            print_result(request, manifests)


def _find_unfinished(planned: Sequence[Request]) -> list[Unfinished]:
    folders = [partial_path(output.path) for request in planned for output in request.outputs]
    found = [Unfinished(folder, count_finished(folder, TENSOR)) for folder in folders]
    return [work for work in found if work.finished]
