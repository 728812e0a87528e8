"""The space of a tuner as data: parameters with a few choices each, some of which count only beside others.

A configuration names a choice for each parameter that counts: {"range": "percentile", "percent": 99.9}. A parameter
whose condition does not hold is not in it, so that two configurations that make the same model are equal.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitwright.evaluate.statistic import FloatArray

Value = str | float | int | bool
Config = Mapping[str, Value]
Allowed = Callable[[Config], bool]

_PATIENCE = 200  # draws that find nothing new, before a search for something new ends


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that can be chosen.

    choices: in order, if they are numbers. default: among them, what the plain recipe does. when: parameter -> values;
    this one counts if one of those parameters has one of its values. Empty: always.
    """

    name: str
    choices: tuple[Value, ...]
    default: Value
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    @property
    def ordered(self) -> bool:
        """Whether a choice lies between two others."""
        return all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in self.choices)

    def counts(self, config: Config) -> bool:
        """Whether it counts beside the parameters before it."""
        return not self.when or any(config.get(name) in values for name, values in self.when.items())


Space = tuple[Parameter, ...]
"""Parameters; each stands behind those that its condition names."""


def key_of(config: Config) -> str:
    """A configuration as text: equal ones have equal texts."""
    return json.dumps(dict(sorted(config.items())))


def completed(space: Space, values: Mapping[str, Value]) -> Config:
    """The configuration with these values; the default where none is given. Values that do not count are dropped."""
    config: dict[str, Value] = {}
    for parameter in space:
        if parameter.counts(config):
            config[parameter.name] = values.get(parameter.name, parameter.default)
    return config


def default_config(space: Space) -> Config:
    """What the plain recipe does."""
    return completed(space, {})


def draw(space: Space, rng: random.Random) -> Config:
    """A configuration at random: each parameter alone, in turn."""
    return completed(space, {parameter.name: rng.choice(parameter.choices) for parameter in space})


def draw_new(
    space: Space, n: int, rng: random.Random, tried: set[str], allowed: Allowed = lambda config: True
) -> list[Config]:
    """Up to `n` different allowed configurations at random that are not among those tried; fewer where no more are
    found."""
    found: dict[str, Config] = {}
    misses = 0
    while len(found) < n and misses < _PATIENCE:
        config = draw(space, rng)
        key = key_of(config)
        if key in tried or key in found or not allowed(config):
            misses += 1
            continue
        misses, found[key] = 0, config
    return list(found.values())


def neighbours(space: Space, config: Config) -> Iterator[Config]:
    """The configurations that differ in one choice, and in what that choice makes count."""
    for parameter in space:
        if parameter.name in config:
            for choice in parameter.choices:
                if choice != config[parameter.name]:
                    yield completed(space, {**config, parameter.name: choice})


def configurations(space: Space) -> Iterator[Config]:
    """Every configuration, in a fixed order."""

    def rest(config: dict[str, Value], remaining: Space) -> Iterator[Config]:
        if not remaining:
            yield config
            return
        parameter, *after = remaining
        chosen = parameter.choices if parameter.counts(config) else (None,)
        for choice in chosen:
            yield from rest(config if choice is None else {**config, parameter.name: choice}, tuple(after))

    return rest({}, space)


def vectors(space: Space, configs: Sequence[Config]) -> FloatArray:
    """Configurations as rows of numbers for a forest, float64 (configs, features): the place of an ordered choice from
    0 to 1, a column of zeros and ones for every other choice; −1 for what does not count."""
    return np.array([[number for p in space for number in _numbers(p, config)] for config in configs], np.float64)


def _numbers(parameter: Parameter, config: Config) -> list[float]:
    value: Any = config.get(parameter.name)
    if parameter.ordered:
        place = -1.0 if value is None else parameter.choices.index(value) / max(1, len(parameter.choices) - 1)
        return [place]
    return [-1.0 if value is None else float(choice == value) for choice in parameter.choices]
