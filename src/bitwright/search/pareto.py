"""The Pareto front of speed and loss over variants that keep more and more sensitive units in more bits.

A point is dominated if another one is at least as fast and loses no more, and is better in one of the two. What is left
is the Pareto front: on it, speed is bought with accuracy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.search.fallback import Step
from bitwright.search.ladder import Move, Moves, settled

_SHARES = (0.1, 0.25, 0.5, 1.0)  # of the moves; beside none, one and two of them
_SAME_SPEED = 0.97  # of the fastest: less is noise


@dataclass(frozen=True, slots=True)
class Point:
    """One combination that was measured and timed. speedup: times as fast as the baseline."""

    step: Step
    speedup: float

    @property
    def loss(self) -> float:
        """The loss on tuning data."""
        return self.step.measured.loss

    @property
    def bound(self) -> float:
        """The upper bound of that loss."""
        return self.step.measured.bound


def beginnings(moves: Sequence[Move]) -> list[Moves]:
    """The lengths of a ranking, most sensitive first, that are worth measuring: none, few, some shares of it."""
    lengths = {0, 1, 2, *(round(share * len(moves)) for share in _SHARES)}
    return [settled(moves[:length]) for length in sorted(lengths) if length <= len(moves)]


def pareto(points: Sequence[Point]) -> list[bool]:
    """Whether each point is on the Pareto front of speed and loss."""

    def dominates(a: Point, b: Point) -> bool:
        return a.speedup >= b.speedup and a.loss <= b.loss and (a.speedup, a.loss) != (b.speedup, b.loss)

    return [not any(dominates(other, point) for other in points) for point in points]


def choose(points: Sequence[Point], max_loss: float, min_speedup: float) -> tuple[Point, bool]:
    """The chosen point, and whether it is fast enough with its loss inside the budget.

    Of those that are both, the fastest; of what is as fast but for noise, the one that loses least. A loss is inside if
    its upper bound is; where no fast enough point has such a bound, the estimates decide. Where none is both, the
    fastest whose loss is inside, else the one that loses least.
    """
    bounded = [point for point in points if point.bound <= max_loss]
    estimated = [point for point in points if point.loss <= max_loss]
    fast = [point for point in points if point.speedup >= min_speedup]
    for inside in (bounded, estimated):
        if both := [point for point in inside if point in fast]:
            return _fastest(both), True
    inside = bounded or estimated
    return (_fastest(inside) if inside else min(points, key=lambda point: point.loss)), False


def _fastest(points: Sequence[Point]) -> Point:
    enough = _SAME_SPEED * max(point.speedup for point in points)
    return min((point for point in points if point.speedup >= enough), key=lambda point: (point.loss, -point.speedup))
