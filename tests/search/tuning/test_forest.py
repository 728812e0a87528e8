"""The forest's arithmetic, and what it says of parameters."""

import math

import numpy as np
import pytest

from bitwright.search.tuning.forest import expected_improvement, importance
from bitwright.search.tuning.space import Parameter, configurations
from bitwright.search.tuning.trials import Seen


@pytest.mark.parametrize(("mean", "spread", "best"), [(0.0, 0.5, -0.2), (-1.0, 0.1, -0.5), (2.0, 1.5, 0.3)])
def test_expected_improvement_is_that_of_samples(mean: float, spread: float, best: float) -> None:
    drawn = np.exp(np.random.default_rng(0).normal(mean, spread, 400_000))
    sampled = np.maximum(0.0, math.exp(best) - drawn).mean() / math.exp(best)
    found = expected_improvement(np.array([mean]), np.array([spread]), best)
    assert found[0] == pytest.approx(sampled, abs=2e-3)


def test_without_spread_it_is_the_improvement() -> None:
    found = expected_improvement(np.log([0.5, 1.0, 2.0]), np.zeros(3), 0.0)
    np.testing.assert_allclose(found, [0.5, 0.0, 0.0], atol=1e-6)


def test_what_decides_is_most_important() -> None:
    space = (
        Parameter("decides", ("a", "b", "c"), "a"),
        Parameter("helps", (1, 2, 3), 1),
        Parameter("idles", (False, True), False),
    )
    value = {"a": 0.0, "b": -1.0, "c": -3.0}
    seen = [Seen(c, value[str(c["decides"])] - 0.1 * float(c["helps"])) for c in configurations(space)]
    shares = importance(space, seen, 0)
    assert shares["decides"] > 0.9
    assert shares["decides"] > shares["helps"] > shares["idles"]
    assert importance(space, [Seen(one.config, 1.0) for one in seen], 0) == dict.fromkeys(shares, 0.0)
