"""Estimates from margins how many answers of a classifier quantization changes.

Flips are rare: of 500 answers one or two change, and a count of one says little. But every text tells two things about
them. By how much its answer is ahead of the best other one, half-way between the two models, is its *margin*; how far
the models lie apart in that, halved, is its *shift*. The answer flips where the shift is larger than the margin, and
which shift meets which margin is chance (`benchmarks/flips.py` looks whether it is). So every shift meets every margin:

    rate = Σ_i Σ_j w_i w_j [margin_i < shift_j]

which has four fifths of the count's spread, and is seldom zero by luck. What a text adds to the rate, as a margin and
as a shift, is the value of a unit: the mean of these values is the rate, their spread over texts is that of the rate
(Hoeffding 1948, "A class of statistics with asymptotically normal distribution"), so they are bootstrapped as any other
score is. Where many answers change they are counted: a count assumes nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from bitwright.evaluate.statistic import Estimated, FloatArray, IntArray, Mean

Floats = NDArray[np.floating]

_NEAR, _LEAST_NEAR = 0.3, 60  # decisions of smallest margin that meet each other: their share, and at least so many
_NO_SHIFT = 0.1  # of the usual shift; smaller ones count as this, where logarithms are taken
_FAR = 8.0  # shifts of how many times their usual size are surely among those
_MANY = 30  # texts that change: so many are surer than that shifts meet margins by chance
_LEAST_DECISIONS = 30  # fewer shifts do not say how they are spread
_NORMAL_95 = 1.645
_IMPROBABLE = 0.01  # a count of flips that an estimate makes so improbable refutes it


@dataclass(frozen=True, slots=True)
class Margins:
    """The decisions of two models: one per text for a classifier, one per token for a token classifier.

    float_D: by how much the float model's choice is ahead of its best rival, ≥ 0. quant_D: by how much the same choice
    is ahead of its best rival in the quantized model; of a decision with one class infinity. flipped_D: whether the
    quantized model chooses otherwise; true where `broken_D` is, a logit that is not finite. text_D: the number of each
    decision's text; every text has one.
    """

    float_D: FloatArray
    quant_D: FloatArray
    flipped_D: NDArray[np.bool_]
    broken_D: NDArray[np.bool_]
    text_D: IntArray

    def by_text(self, values_D: NDArray[np.generic]) -> FloatArray:
        """The mean over each text's decisions."""
        result: FloatArray = np.bincount(self.text_D, values_D.astype(np.float64)) / np.bincount(self.text_D)
        return result

    def halves(self, decisions: IntArray) -> tuple[FloatArray, FloatArray]:
        """For some decisions: the mean of the two models' margins, and half of their difference."""
        left, right = self.float_D[decisions], self.quant_D[decisions]
        return np.abs(left + right) / 2, np.abs(left - right) / 2


def class_margins(float_outputs: Sequence[Floats], quant_outputs: Sequence[Floats]) -> Margins:
    """The margins of models that choose the class of the largest logit.

    Args:
        float_outputs, quant_outputs: of each text logits (classes,), or (rows, classes) with a decision per row.
    """
    both = [
        (np.atleast_2d(np.asarray(left, np.float64)), np.atleast_2d(np.asarray(right, np.float64)))
        for left, right in zip(float_outputs, quant_outputs, strict=True)
    ]
    parts = [_text_margins(text, *pair) for text, pair in enumerate(both)]
    return Margins(
        np.concatenate([part.float_D for part in parts]),
        np.concatenate([part.quant_D for part in parts]),
        np.concatenate([part.flipped_D for part in parts]),
        np.concatenate([part.broken_D for part in parts]),
        np.concatenate([part.text_D for part in parts]),
    )


def label_margins(float_UL: Floats, quant_UL: Floats) -> Margins:
    """The margins of multi-label classifiers, which assign each label with a logit above 0."""
    left, right = (np.asarray(side, np.float64).ravel() for side in (float_UL, quant_UL))
    broken_D = ~(np.isfinite(left) & np.isfinite(right))
    float_D, quant_D = (np.where(broken_D, 0.0, np.where(left > 0, side, -side)) for side in (left, right))
    text_D = np.repeat(np.arange(len(float_UL)), float_UL.shape[1])
    return Margins(float_D, quant_D, broken_D | ((left > 0) != (right > 0)), broken_D, text_D)


def _text_margins(text: int, left_RC: FloatArray, right_RC: FloatArray) -> Margins:
    broken_R = np.asarray(~np.isfinite([left_RC, right_RC]).all(axis=(0, 2)), np.bool_)
    left_RC, right_RC = (np.where(broken_R[:, None], 0.0, side) for side in (left_RC, right_RC))
    choice_R = left_RC.argmax(axis=1)
    flipped_R = broken_R | (right_RC.argmax(axis=1) != choice_R)
    return Margins(
        _ahead(left_RC, choice_R), _ahead(right_RC, choice_R), flipped_R, broken_R, np.full(len(left_RC), text)
    )


def _ahead(logits_RC: FloatArray, choice_R: IntArray) -> FloatArray:
    """How far the logit of a choice is above the largest other logit."""
    rows = np.arange(len(logits_RC))
    others_RC = logits_RC.copy()
    others_RC[rows, choice_R] = -np.inf
    result: FloatArray = logits_RC[rows, choice_R] - others_RC.max(axis=1)
    return result


@dataclass(frozen=True, slots=True)
class Estimate:
    """The rate of flips that margins and shifts predict, in two readings of each text.

    own_D: the probability of each decision to flip, if any of the shifts may meet it; own_U: the mean of each text.
    values_U: that, and how many more decisions of all texts its own shifts flip than shifts do on average. The mean of
    either is the rate. one_more: what one more text that is near enough to flip would add to the sum of the values.
    """

    own_D: FloatArray
    own_U: FloatArray
    values_U: FloatArray
    one_more: float


