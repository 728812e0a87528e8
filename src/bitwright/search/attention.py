"""Finds the blocks whose attention may be computed in int8: all of them, if that costs next to nothing.

It is asked after the linears are settled: what attention costs is no reason to give linears more bits. If it costs too
much in all blocks, they are ranked by what each adds alone, and the worst are computed in float, as few as are enough.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.recipe import AttentionChoice, Recipe, Rule, float_attention_rule
from bitwright.record import AttentionCost, AttentionRow
from bitwright.search.measured import Measure, Measured

MAX_ADDED = 3e-4  # of loss, by int8 attention in all blocks together: 0.03 points


@dataclass(frozen=True, slots=True)
class Settled:
    """The outcome, for any recipe of the same model.

    attention: what the recipe asked for. rules: for the blocks that are computed in float. cost: as in the Record; None
    if nothing was measured.
    """

    attention: AttentionChoice
    rules: tuple[Rule, ...] = ()
    cost: AttentionCost | None = None

    def applied(self, recipe: Recipe) -> Recipe:
        """A recipe with this attention."""
        return recipe.model_copy(update={"attention": self.attention, "rules": self.rules + recipe.rules})


def float_attention(recipe: Recipe) -> Recipe:
    """The recipe with float attention where it leaves the choice to us: linears are chosen with that."""
    return recipe.model_copy(update={"attention": "float"}) if recipe.attention == "auto" else recipe


def settle_attention(recipe: Recipe, names: Sequence[str], measure: Measure, *, resolution: float = 0.0) -> Settled:
    """Decide in which blocks attention is computed in int8, and measure what that costs.

    Args:
        recipe: its linears settled. names: of the attention that it computes in int8 unless we decide otherwise, in the
            order of the blocks; not empty.
        measure: of the recipe with float attention in some of these blocks. No combination is asked for twice.
        resolution: of the loss; it cannot tell less from nothing.

    Returns:
        A recipe that asks for int8 itself is kept: only the cost is measured. Else int8 attention adds no more than
        `MAX_ADDED` or the resolution, and does not take the bound of the loss out of the budget.
    """
    budget, allowed = recipe.budget.max_loss, max(MAX_ADDED, resolution)
    measured: dict[frozenset[str], Measured] = {}

    def in_float(some: Sequence[str]) -> Measured:
        key = frozenset(some)
        if key not in measured:
            # With float attention everywhere it is, most often, measured already: the search for linears ended there.
            everywhere = len(key) == len(names) and recipe.attention == "auto"
            tried = (
                float_attention(recipe)
                if everywhere
                else recipe.with_rules([float_attention_rule(name, "") for name in some])
            )
            measured[key] = measure(tried)
        return measured[key]

    plain, whole = in_float(names), in_float(())

    def holds(some: Sequence[str]) -> bool:
        found = in_float(some)
        return _added(found, plain) <= allowed and (found.bound <= budget or plain.bound > budget)

    if recipe.attention == "int8" or holds(()):
        return Settled(recipe.attention, cost=AttentionCost(plain.loss, whole.loss, whole.loss, allowed))
    alone = {name: in_float([other for other in names if other != name]) for name in names}
    kept = _fewest(sorted(names, key=lambda name: -_added(alone[name], plain)), holds)
    why = f"int8 attention in all blocks would add {points(_added(whole, plain))} points of loss"
    over = f"{points(allowed)} are allowed" if _added(whole, plain) > allowed else "that breaks the budget"
    reasons = {name: f"{why}, and {over}; this block alone {points(_added(alone[name], plain))}" for name in kept}
    rules = tuple(float_attention_rule(name, reason) for name, reason in reasons.items())
    rows = tuple(AttentionRow(name, found.loss) for name, found in alone.items())
    cost = AttentionCost(plain.loss, whole.loss, in_float(kept).loss, allowed, rows)
    return Settled(recipe.attention, rules, cost)


def points(loss: float) -> str:
    """A difference of losses in points, of a hundred."""
    return f"{round(100 * loss, 2) + 0.0:.2f}"  # no -0.00


def _added(found: Measured, plain: Measured) -> float:
    """What a loss has beyond that of float attention; infinite if it is no number."""
    return found.loss - plain.loss if math.isfinite(found.loss) else math.inf


def _fewest(ranked: Sequence[str], holds: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """The shortest beginning of the ranking that holds, if longer ones do; all of it does."""
    outside, length = 0, len(ranked)
    while length - outside > 1:
        middle = (outside + length) // 2
        outside, length = (outside, middle) if holds(ranked[:middle]) else (middle, length)
    return ranked[:length]
