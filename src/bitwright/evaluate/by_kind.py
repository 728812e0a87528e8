"""Bounds the loss on a new kind of text from the losses on K kinds that were tried.

A bootstrap over texts answers for more texts of the same kinds. Users bring another kind. So each kind has a loss of
its own (pairs of texts only within it), and the K of them are a sample of kinds: of a new one the loss is, with
probability c, at most mean + t(K − 1; c) · s · √(1 + 1/K), the prediction interval of one more draw (Student 1908;
Hahn and Meeker, *Statistical Intervals*, 1991, section 4.7). Losses are skewed to the right, so the interval is taken
of their logarithms where all are positive and that is wider. `benchmarks/new_kinds.py` measures how often it holds.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from bitwright.evaluate.budget import Interval, KindLoss, Pair, bounds_of_pair, paired_bootstrap
from bitwright.evaluate.kinds import Outputs
from bitwright.evaluate.statistic import Mean
from bitwright.evaluate.tasks import Task, relative_loss, select_texts

LEAST_KINDS = 6  # fewer do not tell how much kinds differ
_RESAMPLES = 300  # of one kind's texts: the bounds are shown, and decide nothing


def loss_interval(task: Task, float_outputs: Outputs, quant_outputs: Outputs, *, seed: int = 0) -> Interval:
    """The loss with its bounds: over kinds of text if the task has several, else by `paired_bootstrap`.

    Raises:
        DataError: as `paired_bootstrap`.
    """
    if len(set(task.text_kinds)) < 2:
        return paired_bootstrap(task, float_outputs, quant_outputs, seed=seed)
    kinds = kind_losses(task, float_outputs, quant_outputs)
    mean, lower, upper = bounds_of_new_kind([kind.loss for kind in kinds])
    if isinstance(task.statistics(float_outputs, quant_outputs)[1], Mean):  # counts: none changed is not none will
        upper = max(upper, paired_bootstrap(task, float_outputs, quant_outputs, seed=seed).upper)
    return Interval(mean, lower, upper, len(task.texts), task.kind.unit, kinds=kinds)


def kind_losses(task: Task, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[KindLoss, ...]:
    """The loss on each kind of text, in the order of the task. A mean is over the kind's own units, but the estimate
    from margins is learnt from all units.
    """
    better = task.kind.higher_is_better
    found = []
    for kind, (before, after) in _pairs_of_kinds(task, float_outputs, quant_outputs).items():
        whole = np.ones((1, before.n_units))
        loss = float(relative_loss(before(whole), after(whole), better)[0])
        found.append(KindLoss(kind, before.n_units, loss))
    return tuple(found)


def kind_bounds(task: Task, float_outputs: Outputs, quant_outputs: Outputs, *, seed: int = 0) -> dict[str, float]:
    """What the loss on each kind of text is at most, by a paired bootstrap over its own texts. It says how well that
    kind is known; the bound of a kind that was not tried is another one (`loss_interval`)."""
    pairs = _pairs_of_kinds(task, float_outputs, quant_outputs)
    better = task.kind.higher_is_better
    return {kind: bounds_of_pair(pair, better, _RESAMPLES, seed, 0.95)[1] for kind, pair in pairs.items()}


def _pairs_of_kinds(task: Task, float_outputs: Outputs, quant_outputs: Outputs) -> dict[str, Pair]:
    """The scores of both models on each kind of text, in the order in which they come."""
    before, after = task.statistics(float_outputs, quant_outputs)
    pairs: dict[str, Pair] = {}
    for kind in dict.fromkeys(task.text_kinds):
        units = np.flatnonzero([other == kind for other in task.text_kinds])
        if isinstance(before, Mean) and isinstance(after, Mean):
            pairs[kind] = _part(before, units), _part(after, units)
        else:
            left, right = ([outputs[unit] for unit in units.tolist()] for outputs in (float_outputs, quant_outputs))
            pairs[kind] = select_texts(task, units).statistics(left, right)
    return pairs


def _part(mean: Mean, units: np.ndarray) -> Mean:
    return replace(mean, values_U=mean.values_U[units])


def bounds_of_new_kind(losses: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of the losses, its lower bound, and the upper bound of the loss on one more kind; both bounds are
    one-sided.

    Infinite where a loss is, and below where there are fewer than two.
    """
    values_K = np.asarray(losses, dtype=np.float64)
    if len(values_K) < 2 or not np.isfinite(values_K).all():
        return (float(values_K.mean()), -math.inf, math.inf)
    mean = float(values_K.mean())
    upper = _prediction(values_K, confidence)
    if (values_K > 0).all():
        upper = max(upper, math.exp(_prediction(np.log(values_K), confidence)))
    margin = stdtrit(len(values_K) - 1, confidence) * values_K.std(ddof=1) / math.sqrt(len(values_K))
    return mean, mean - float(margin), max(upper, float(values_K.mean()))


def _prediction(values_K: np.ndarray, confidence: float) -> float:
    """The upper bound of one more draw from the normal distribution of the values."""
    n = len(values_K)
    width = stdtrit(n - 1, confidence) * values_K.std(ddof=1) * math.sqrt(1 + 1 / n)
    return float(values_K.mean() + width)
