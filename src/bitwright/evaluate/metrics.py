"""Metrics: how far a quantized model's outputs are from the float model's, and how well each fits labels.

Pure numpy. An output is one vector per sample; `float_out` and `quant_out` hold the same samples in the same order,
as an array (samples, values) or, if their lengths differ, as a sequence of vectors. The two models are called float
and quantized throughout; every metric that compares them is computed in float64. NaN and infinity in an output are
never skipped: they count as the worst possible value.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitwright.errors import DataError

FloatArray = NDArray[np.float64]
Outputs = NDArray[np.floating] | Sequence[ArrayLike]

_ZERO_DEVIATION = 1e-13  # stands in for the standard deviation of a constant output


# -- distance between the outputs of two models -----------------------------------------------------------------------


def emd(float_out: Outputs, quant_out: Outputs, *, standardise: bool = True) -> float:
    """Earth mover's distance between the values that two models put out: 0 if equal, infinite if one is not finite.

    Per sample the 1-D Wasserstein distance W1 = ∫|F_float − F_quant|, which for as many values on either side is
    mean|sort(float) − sort(quant)|; over samples the mean. Outputs of fewer than three values on average (scores,
    binary logits) are pooled over all samples instead, and give one distance between two score distributions (the
    tuner of PaddleSlim, which has the same two cases, divides that one by the number of samples as well; here it is
    not divided, so that a larger sample does not look better).

    W1 does not see *which* value is where: shuffled outputs have distance 0. Read it beside `rank_flips`.

    Args:
        standardise: subtract the mean of a sample of more than three values and divide by its standard deviation, each
            side by its own. It makes samples comparable, and hides a common scale or shift.
    """
    left, right = _paired(float_out, quant_out)
    if not all(np.isfinite(side).all() for pair in zip(left, right, strict=True) for side in pair):
        return math.inf
    if standardise:
        left, right = ([_standardised(sample) for sample in side] for side in (left, right))
    if np.mean([len(sample) for sample in left]) < 3:
        return _wasserstein(np.concatenate(left), np.concatenate(right))
    if len({len(sample) for side in (left, right) for sample in side}) == 1:
        return float(np.abs(np.sort(np.stack(left), axis=1) - np.sort(np.stack(right), axis=1)).mean())
    return float(np.mean([_wasserstein(u, v) for u, v in zip(left, right, strict=True)]))


def sqnr_db(float_out: ArrayLike, quant_out: ArrayLike) -> float:
    """Signal to quantization noise in decibels: 10·log10(Σ float² / Σ (float − quant)²).

    +inf if equal, −inf if a value is not finite or the signal is zero.
    """
    left, right = _finite_pair(float_out, quant_out)
    if left is None or right is None:
        return -math.inf
    signal, noise = float(np.square(left).sum()), float(np.square(left - right).sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def cosines(float_out: ArrayLike, quant_out: ArrayLike) -> FloatArray:
    """Cosine of each sample's two outputs, shape (samples,); −1 where one is not finite, 1 for two zero vectors."""
    left, right = _arrays(float_out, quant_out)
    left, right = np.atleast_2d(left), np.atleast_2d(right)
    finite = np.logical_and(np.isfinite(left).all(axis=1), np.isfinite(right).all(axis=1))
    left, right = np.where(finite[:, None], left, 0), np.where(finite[:, None], right, 0)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = (left * right).sum(axis=1)
    cosine = np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    return np.where(finite, np.where(both_zero, 1.0, np.clip(cosine, -1, 1)), -1.0)


def cosine(float_out: ArrayLike, quant_out: ArrayLike) -> tuple[float, float]:
    """Mean and smallest cosine over the samples."""
    values = cosines(float_out, quant_out)
    return float(values.mean()), float(values.min())


def max_abs(float_out: ArrayLike, quant_out: ArrayLike) -> float:
    """Largest absolute difference of any value; infinite if one is not finite."""
    left, right = _finite_pair(float_out, quant_out)
    return math.inf if left is None or right is None else float(np.abs(left - right).max())


def kl(float_logits: ArrayLike, quant_logits: ArrayLike) -> float:
    """Mean Kullback-Leibler divergence KL(softmax(float) ‖ softmax(quant)) of logits (samples, classes), in nats."""
    left, right = _finite_pair(float_logits, quant_logits)
    if left is None or right is None:
        return math.inf
    left, right = _log_softmax(np.atleast_2d(left)), _log_softmax(np.atleast_2d(right))
    return max(0.0, float((np.exp(left) * (left - right)).sum(axis=1).mean()))


def top1_agreement(float_logits: ArrayLike, quant_logits: ArrayLike) -> float:
    """Share of the samples (rows of logits) whose largest logit is the same class; one with NaN agrees with nothing."""
    left, right = _arrays(float_logits, quant_logits)
    finite = np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)
    return float((finite & (left.argmax(axis=1) == right.argmax(axis=1))).mean())


