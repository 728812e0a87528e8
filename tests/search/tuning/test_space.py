"""The space of a tuner: conditions, enumeration, what a forest sees."""

import random

import numpy as np
import pytest

from bitwright.search.tuning.space import (
    Parameter,
    completed,
    configurations,
    default_config,
    draw,
    draw_new,
    key_of,
    neighbours,
    vectors,
)

SPACE = (
    Parameter("range", ("min_max", "percentile", "mse"), "min_max"),
    Parameter("percent", (99.0, 99.9, 99.99), 99.9, {"range": ("percentile",)}),
    Parameter("smooth", (False, True), False),
    Parameter("alpha", (0.3, 0.5), 0.5, {"smooth": (True,), "range": ("mse",)}),
)


def test_a_parameter_counts_only_beside_its_condition() -> None:
    assert default_config(SPACE) == {"range": "min_max", "smooth": False}
    assert completed(SPACE, {"range": "percentile", "alpha": 0.3}) == {
        "range": "percentile", "percent": 99.9, "smooth": False
    }  # fmt: skip
    assert completed(SPACE, {"range": "mse"})["alpha"] == 0.5  # one of its conditions is enough


def test_every_configuration_is_listed_once() -> None:
    found = list(configurations(SPACE))
    assert len(found) == len({key_of(config) for config in found}) == (1 + 3) * (1 + 2) + 2 * 2
    rng = random.Random(0)
    assert {key_of(draw(SPACE, rng)) for _ in range(500)} == {key_of(config) for config in found}


def test_neighbours_differ_in_one_choice() -> None:
    config = completed(SPACE, {"range": "percentile", "percent": 99.0})
    found = list(neighbours(SPACE, config))
    assert {key_of(one) for one in found} == {
        key_of(completed(SPACE, values))
        for values in (
            {"range": "min_max"}, {"range": "mse"}, {"range": "percentile", "percent": 99.9},
            {"range": "percentile", "percent": 99.99}, {"range": "percentile", "percent": 99.0, "smooth": True},
        )
    }  # fmt: skip


def test_what_was_tried_or_is_not_allowed_is_not_drawn() -> None:
    everything = [key_of(config) for config in configurations(SPACE)]
    found = draw_new(SPACE, 100, random.Random(1), set(everything[:5]), lambda config: config["range"] != "mse")
    keys = {key_of(config) for config in found}
    assert keys <= set(everything[5:])
    assert all(config["range"] != "mse" for config in found)
    assert draw_new(SPACE, 3, random.Random(1), set(everything)) == []


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ({}, [1, 0, 0, -1, 1, 0, -1]),
        ({"range": "percentile", "percent": 99.99}, [0, 1, 0, 1, 1, 0, -1]),
        ({"smooth": True, "alpha": 0.3}, [1, 0, 0, -1, 0, 1, 0]),
    ],
)
def test_vectors(values: dict[str, object], row: list[float]) -> None:
    np.testing.assert_array_equal(vectors(SPACE, [completed(SPACE, values)]), [row])  # type: ignore[arg-type]
