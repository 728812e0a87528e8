"""Scores as functions of how often each unit of the sample counts.

A bootstrap resample is a vector of counts: how often each unit (a pair, a query, a text) was drawn. A statistic maps
counts of many resamples at once, `weights_BU` (resamples, units), to their scores, shape (resamples,). What does not
depend on the counts (embeddings, cosines, sort orders) is computed once, so that a thousand resamples cost little more
than one, and their scores are exact, not approximations around the full sample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]

_MAX_MEAN_NLL = 100.0  # nats per token; a uniform guess among 150,000 tokens costs 12
_HUGE = 1e30  # nats; more than _MAX_MEAN_NLL for every token there is
_VALUES_AT_ONCE = 1 << 14  # counts of pairs in resamples that are scored together: they stay in the cache


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of one score per unit (accuracy of an example, nDCG of a query)."""

    values_U: FloatArray

    @property
    def n_units(self) -> int:
        """Units in the sample."""
        return len(self.values_U)

    def __call__(self, weights_BU: FloatArray) -> FloatArray:
        result: FloatArray = weights_BU @ self.values_U / weights_BU.sum(axis=1)
        return result


@dataclass(frozen=True, slots=True)
class Estimated(Mean):
    """A mean that the units' values estimate. one_more: how much one unit less than the mean of a perfect score an
    event that the sample happens to lack would make (a count that lacks one lacks a whole unit).
    """

    one_more: float


@dataclass(frozen=True, slots=True)
class MacroF1:
    """The macro F1 of predicted classes; the classes are those of the whole sample, in gold or prediction."""

    gold_U: IntArray
    predicted_U: IntArray

    @property
    def n_units(self) -> int:
        """Units in the sample."""
        return len(self.gold_U)

    def __call__(self, weights_BU: FloatArray) -> FloatArray:
        classes_C = np.union1d(self.gold_U, self.predicted_U)
        gold_UC = self.gold_U[:, None] == classes_C
        predicted_UC = self.predicted_U[:, None] == classes_C
        hits_BC = weights_BU @ (gold_UC & predicted_UC).astype(np.float64)
        seen_BC = weights_BU @ (gold_UC.astype(np.float64) + predicted_UC)
        present_BC = seen_BC > 0  # a class that a resample missed says nothing about it
        f1_BC = np.divide(2 * hits_BC, seen_BC, out=np.zeros_like(seen_BC), where=present_BC)
        result: FloatArray = f1_BC.sum(axis=1) / present_BC.sum(axis=1)
        return result


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(Σ nll / Σ tokens): e to the mean negative log-likelihood of a token, over the tokens of all units.

    nll_U: of each window, the sum over its tokens in nats; tokens_U: how many those are. A mean above 100 nats, or one
    that is not finite, counts as 100: what is that wrong is wrong enough, and stays a number that can be subtracted.
    """

    nll_U: FloatArray
    tokens_U: FloatArray

    @property
    def n_units(self) -> int:
        """Units in the sample."""
        return len(self.nll_U)

    def __call__(self, weights_BU: FloatArray) -> FloatArray:
        nll_U = np.nan_to_num(self.nll_U, nan=_HUGE, posinf=_HUGE)  # infinity would make NaN of a count of 0
        mean_B = weights_BU @ nll_U / (weights_BU @ self.tokens_U)
        result: FloatArray = np.exp(np.minimum(mean_B, _MAX_MEAN_NLL))
        return result


@dataclass(frozen=True, slots=True)
class Spearman:
    """Spearman's correlation of two vectors over pairs, −1 if one of their values is not finite.

    x_P, y_P: the two values of each pair. units_P2: the two units a pair belongs to, of which it counts the product of
    their counts (so pairs of a text with its own duplicate, which a resample makes up, never enter); None if each
    pair is a unit of its own.
    """

    x_P: FloatArray
    y_P: FloatArray
    units_P2: IntArray | None = None

    @property
    def n_units(self) -> int:
        """Units in the sample."""
        return len(self.x_P) if self.units_P2 is None else int(self.units_P2.max()) + 1

    def __call__(self, weights_BU: FloatArray) -> FloatArray:
        if not (np.isfinite(self.x_P).all() and np.isfinite(self.y_P).all()):
            return np.full(len(weights_BU), -1.0)
        # Sorted by x, so that one of the two passes over the counts is sequential.
        order_P = np.argsort(self.x_P, kind="stable")
        rank_x, rank_y = _WeightedRanks.of(self.x_P[order_P]), _WeightedRanks.of(self.y_P[order_P])
        left_P, right_P = (order_P, None) if self.units_P2 is None else self.units_P2[order_P].T.copy()
        found: list[FloatArray] = []
        step = max(1, _VALUES_AT_ONCE // max(1, len(order_P)))
        for some_BU in np.split(weights_BU, range(step, len(weights_BU), step)):
            weights_BP = some_BU.take(left_P, axis=1)
            if right_P is not None:
                weights_BP *= some_BU.take(right_P, axis=1)
            found.append(_correlation(rank_x, rank_y, weights_BP))
        return np.concatenate(found)


Statistic = Mean | MacroF1 | Perplexity | Spearman


@dataclass(frozen=True, slots=True)
class _WeightedRanks:
    """Mean ranks of values that occur `weights` times each, less ½: (number smaller) + (number equal) / 2."""

    order_P: IntArray
    group_P: IntArray  # of each value, in its own place: the index of its set of equal values
    last_G: IntArray | None  # of each set of equal values: its last place in the order; None if there are no ties

    @staticmethod
    def of(values_P: FloatArray) -> "_WeightedRanks":
        _, group_P, counts_G = np.unique(values_P, return_inverse=True, return_counts=True)
        last_G = None if len(counts_G) == len(values_P) else np.cumsum(counts_G) - 1
        return _WeightedRanks(np.argsort(group_P, kind="stable"), group_P, last_G)

    def __call__(self, weights_BP: FloatArray) -> FloatArray:
        equal_BG = weights_BP.take(self.order_P, axis=1)
        upto_BG = np.cumsum(equal_BG, axis=1)
        if self.last_G is not None:
            upto_BG = upto_BG.take(self.last_G, axis=1)
            equal_BG = np.diff(upto_BG, axis=1, prepend=0)
        result: FloatArray = (upto_BG - equal_BG / 2).take(self.group_P, axis=1)
        return result


def _correlation(rank_x: _WeightedRanks, rank_y: _WeightedRanks, weights_BP: FloatArray) -> FloatArray:
    """Pearson's correlation of the weighted ranks, shape (resamples,); 0 if a side is constant. The ranks' mean is half
    the sum of the weights.
    """
    middle_B1 = weights_BP.sum(axis=1, keepdims=True) / 2
    x_BP, y_BP = rank_x(weights_BP) - middle_B1, rank_y(weights_BP) - middle_B1
    # Not `@`: a BLAS that wakes its threads for so little, thousands of times, is 10 times slower on a busy machine.
    weighted_BP = weights_BP * x_BP
    xy_B, xx_B, yy_B = (
        (a * b).sum(axis=1) for a, b in ((weighted_BP, y_BP), (weighted_BP, x_BP), (weights_BP * y_BP, y_BP))
    )
    scale_B = np.sqrt(xx_B * yy_B)
    found_B: FloatArray = np.divide(xy_B, scale_B, out=np.zeros_like(xy_B), where=scale_B > 0)
    return found_B.clip(-1.0, 1.0)