def estimate(margins: Margins) -> Estimate:
    """The rate of flips that margins and their shifts predict. A decision that is not finite counts as flipped."""
    rows_D = np.bincount(margins.text_D)[margins.text_D]
    own_D, others_D = np.where(margins.broken_D, 1.0, 0.0), np.zeros(len(rows_D))
    near = _near(margins, np.flatnonzero(~margins.broken_D & np.isfinite(margins.float_D)))
    if not len(near):
        return Estimate(own_D, margins.by_text(own_D), margins.by_text(own_D), 1.0)
    margin_N, shift_N = _in_usual_shifts(*margins.halves(near))
    share_N = 1 / rows_D[near] / (1 / rows_D[near]).sum()  # every text counts alike
    own_D[near] = _share_above(margin_N, shift_N, share_N)
    others_D[near] = 1 - _share_above(np.nextafter(shift_N, -np.inf), margin_N, share_N) - share_N @ own_D[near]
    own_U = margins.by_text(own_D)
    one_more = _size_of_one(shift_N, share_N) * float(share_N @ (1 / rows_D[near]))
    return Estimate(own_D, own_U, own_U + margins.by_text(others_D), one_more)


def _near(margins: Margins, usable: IntArray) -> IntArray:
    """The usable decisions with small margins. All others have margins beyond any shift to be expected."""
    margin_M, shift_M = margins.halves(usable)
    order_M = np.argsort(margin_M, kind="stable")
    n = max(_LEAST_NEAR, round(_NEAR * len(order_M)))
    while n < len(order_M) and margin_M[order_M[n - 1]] <= _FAR * np.median(shift_M[order_M[:n]]):
        n *= 2
    return usable[order_M[:n]]


def _in_usual_shifts(margin_N: FloatArray, shift_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Margins and shifts over exp(slope · margin), to which shifts of that margin are proportional: where a trained
    model is sure its logits are saturated, and move less. The slope is that of a line through their logarithms.
    """
    usual = float(shift_N.mean())
    if usual == 0 or np.ptp(margin_N) == 0:
        return margin_N, shift_N
    deviation_N = margin_N - margin_N.mean()
    slope = float(deviation_N @ np.log(shift_N + _NO_SHIFT * usual)) / float(deviation_N @ deviation_N)
    slope = min(slope, 1 / float(margin_N.max()))  # steeper, larger margins would become smaller ones
    scale_N = np.exp(slope * margin_N)
    return margin_N / scale_N, shift_N / scale_N


def _share_above(x_N: FloatArray, points_M: FloatArray, share_M: FloatArray) -> FloatArray:
    """For each x, the summed share of the points that are larger."""
    order_M = np.argsort(points_M)
    upto_M = np.append(0.0, np.cumsum(share_M[order_M]))
    result: FloatArray = upto_M[-1] - upto_M[np.searchsorted(points_M[order_M], x_N, side="right")]
    return result


def _size_of_one(shift_N: FloatArray, share_N: FloatArray) -> float:
    """E[p²] / E[p] of the probability p to flip of a margin that may be anything: E[min(s, s')] / E[s] of two shifts.

    It is the size of the events whose number would be as uncertain as the rate is: 1 if all shifts are equal, as every
    margin then flips or does not, 0.59 if they are normal; 1 also where there are none.
    """
    order_N = np.argsort(shift_N)
    shift_N, reached_N = shift_N[order_N], np.cumsum(share_N[order_N][::-1])[::-1]
    mean = float(share_N[order_N] @ shift_N)
    return float(np.diff(shift_N, prepend=0.0) @ np.square(reached_N)) / mean if mean > 0 else 1.0


def kept_answers(margins: Margins) -> Mean:
    """The share of decisions that stay the same: estimated, or counted if many change, none moves, or `doubt` gives a
    reason.
    """
    moved = not np.array_equal(margins.float_D, margins.quant_D)
    if moved and _changed(margins) < _MANY and doubt(margins) is None:
        found = estimate(margins)
        return Estimated(1 - found.values_U, found.one_more)
    return Mean(1 - margins.by_text(margins.flipped_D))


def _changed(margins: Margins) -> int:
    """The number of texts with a decision that flips."""
    return int((margins.by_text(margins.flipped_D) > 0).sum())


def doubt(margins: Margins) -> str | None:
    """Why flips are counted and not estimated: there are few decisions, or more flip than the margins predict.

    That is a test at 1 %: the texts of which an answer changed, against a Poisson count with the mean that the
    upper 95 % bound of the estimate gives.
    """
    decisions, changed = len(margins.text_D), _changed(margins)
    if changed >= _MANY:
        return None
    if decisions < _LEAST_DECISIONS:
        return (
            f"changed answers are counted and not estimated from margins, because the margins of {decisions} "
            "decisions are too few for an estimate"
        )
    found = estimate(margins)
    texts = len(found.own_U)
    rate = float(found.own_U.mean())
    bound = rate + _NORMAL_95 * float(found.values_U.std()) / math.sqrt(texts)
    stays_U = np.ones(texts)
    np.multiply.at(stays_U, margins.text_D, 1 - found.own_D)
    expected = float((1 - stays_U).sum()) * (bound / rate if rate else 1.0)
    if changed == 0 or gammainc(changed, expected) >= _IMPROBABLE:  # P(a Poisson count reaches it)
        return None
    return (
        f"changed answers are counted and not estimated from margins, because {changed} of {texts} texts change and "
        f"their margins predict at most {expected:.1f}"
    )
