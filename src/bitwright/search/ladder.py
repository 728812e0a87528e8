"""The schemes with more bits for each unit, and recipes with some of these steps made.

A unit, the linears that share an input, climbs a ladder: from its own scheme to 8 bits, if that has fewer, and to 16.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bitwright.numerics.schemes import SCHEMES
from bitwright.plan import Plan
from bitwright.recipe import FLOAT, Recipe

# Beside weights of fewer bits, 8 bits are these. An encoder waits for arithmetic, which int8 inputs speed up. A
# language model waits for memory, where they bring nothing, and its inputs have outliers: they stay float.
EIGHT_BITS, EIGHT_BITS_FLOAT_INPUT = "w8a8", "w8a16"


class Move(NamedTuple):
    """A step to more bits: a unit and the scheme that it gets."""

    unit: str
    scheme: str


Moves = tuple[Move, ...]
Ladders = dict[str, tuple[str, ...]]


def eight_bits(scheme: str, *, float_inputs: bool) -> str | None:
    """The 8-bit scheme that stands between a scheme and 16 bit; None for one that has no fewer bits.

    float_inputs: whether inputs that the scheme leaves float stay so.
    """
    weight, input_spec = SCHEMES[scheme].weight, SCHEMES[scheme].input
    if weight is None or weight.bits >= 8:
        return None
    return EIGHT_BITS_FLOAT_INPUT if float_inputs and input_spec is None else EIGHT_BITS


def ladders(plan: Plan, *, float_inputs: bool) -> Ladders:
    """Of each unit that a plan quantizes, in its order, the schemes of more bits, fewest first. float_inputs: as
    `eight_bits` takes it."""
    quantized = {row.unit: row.scheme for row in plan if row.is_linear and row.scheme != FLOAT}
    steps = {unit: eight_bits(scheme, float_inputs=float_inputs) for unit, scheme in quantized.items()}
    return {unit: (FLOAT,) if eight is None else (eight, FLOAT) for unit, eight in steps.items()}


def rung_by_rung(units: Sequence[str], ladders: Ladders) -> Moves:
    """A ranking of units as one of moves: all first steps in its order, then all second ones. What few units with 16
    bits would save is tried with 8 bits first."""
    highest = max((len(ladders[unit]) for unit in units), default=0)
    # Units with one step only, 16 bit, take it in the round in which the others reach 16 bit.
    return tuple(
        Move(unit, ladders[unit][rung])
        for left in range(highest, 0, -1)
        for unit in units
        if (rung := len(ladders[unit]) - left) >= 0
    )


def settled(moves: Iterable[Move]) -> Moves:
    """The last move of each unit, at its place."""
    last = {move.unit: move for move in moves}
    return tuple(move for move in dict.fromkeys(moves) if last[move.unit] == move)


def moved(recipe: Recipe, moves: Moves, why: str) -> Recipe:
    """A recipe with these moves made. why: the reason in the plan, after "kept in 8 bit "."""
    for scheme in sorted({move.scheme for move in moves}, key=lambda name: (name == FLOAT, name)):
        units = tuple(move.unit for move in moves if move.scheme == scheme)
        bits = 16 if scheme == FLOAT else 8
        recipe = recipe.with_fallback(units, f"sensitive: kept in {bits} bit {why}", scheme)
    return recipe