def label_agreement(float_logits: ArrayLike, quant_logits: ArrayLike) -> FloatArray:
    """Per sample (row of logits), the share of the labels whose logit has the same sign; one with NaN agrees with none.

    A multi-label classifier assigns the labels with a logit above 0, a probability above ½.
    """
    left, right = _arrays(float_logits, quant_logits)
    finite = np.isfinite(left) & np.isfinite(right)
    return np.asarray((finite & ((left > 0) == (right > 0))).mean(axis=1), dtype=np.float64)


def neighbour_agreement(float_embeddings: ArrayLike, quant_embeddings: ArrayLike) -> float:
    """Share of the texts (rows) whose nearest other text by cosine is the same in both models."""
    left, right = _arrays(float_embeddings, quant_embeddings)
    if len(left) < 2:
        raise DataError(f"there is {len(left)} text, but nearest neighbours need two or more")
    return float((_nearest(left) == _nearest(right)).mean())


# -- order ------------------------------------------------------------------------------------------------------------


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation. 0 if either side is constant (nothing varies together), −1 if a value is not finite."""
    left, right = _finite_pair(x, y)
    if left is None or right is None:
        return -1.0
    left, right = left - left.mean(), right - right.mean()
    scale = math.sqrt(float((left @ left) * (right @ right)))
    return max(-1.0, min(1.0, float(left @ right) / scale)) if scale > 0 else 0.0


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, ties sharing their mean rank. Conventions as `pearson`."""
    left, right = _finite_pair(x, y)
    return -1.0 if left is None or right is None else pearson(ranks(left), ranks(right))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's τ-b: (concordant − discordant) / sqrt(pairs untied in x · pairs untied in y), O(n log n).

    0 if either side is constant, −1 if a value is not finite.
    """
    left, right = _finite_pair(x, y)
    if left is None or right is None:
        return -1.0
    discordant, untied_x, untied_y, untied_both = _pair_orders(left, right)
    scale = math.sqrt(untied_x * untied_y)
    return (untied_both - 2 * discordant) / scale if scale > 0 else 0.0


def rank_flips(float_scores: ArrayLike, quant_scores: ArrayLike) -> float:
    """Share of the score pairs whose order in the float model is reversed in the quantized one, O(n log n).

    Pairs that are tied on either side are not reversed; pairs tied in the float model do not count at all. 1 if a value
    is not finite. This is the distance of Kendall (1938), over the pairs that have an order to lose.
    """
    left, right = _finite_pair(float_scores, quant_scores)
    if left is None or right is None:
        return 1.0
    discordant, untied_x, _, _ = _pair_orders(left, right)
    return discordant / untied_x if untied_x else 0.0


def ranks(values: FloatArray) -> FloatArray:
    """Ranks 1…n of a vector, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    result: FloatArray = (last - (counts - 1) / 2)[inverse]
    return result


# -- task metrics -----------------------------------------------------------------------------------------------------


def accuracy(gold: ArrayLike, predicted: ArrayLike) -> float:
    """The share of labels that are predicted."""
    return float((np.asarray(gold) == np.asarray(predicted)).mean())


def f1(gold: ArrayLike, predicted: ArrayLike) -> float:
    """Macro F1: the unweighted mean, over the classes of `gold` or `predicted`, of 2·TP / (2·TP + FP + FN)."""
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    classes = np.union1d(gold, predicted)
    hits = np.array([np.sum((gold == c) & (predicted == c)) for c in classes])
    seen = np.array([np.sum(gold == c) + np.sum(predicted == c) for c in classes])
    return float((2 * hits / seen).mean())


