"""What a user's own evaluator says, as an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from svdcut.errors import EvaluationError
from svdcut.evaluation.metrics import Evaluation, Gap, GroupResult, Interval, wilson_interval

_EXPECTED = (
    'Expected an accuracy from 0 to 1, {"accuracy": ...} with "size" and "groups" '
    '({NAME: {"accuracy", "size"}}) where they are known, or what svdcut evaluate --json prints.'
)


def read_outcome(value: object, source: str) -> Evaluation:
    """Return the evaluation that a user's own evaluator means.

    Parameters
    ----------
    value : object
        An `Evaluation`; an accuracy; or a mapping with an accuracy, which may be what
        ``svdcut evaluate --json`` prints. Where it tells no size, the interval of the
        accuracy is all from 0 to 1, for nothing is known of it.
    source : str
        Who says so, for messages.

    Raises
    ------
    EvaluationError
        If it is none of these.
    """
    try:
        if isinstance(value, Evaluation):
            return value
        if isinstance(value, Mapping):
            return Evaluation.from_json(value) if "intervals" in value else _from_parts(value)
        return _from_parts({"accuracy": value})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{source}: no evaluation: {error!r:.200}", hint=_EXPECTED) from error


def _from_parts(document: Mapping[str, Any]) -> Evaluation:
    overall = _result(document)
    groups = {str(name): _result(group) for name, group in (document.get("groups") or {}).items()}
    worst = min(groups, key=lambda name: (groups[name].accuracy, name), default=None)
    accuracies = [group.accuracy for group in groups.values()]
    lowest = min(accuracies, default=None)
    return Evaluation(
        accuracy=overall.accuracy,
        size=overall.size,
        interval=overall.interval,
        groups=dict(sorted(groups.items())),
        worst_group=worst,
        worst_group_accuracy=lowest,
        gap=Gap(
            best_worst=None if lowest is None else max(accuracies) - lowest,
            average_worst=None if lowest is None else overall.accuracy - lowest,
            aligned_conflicting=None,
        ),
        intervals={},
    )


def _result(document: Mapping[str, Any]) -> GroupResult:
    accuracy, size = float(document["accuracy"]), int(document.get("size", 0))
    if not (0 <= accuracy <= 1 and math.isfinite(accuracy)) or size < 0:
        raise ValueError(f"accuracy {accuracy}, size {size}")
    interval = wilson_interval(round(accuracy * size), size) if size else Interval(0.0, 1.0)
    return GroupResult(accuracy, size, interval)
