"""List what the adapter of a plan has to hold, and refuse what it cannot.

From names and shapes, and from what became of each tensor where that is known. It reads
no weights and imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from svdcut.adapter.holding import find_unholdable
from svdcut.adapter.places import Change, Model
from svdcut.choose.options import Experts, Options
from svdcut.choose.ranks import NOTHING, Rule, rule_for
from svdcut.errors import NothingKeptError, UnholdableError, UsageError, listed
from svdcut.pair.pairing import Action, Pair
from svdcut.pair.plan import Plan
from svdcut.record.manifest import TensorFact


def describe_model(plan: Plan) -> Model:
    """Return what is known of the fine-tuned model without its weights."""
    finetuned = plan.finetuned
    shapes = {name: entry.shape for name, entry in finetuned.tensors.items()}
    return Model(shapes, finetuned.config, finetuned.ties_embeddings, finetuned.model_names)


def find_changes(plan: Plan, facts: Mapping[str, TensorFact] | None = None) -> list[Change]:
    """Return the tensors that an adapter has to hold, in the order of the plan.

    Parameters
    ----------
    plan : Plan
        The plan of the run.
    facts : mapping of str to TensorFact, optional
        What became of each tensor, as far as it is known. Without, those that base has too
        and that are not truncated are taken to be as in base.
    """
    facts = facts or {}
    pairs = [tensor.pair for tensor in plan.tensors]
    return [
        Change(
            name=pair.name,
            shape=pair.finetuned.shape,
            base_shape=None if pair.base is None else pair.base.shape,
            is_cut=pair.action is Action.TRUNCATE,
            ranks=fact.truncation.ranks if fact and fact.truncation else None,
            is_float=pair.finetuned.dtype.is_plain_float,
        )
        for pair in pairs
        if _may_differ(pair, fact := facts.get(pair.name))
    ]


def _may_differ(pair: Pair, fact: TensorFact | None) -> bool:
    if pair.action is Action.TRUNCATE:
        return fact is None or fact.truncation is not None
    if pair.action is Action.COPY_FINETUNED:
        return pair.base is None if fact is None else fact.file is not None
    return False


def refuse_adapters(plan: Plan, rules: Sequence[Rule], options: Options) -> None:
    """Refuse adapters that cannot be, whatever the weights are.

    Raises
    ------
    NothingKeptError
        If a rule keeps nothing of any tensor.
    UnholdableError
        If PEFT has no place for a tensor.
    UsageError
        If experts are wanted one by one, and the model's file has none so.
    """
    cut = [t.pair.name for t in plan.tensors if t.pair.action is Action.TRUNCATE]
    for rule in rules:
        chosen = [rule_for(name, rule, options.rank_for) for name in cut]
        if all(rule == NOTHING for rule in chosen):
            raise NothingKeptError(
                f"rank {rule}: an adapter of rank 0 holds nothing",
                hint="Keep more: a higher rank, or a rule that keeps more of the energy.",
            )
    refuse_unholdable(plan)
    if options.experts is Experts.SEPARATE and not describe_model(plan).stacks:
        raise UsageError(
            f"--experts separate: {plan.finetuned.source} stores no experts one by one",
            hint="Leave the option out: stacks have no names for single experts.",
        )


def refuse_unholdable(plan: Plan, facts: Mapping[str, TensorFact] | None = None) -> None:
    """Refuse what an adapter has no place for; takes what `find_changes` does.

    Raises
    ------
    UnholdableError
        With every such tensor, and why.
    """
    found = find_unholdable(find_changes(plan, facts), describe_model(plan))
    if found:
        lines = listed(f"{name!r}: {reason}" for name, reason in found)
        noun = "tensor" if len(found) == 1 else "tensors"
        raise UnholdableError(
            f"{len(found)} {noun} changed in a way that an adapter cannot hold:{lines}",
            hint="svdcut extract --drop GLOB leaves such tensors as they are in base; svdcut "
            "truncate without --also-adapter holds everything.",
        )
