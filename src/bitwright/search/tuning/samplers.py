"""The samplers by name: each proposes configurations from what was seen and a seed, and keeps nothing in between.

Optuna's and SMAC's samplers have a state of their own. It is made anew for every batch, from all that was seen and a
seed that follows from how many that is; so a study that was stopped goes on as if it had not been.
"""

import logging
import math
import random
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any

from bitwright.errors import InputError
from bitwright.search.tuning import forest
from bitwright.search.tuning.space import Config, Parameter, Space, completed, draw_new, key_of
from bitwright.search.tuning.trials import Asked, Propose, Proposed, Seen

_STARTUP = 4  # configurations at random before a model of the objective is made
_PATIENCE = 20  # configurations seen before, in a row, that end the search for a new one


def random_search(asked: Asked) -> Proposed:
    """Configurations at random that were not seen."""
    rng = random.Random(f"{asked.seed}, {len(asked.seen)}")
    tried = {key_of(one.config) for one in asked.seen}
    return Proposed(tuple(draw_new(asked.space, asked.n, rng, tried, asked.allowed)))


def after_random(propose: Propose, asked: Asked) -> Proposed:
    """`propose`, after some configurations at random."""
    return random_search(asked) if len(asked.seen) < _STARTUP else propose(asked)


def by_optuna(name: str, asked: Asked) -> Proposed:
    """As a sampler of Optuna proposes, "tpe" or "gp".

    Raises:
        InputError: Optuna is not installed.
    """
    optuna = _imported("optuna")
    with quiet():
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = random.Random(f"{asked.seed}, {len(asked.seen)}").randrange(1 << 31)
        startup = {"n_startup_trials": 0}
        sampler = (
            optuna.samplers.GPSampler(seed=seed, **startup)
            if name == "gp"
            else optuna.samplers.TPESampler(seed=seed, constant_liar=True, **startup)
        )
        study = optuna.create_study(sampler=sampler)
        study.add_trials([_optuna_trial(optuna, asked.space, one) for one in asked.seen])
        return _new(asked, (_suggested(asked.space, study.ask()) for _ in repeat(None)))


def by_smac(asked: Asked) -> Proposed:
    """As SMAC3's forest proposes.

    Raises:
        InputError: SMAC is not installed.
    """
    smac, spaces = _imported("smac"), _imported("ConfigSpace")
    seed = random.Random(f"{asked.seed}, {len(asked.seen)}").randrange(1 << 31)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        space = _config_space(spaces, asked.space, seed)
        scenario = smac.Scenario(space, n_trials=10**6, deterministic=True, seed=seed, output_directory=folder)
        facade = smac.HyperparameterOptimizationFacade
        optimizer = facade(
            scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=logging.ERROR,
            initial_design=facade.get_initial_design(scenario, n_configs=0),
        )  # fmt: skip
        least = min(one.value for one in asked.seen)
        for one in asked.seen:
            told = smac.runhistory.TrialInfo(spaces.Configuration(space, values=dict(one.config)), seed=0)
            # SMAC takes the logarithm itself, of a positive cost.
            optimizer.tell(told, smac.runhistory.TrialValue(cost=math.exp(one.value - least)))
        return _new(asked, (_plain(asked.space, optimizer.ask().config) for _ in repeat(None)))


SAMPLERS: dict[str, Propose] = {
    "tpe": partial(after_random, partial(by_optuna, "tpe")),
    "gp": partial(after_random, partial(by_optuna, "gp")),
    "forest": partial(after_random, forest.propose),
    "smac": partial(after_random, by_smac),
    "random": random_search,
}


def _new(asked: Asked, stream: Iterator[Config]) -> Proposed:
    """The first configurations of a stream that are allowed and were not seen. Where a sampler goes on proposing what
    was seen, the rest is drawn at random."""
    tried, found = {key_of(one.config) for one in asked.seen}, dict[str, Config]()
    for config, _ in zip(stream, range(_PATIENCE + asked.n), strict=False):
        key = key_of(config)
        if key not in tried and asked.allowed(config):
            found[key] = config
        if len(found) == asked.n:
            break
    if missing := asked.n - len(found):
        rng = random.Random(f"{asked.seed}, {len(asked.seen)}, rest")
        drawn = draw_new(asked.space, missing, rng, tried | set(found), asked.allowed)
        found |= {key_of(config): config for config in drawn}
    return Proposed(tuple(found.values()))


def _imported(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        extra = "tune" if name == "optuna" else "smac"
        raise InputError(f"this sampler needs {name}: pip install 'bitwright[{extra}]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of experimental features, and of samplers that fall back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def distributions(optuna: Any, space: Space) -> dict[str, Any]:
    """Optuna's distribution of each parameter."""
    return {parameter.name: _distribution(optuna, parameter) for parameter in space}


def _distribution(optuna: Any, parameter: Parameter) -> Any:
    if parameter.ordered:  # the place of a choice: samplers see what lies between what
        return optuna.distributions.IntDistribution(0, len(parameter.choices) - 1)
    return optuna.distributions.CategoricalDistribution(parameter.choices)


def _optuna_trial(optuna: Any, space: Space, seen: Seen) -> Any:
    known, by_name = distributions(optuna, space), {parameter.name: parameter for parameter in space}
    params = {name: _as_suggested(by_name[name], value) for name, value in seen.config.items()}
    return optuna.trial.create_trial(
        params=params, distributions={name: known[name] for name in params}, value=seen.value
    )


def _as_suggested(parameter: Parameter, value: Any) -> Any:
    return parameter.choices.index(value) if parameter.ordered else value


def _suggested(space: Space, trial: Any) -> Config:
    values: dict[str, Any] = {}
    for parameter in space:
        if not parameter.counts(values):
            continue
        if parameter.ordered:
            values[parameter.name] = parameter.choices[trial.suggest_int(parameter.name, 0, len(parameter.choices) - 1)]
        else:
            values[parameter.name] = trial.suggest_categorical(parameter.name, parameter.choices)
    return values


def _config_space(spaces: Any, space: Space, seed: int) -> Any:
    found = spaces.ConfigurationSpace(seed=seed)
    made: dict[str, Any] = {}
    for parameter in space:
        kind = {"ordered": True} if parameter.ordered else {}
        made[parameter.name] = spaces.Categorical(
            parameter.name, list(parameter.choices), default=parameter.default, **kind
        )
        found.add(made[parameter.name])
        conditions = [
            spaces.InCondition(made[parameter.name], made[parent], list(values))
            for parent, values in parameter.when.items()
        ]
        if conditions:
            found.add(conditions[0] if len(conditions) == 1 else spaces.OrConjunction(*conditions))
    return found


def _plain(space: Space, config: Mapping[str, Any]) -> Config:
    """A configuration of ConfigSpace, whose values are numpy's."""
    values = dict(config)
    return completed(
        space, {p.name: next(c for c in p.choices if c == values[p.name]) for p in space if p.name in values}
    )
