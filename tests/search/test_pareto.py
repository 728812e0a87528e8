"""The front of speed and loss: which variants are tried, which are dominated, which one is taken."""

from bitwright.recipe import FLOAT, Recipe
from bitwright.search.fallback import Step
from bitwright.search.ladder import Move
from bitwright.search.measured import Measured
from bitwright.search.pareto import Point, beginnings, choose, pareto


def point(kept: int, loss: float, speedup: float, margin: float = 0.001) -> Point:
    moves = tuple(Move(f"u{i}", FLOAT) for i in range(kept))
    return Point(Step(moves, Recipe(), Measured(loss, loss + margin, None, 100)), speedup)


POINTS = [point(0, 0.009, 3.0), point(1, 0.004, 2.9), point(2, 0.005, 2.8), point(12, 0.002, 2.0), point(24, 0.0, 1.2)]


def test_none_few_and_shares_of_the_units_are_tried_once_each():
    moves = [Move(f"u{i}", FLOAT) for i in range(24)]
    assert [len(kept) for kept in beginnings(moves)] == [0, 1, 2, 6, 12, 24]
    assert beginnings(moves)[2] == (moves[0], moves[1])
    assert [len(kept) for kept in beginnings(moves[:1])] == [0, 1]
    assert beginnings([]) == [()]


def test_a_point_that_is_slower_and_worse_than_another_is_dominated():
    assert pareto(POINTS) == [True, True, False, True, True]
    assert pareto([POINTS[0], POINTS[0]]) == [True, True]  # equals do not rule each other out


def test_the_fastest_inside_the_budget_is_taken_and_of_equally_fast_ones_the_most_accurate():
    assert choose(POINTS, 0.014, 1.3) == (POINTS[0], True)
    assert choose(POINTS, 0.006, 1.3) == (POINTS[1], True)
    assert choose(POINTS, 0.003, 1.3) == (POINTS[3], True)
    nearly = point(1, 0.004, 2.95)
    assert choose([POINTS[0], nearly], 0.014, 1.3) == (nearly, True)
    assert choose([POINTS[0], nearly], 0.014, 2.97) == (POINTS[0], True)


def test_a_loss_is_inside_by_its_bound_and_by_its_estimate_only_where_no_bound_is():
    unsure, sure = point(0, 0.001, 2.0, margin=0.1), point(5, 0.002, 1.5)
    assert choose([unsure, sure], 0.01, 1.3) == (sure, True)
    assert choose([unsure, sure], 0.01, 1.8) == (unsure, True)


def test_without_a_variant_that_is_both_the_budget_comes_first():
    assert choose(POINTS, 0.014, 5.0) == (POINTS[0], False)  # the fastest inside
    assert choose(POINTS, 0.0025, 2.5) == (POINTS[4], False)  # by its bound
    over = [point(0, 0.5, 3.0), point(9, 0.3, 1.1)]
    assert choose(over, 0.01, 1.3) == (over[1], False)  # the least loss