def roc_auc(gold: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a pair labelled 1 (`gold` > 0) scores above one labelled 0.

    Equal scores count half (Mann-Whitney). 0 if a score is not finite.

    Raises:
        DataError: all labels are equal.
    """
    positive, values = _binary(gold, scores)
    if not np.isfinite(values).all():
        return 0.0
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    return float(ranks(values)[positive].sum() / n_positive - (n_positive + 1) / 2) / n_negative


def best_accuracy(gold: ArrayLike, scores: ArrayLike) -> float:
    """Accuracy of the best of all rules "1 if score ≥ threshold", for labels 0 and 1. 0 if a score is not finite.

    The threshold is chosen on the very data that it is scored on, so small samples flatter.

    Raises:
        DataError: all labels are equal.
    """
    positive, values = _binary(gold, scores)
    if not np.isfinite(values).all():
        return 0.0
    order = np.argsort(-values, kind="stable")
    # After the i best: positives among them, and negatives below; only between different scores can a threshold lie.
    right = np.cumsum(np.where(positive[order], 1, -1)) + (~positive).sum()
    possible = np.append(np.diff(values[order]) != 0, True)
    return max(int(right[possible].max()), int((~positive).sum())) / len(values)


def ndcg_at_k(scores_QD: ArrayLike, gains_QD: ArrayLike, k: int = 10) -> FloatArray:
    """Normalised discounted cumulative gain of each query at rank k, shape (queries,).

    DCG = Σ_r gain_r / log2(r + 1) over the k best-scored documents, over the same sum for the best possible order
    (Järvelin & Kekäläinen 2002, with linear gains as in trec_eval). Equal scores rank in document order. 0 for a query
    without relevant documents.
    """
    gains_QD = np.asarray(gains_QD, dtype=np.float64)
    found = np.take_along_axis(gains_QD, _top(scores_QD, k), axis=1)
    best = -np.sort(-gains_QD, axis=1)[:, :k]
    discount = 1 / np.log2(np.arange(2, found.shape[1] + 2))
    ideal = best @ discount
    return np.divide(found @ discount, ideal, out=np.zeros(len(ideal)), where=ideal > 0)


# -- shared pieces ----------------------------------------------------------------------------------------------------


def unit_rows(vectors: ArrayLike) -> FloatArray:
    """Rows scaled to length one, in float64; one that is zero or not finite becomes NaN, which no metric overlooks."""
    rows = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: FloatArray = np.divide(rows, norms, out=np.full_like(rows, np.nan), where=(norms > 0) & np.isfinite(norms))
    return scaled


def _binary(gold: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], FloatArray]:
    positive, values = np.asarray(gold) > 0, np.asarray(scores, dtype=np.float64)
    if positive.all() or not positive.any():
        raise DataError(
            f"all {positive.size} labels are {int(positive.all())}, so they tell nothing apart; give examples of "
            "both labels"
        )
    return positive, values


def _nearest(embeddings: FloatArray) -> NDArray[np.intp]:
    rows = unit_rows(embeddings)
    broken = np.isnan(rows).any(axis=1)
    similarity = np.nan_to_num(rows @ rows.T, nan=-np.inf)
    np.fill_diagonal(similarity, -np.inf)
    return np.where(broken, -1, similarity.argmax(axis=1))


def _top(scores_QD: ArrayLike, k: int) -> NDArray[np.intp]:
    # NaN sorts last in numpy, so a document without a score is never found before one that has a score.
    return np.argsort(-np.asarray(scores_QD, dtype=np.float64), axis=1, kind="stable")[:, :k]


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _standardised(sample: FloatArray) -> FloatArray:
    return (sample - sample.mean()) / (sample.std() or _ZERO_DEVIATION) if len(sample) > 3 else sample


def _wasserstein(u: FloatArray, v: FloatArray) -> float:
    """∫|F_u − F_v|, both vectors' values having equal weight within their own."""
    u, v = np.sort(u), np.sort(v)
    if len(u) == len(v):
        return float(np.abs(u - v).mean())
    edges = np.sort(np.concatenate([u, v]))
    below_u = np.searchsorted(u, edges[:-1], side="right") / len(u)
    below_v = np.searchsorted(v, edges[:-1], side="right") / len(v)
    return float((np.abs(below_u - below_v) * np.diff(edges)).sum())


def _pair_orders(x: FloatArray, y: FloatArray) -> tuple[int, int, int, int]:
    """Of all n(n−1)/2 pairs: the discordant ones, those untied in x, those untied in y, and those untied in both."""
    _, x_code = np.unique(x, return_inverse=True)
    _, y_code = np.unique(y, return_inverse=True)
    both = x_code * (int(y_code.max()) + 1) + y_code
    tied_x, tied_y, tied_both = (_tied_pairs(code) for code in (x_code, y_code, both))
    pairs = len(x) * (len(x) - 1) // 2
    # Sorted by x, and by y among equals, a descent of y is a discordant pair and never a tie in x.
    discordant = _inversions(y_code[np.argsort(both, kind="stable")])
    return discordant, pairs - tied_x, pairs - tied_y, pairs - tied_x - tied_y + tied_both


def _tied_pairs(codes: NDArray[np.intp]) -> int:
    _, counts = np.unique(codes, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(codes: NDArray[np.intp]) -> int:
    """Pairs i < j with codes[i] > codes[j], for integers ≥ 0, by the bits that first tell them apart, highest first.

    Once sorted (stably) by the higher bits, an inversion at this bit is a 1 before a 0 among equal higher bits.
    """
    total = 0
    for bit in reversed(range(int(codes.max()).bit_length())):
        higher, ones = codes >> (bit + 1), (codes >> bit) & 1
        starts = np.flatnonzero(np.diff(higher, prepend=-1))
        ones_before = np.cumsum(ones) - ones
        ones_before_group = np.repeat(ones_before[starts], np.diff(starts, append=len(codes)))
        total += int((ones_before - ones_before_group)[ones == 0].sum())
        codes = codes[np.argsort(codes >> bit, kind="stable")]
    return total


def _paired(float_out: Outputs, quant_out: Outputs) -> tuple[list[FloatArray], list[FloatArray]]:
    left, right = ([np.asarray(sample, dtype=np.float64).ravel() for sample in side] for side in (float_out, quant_out))
    if len(left) != len(right) or not left:
        raise DataError(f"the float model has outputs for {len(left)} samples, but the quantized one for {len(right)}")
    if any(len(sample) == 0 for sample in (*left, *right)):
        raise DataError("a sample has an empty output")
    return left, right


def _arrays(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.shape != right.shape or left.size == 0:
        raise DataError(f"outputs of shapes {left.shape} and {right.shape} cannot be compared value by value")
    return left, right


def _finite_pair(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray] | tuple[None, None]:
    left, right = _arrays(x, y)
    return (left, right) if np.isfinite(left).all() and np.isfinite(right).all() else (None, None)
