"""What an adapter of a plan has to hold, and whether PEFT has a place for it.

From names and shapes, and from what became of each tensor where that is known. It reads
no weights and imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from svdcut.adapter.model import Cut, Model, Whole
from svdcut.adapter.unsupported import find_unholdable
from svdcut.choose.options import Experts, Options
from svdcut.choose.ranks import NOTHING, Rule, rule_for
from svdcut.errors import NothingKeptError, UnholdableError, UsageError
from svdcut.pair.pairing import Action
from svdcut.pair.plan import Plan
from svdcut.record.manifest import TensorFact

_MAX_LISTED = 20


def describe_model(plan: Plan) -> Model:
    """Return what is known of the fine-tuned model without its weights."""
    finetuned = plan.finetuned
    shapes = {name: entry.shape for name, entry in finetuned.tensors.items()}
    return Model(shapes, finetuned.config, finetuned.ties_embeddings, finetuned.model_names)


def find_changes(
    plan: Plan, facts: Mapping[str, TensorFact] | None = None
) -> tuple[list[Cut], list[Whole]]:
    """Return the tensors that an adapter has to hold.

    Parameters
    ----------
    plan : Plan
        Of the run.
    facts : mapping of str to TensorFact, optional
        What became of each tensor, as far as it is known. Without, those that base has too
        and that are not truncated are taken to be as in base.

    Returns
    -------
    tuple of list of Cut and list of Whole
        Those that are truncated, and those that are stored as they are.
    """
    facts = facts or {}
    cuts, wholes = [], []
    for planned in plan.tensors:
        pair, fact = planned.pair, facts.get(planned.pair.name)
        shape, base = pair.finetuned.shape, None if pair.base is None else pair.base.shape
        if pair.action is Action.TRUNCATE and base is not None:
            if fact is None or fact.truncation is not None:
                ranks = fact.truncation.ranks if fact and fact.truncation else None
                cuts.append(Cut(pair.name, shape, base, ranks))
        elif pair.action is Action.COPY_FINETUNED and (
            base is None if fact is None else fact.file is not None
        ):
            wholes.append(Whole(pair.name, shape, base, pair.finetuned.dtype.is_plain_float))
    return cuts, wholes


def refuse_empty(plan: Plan, rules: Sequence[Rule], options: Options) -> None:
    """Refuse adapters that are known to hold nothing, whatever the weights are.

    Raises
    ------
    NothingKeptError
        If a rule keeps nothing of any tensor.
    """
    cut = [t.pair.name for t in plan.tensors if t.pair.action is Action.TRUNCATE]
    for rule in rules:
        chosen = [rule_for(name, rule, options.rank_for) for name in cut]
        if all(rule == NOTHING for rule in chosen):
            raise NothingKeptError(
                f"rank {rule}: an adapter of rank 0 holds nothing",
                hint="Keep more: a higher rank, or a rule that keeps more of the energy.",
            )


def refuse_stacks(plan: Plan, options: Options) -> None:
    """Refuse to hold experts one by one of a model whose file does not.

    Raises
    ------
    UsageError
        If there are none.
    """
    if options.experts is Experts.SEPARATE and not describe_model(plan).fused:
        raise UsageError(
            f"--experts separate: {plan.finetuned.source} stores no experts one by one",
            hint="Leave the option out: stacks have no names for single experts.",
        )


def refuse_unholdable(plan: Plan, facts: Mapping[str, TensorFact] | None = None) -> None:
    """Refuse what an adapter has no place for.

    Parameters
    ----------
    plan, facts
        As for `find_changes`.

    Raises
    ------
    UnholdableError
        With every such tensor, and why.
    """
    found = find_unholdable(*find_changes(plan, facts), describe_model(plan))
    if not found:
        return
    listed = [f"{name!r}: {reason}" for name, reason in found[:_MAX_LISTED]]
    if len(found) > _MAX_LISTED:
        listed.append(f"... and {len(found) - _MAX_LISTED} more")
    noun = "tensor" if len(found) == 1 else "tensors"
    raise UnholdableError(
        f"{len(found)} {noun} changed in a way that an adapter cannot hold:\n    "
        + "\n    ".join(listed),
        hint="svdcut extract --drop GLOB leaves such tensors as they are in base; svdcut "
        "truncate without --also-adapter holds everything.",
    )
