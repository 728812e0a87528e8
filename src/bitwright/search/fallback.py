"""Which units to keep in 16 bit so that the loss fits the budget: most sensitive first, every combination measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One combination that was measured: the units in 16 bit, and the loss on the tuning data with its upper bound."""

    kept: tuple[str, ...]
    loss: float
    loss_upper: float
    bytes_: int


def find_fallback(
    ranking: Callable[[], Sequence[str]], measure: Callable[[tuple[str, ...]], Step], max_loss: float
) -> tuple[tuple[str, ...], list[Step]]:
    """Keep more and more of the ranking in 16 bit until the upper bound of the loss is inside the budget.

    Args:
        ranking: units, most sensitive first; called only if everything quantized is over the budget.
        measure: the loss with these units in 16 bit.
        max_loss: the budget, a fraction.

    Returns:
        (units to keep, every step measured, in order). If no step's bound is inside the budget, the first whose
        estimate
        is; if there is none either, everything is kept. The caller judges the outcome on other data.
    """
    steps = [measure(())]
    if steps[0].loss_upper <= max_loss:
        return (), steps
    units = ranking()
    for count in range(1, len(units) + 1):
        steps.append(measure(tuple(units[:count])))
        if steps[-1].loss_upper <= max_loss:
            return steps[-1].kept, steps
    inside = [step for step in steps if step.loss <= max_loss]
    return (inside[0] if inside else steps[-1]).kept, steps


def units_by_error(account: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the units, largest relative output error of one of their linears first: what is known of every layer
    that was calibrated, without running the model once more. Rows without an error come last, in their order.
    """
    worst: dict[str, float] = {}
    for row in account:
        worst[row["unit"]] = max(worst.get(row["unit"], -1.0), row.get("error", -1.0))
    return tuple(sorted(worst, key=lambda unit: -worst[unit]))


def step_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as plain data, for the Record."""
    return [
        {
            "n_fallback": len(step.kept),
            "unit": step.kept[-1] if step.kept else None,
            "loss": step.loss,
            "loss_upper": step.loss_upper,
            "bytes": step.bytes_,
            "decided_on": "tuning",
        }
        for step in steps
    ]
