"""The forest sampler: a random forest of the logarithm of the objective, and the most expected improvement.

Hutter, Hoos and Leyton-Brown (2011), "Sequential model-based optimization for general algorithm configuration": trees
with random splits on bootstrap samples; the spread of their predictions says how little is known. With m and s the mean
and the standard deviation of the trees, and y the least logarithm seen, v = (y − m) / s,

    E[max(0, eʸ − e^Y)] / eʸ = Φ(v) − exp(s²/2 + m − y) Φ(v − s)          Y ~ N(m, s²)

is the share of the best objective by which a configuration is expected to be better.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitwright.errors import InputError
from bitwright.evaluate.statistic import FloatArray
from bitwright.search.tuning.space import (
    Config,
    Parameter,
    Space,
    completed,
    draw,
    key_of,
    neighbours,
    vectors,
)
from bitwright.search.tuning.trials import Asked, Proposed, Seen

TREES = 32
_CANDIDATES = 600  # drawn at random, beside all neighbours of the best few
_BEST = 3
_MARGINALS = 128  # configurations over which a parameter's influence is averaged


def propose(asked: Asked) -> Proposed:
    """The configurations of the most expected improvement, one after the other: each is taken to be what the forest
    predicts when the next one is chosen."""
    space, seen = asked.space, list(asked.seen)
    rng = random.Random(f"{asked.seed}, {len(seen)}")
    found: list[Config] = []
    improvements: list[float] = []
    for _ in range(asked.n):
        tried = {key_of(one.config) for one in seen}
        candidates = _candidates(asked, seen, rng, tried)
        if not candidates:
            break
        forest = fitted(space, seen, rng.randrange(1 << 31))
        mean_C, spread_C = predicted(forest, vectors(space, candidates))
        gain_C = expected_improvement(mean_C, spread_C, min(one.value for one in seen))
        best = int(gain_C.argmax())
        improvements.append(float(gain_C[best]))
        found.append(candidates[best])
        seen.append(Seen(candidates[best], float(mean_C[best])))
    return Proposed(tuple(found), improvements[0] if improvements else None)


def _candidates(asked: Asked, seen: Sequence[Seen], rng: random.Random, tried: set[str]) -> list[Config]:
    """New configurations that are allowed: the neighbours of the best ones, and others drawn at random."""
    best = sorted(seen, key=lambda one: one.value)[:_BEST]
    near = [config for one in best for config in neighbours(asked.space, one.config)]
    drawn = [draw(asked.space, rng) for _ in range(_CANDIDATES)]
    new = {key_of(config): config for config in (*near, *drawn)}
    return [config for key, config in new.items() if key not in tried and asked.allowed(config)]


def fitted(space: Space, seen: Sequence[Seen], seed: int) -> Any:
    """A forest of the values seen.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import ExtraTreesRegressor
    except ImportError:
        raise InputError("tuning needs scikit-learn: pip install 'bitwright[tune]'") from None
    forest = ExtraTreesRegressor(TREES, bootstrap=True, min_samples_split=2, max_features=1.0, random_state=seed)
    return forest.fit(vectors(space, [one.config for one in seen]), [one.value for one in seen])


def predicted(forest: Any, rows_CF: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The mean of the trees' predictions for each row, and their standard deviation. Trees are averaged in their order,
    so that the same forest gives the same bits."""
    rows = rows_CF.astype(np.float32)  # as trees hold thresholds
    each_TC = np.stack([tree.predict(rows, check_input=False) for tree in forest.estimators_])
    return each_TC.mean(axis=0), each_TC.std(axis=0)


def expected_improvement(mean_C: FloatArray, spread_C: FloatArray, best: float) -> FloatArray:
    """The expected improvement as a share of the best objective; all arguments are logarithms."""
    from scipy.special import ndtr

    spread_C = np.maximum(spread_C, 1e-9)
    v_C = (best - mean_C) / spread_C
    gain_C: FloatArray = ndtr(v_C) - np.exp(np.square(spread_C) / 2 + mean_C - best) * ndtr(v_C - spread_C)
    return np.maximum(gain_C, 0.0)


def importance(space: Space, seen: Sequence[Seen], seed: int) -> dict[str, float]:
    """The share of what the forest predicts that each parameter alone explains: the variance over its choices of the
    mean prediction, relative to the variance of all predictions. Shares need not sum to 1: some of it lies in how
    parameters act together.
    """
    rng = random.Random(f"{seed}, importance")
    forest = fitted(space, seen, seed)
    drawn = [draw(space, rng) for _ in range(_MARGINALS)]
    total = float(predicted(forest, vectors(space, drawn))[0].var())
    if total == 0:
        return {parameter.name: 0.0 for parameter in space}
    return {parameter.name: _explained(space, parameter, forest, drawn) / total for parameter in space}


def _explained(space: Space, parameter: Parameter, forest: Any, drawn: Sequence[Config]) -> float:
    """Where the parameter counts in none of the configurations drawn, 0."""
    means, share = [], sum(parameter.name in config for config in drawn) / len(drawn)
    for choice in parameter.choices:
        changed = [completed(space, {**config, parameter.name: choice}) for config in drawn if parameter.name in config]
        if changed:
            means.append(float(predicted(forest, vectors(space, changed))[0].mean()))
    return share * float(np.var(means)) if means else 0.0
