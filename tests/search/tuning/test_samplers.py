"""Samplers are functions of what was seen and of the seed, and keep to the space and to what is allowed."""

import random

import pytest

from bitwright.cli.tune import SAMPLER_NAMES
from bitwright.search.tuning.samplers import SAMPLERS
from bitwright.search.tuning.space import Config, Parameter, completed, configurations, draw_new, key_of
from bitwright.search.tuning.trials import Asked, Seen

SPACE = (
    Parameter("range", ("min_max", "percentile", "mse"), "min_max"),
    Parameter("percent", (99.0, 99.9, 99.99), 99.9, {"range": ("percentile",)}),
    Parameter("smooth", (False, True), False),
    Parameter("alpha", (0.3, 0.4, 0.5, 0.6), 0.5, {"smooth": (True,)}),
    Parameter("keep", (False, True), False),
)


def asked(n_seen: int, seed: int = 0) -> Asked:
    drawn = draw_new(SPACE, n_seen, random.Random(7), set(), allowed)
    seen = [Seen(config, len(key_of(config)) / 10) for config in drawn]
    return Asked(SPACE, seen, 2, seed, allowed)


def allowed(config: Config) -> bool:
    return not config["keep"]


def test_names_are_those_of_the_command() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES


@pytest.mark.parametrize("seen", [3, 12])
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(name, marks=pytest.mark.full if name in ("smac", "gp") else [])
        for name in ("forest", "tpe", "gp", "random", "smac")
    ],
)
def test_proposals(sampler: str, seen: int) -> None:
    if sampler == "smac":
        pytest.importorskip("smac")
    first = SAMPLERS[sampler](asked(seen))
    assert first == SAMPLERS[sampler](asked(seen))
    tried = {key_of(one.config) for one in asked(seen).seen}
    assert len({key_of(config) for config in first.configs} - tried) == 2
    for config in first.configs:
        assert allowed(config)
        assert config == completed(SPACE, config)
    assert (first.improvement is not None) == (sampler == "forest" and seen >= 4)


@pytest.mark.parametrize("sampler", ["forest", "tpe", "random"])
def test_the_last_configurations_are_proposed_and_then_none(sampler: str) -> None:
    able = [config for config in configurations(SPACE) if allowed(config)]
    left = Asked(SPACE, [Seen(config, 1.0) for config in able[:-1]], 2, 0, allowed)
    assert [key_of(config) for config in SAMPLERS[sampler](left).configs] == [key_of(able[-1])]
    none = Asked(SPACE, [Seen(config, 1.0) for config in able], 2, 0, allowed)
    assert SAMPLERS[sampler](none).configs == ()
