"""Metrics against slow references, scipy, hand-computed values, and laws."""

import itertools
import math
import time

import numpy as np
import pytest
from scipy import stats

from bitwright.errors import DataError
from bitwright.evaluate import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def slow_emd(left, right):
    distances = []
    for u, v in zip(left, right, strict=True):
        u, v = np.asarray(u, float), np.asarray(v, float)
        if len(u) > 3:
            u, v = (u - u.mean()) / (u.std() or 1e-13), (v - v.mean()) / (v.std() or 1e-13)
        distances.append(stats.wasserstein_distance(u, v))
    return np.mean(distances)


def slow_flips(x, y):
    pairs = [(i, j) for i, j in itertools.combinations(range(len(x)), 2) if x[i] != x[j]]
    return sum((x[i] - x[j]) * (y[i] - y[j]) < 0 for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("width", [3, 4, 50])
def test_emd_is_the_mean_wasserstein_distance_of_the_samples(rng, width):
    left, right = rng.normal(size=(20, width)), rng.normal(size=(20, width))
    assert metrics.emd(left, right) == pytest.approx(slow_emd(left, right))
    assert metrics.emd(left, right) == pytest.approx(metrics.emd(right, left))
    assert metrics.emd(left, left) == 0


def test_emd_of_samples_of_different_lengths(rng):
    left = [rng.normal(size=n) for n in (5, 9, 30)]
    right = [rng.normal(size=n) for n in (7, 9, 11)]
    assert metrics.emd(left, right) == pytest.approx(slow_emd(left, right))


def test_emd_pools_short_outputs_into_one_distribution():
    assert metrics.emd([[0.0], [1.0]], [[1.0], [0.0]]) == 0  # the same scores, on other samples
    assert metrics.emd([[0.0], [1.0]], [[2.0], [5.0]]) == 3  # (|0 − 2| + |1 − 5|) / 2, not divided again


def test_emd_standardises_away_scale_and_shift_unless_told_not_to(rng):
    outputs = rng.normal(size=(5, 40))
    assert metrics.emd(outputs, 3 * outputs + 2) == pytest.approx(0, abs=1e-12)
    assert metrics.emd(outputs, outputs + 2, standardise=False) == pytest.approx(2)


def test_emd_of_shuffled_outputs_is_zero_and_rank_flips_shows_them(rng):
    scores = rng.normal(size=200)
    shuffled = rng.permutation(scores)
    assert metrics.emd([scores], [shuffled]) == pytest.approx(0, abs=1e-12)
    assert metrics.rank_flips(scores, shuffled) > 0.4


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_the_worst_value_and_never_skipped(rng, broken):
    good = rng.normal(size=(6, 8))
    bad = good.copy()
    bad[3, 2] = broken
    assert metrics.emd(good, bad) == metrics.emd(bad, good) == math.inf
    assert metrics.max_abs(good, bad) == metrics.kl(good, bad) == math.inf
    assert metrics.sqnr_db(good, bad) == -math.inf
    assert metrics.cosine(good, bad)[1] == -1
    assert metrics.cosine(good, bad)[0] == pytest.approx((5 - 1) / 6)
    assert metrics.top1_agreement(good, bad) == metrics.neighbour_agreement(good, good) - 1 / 6
    assert metrics.rank_flips(good[3], bad[3]) == 1
    assert (
        metrics.spearman(good[3], bad[3]) == metrics.kendall(good[3], bad[3]) == metrics.pearson(good[3], bad[3]) == -1
    )


@pytest.mark.alone
def test_emd_takes_milliseconds(rng):
    left, right = rng.normal(size=(200, 384)), rng.normal(size=(200, 384))
    metrics.emd(left, right)
    started = time.process_time()
    metrics.emd(left, right)
    assert time.process_time() - started < 0.2  # 15 ms measured


def test_a_constant_output_is_no_error():
    assert metrics.emd(np.ones((2, 5)), np.ones((2, 5))) == 0
    assert metrics.emd(np.ones((1, 4)), np.array([[0.0, 0, 0, 1]])) > 0


@pytest.mark.parametrize("levels", [4, 1000])
def test_rank_correlations_agree_with_scipy_with_ties_and_without(rng, levels):
    for size in (2, 3, 17, 200):
        x = rng.integers(0, levels, size).astype(float)
        x[0] += 0.5
        y = x + rng.integers(0, levels, size)
        y[-1] += 0.25
        assert metrics.kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
        assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
        assert metrics.rank_flips(x, y) == pytest.approx(slow_flips(x, y))


def test_rank_flips_by_hand():
    assert metrics.rank_flips([1, 2, 3, 4], [1, 3, 2, 4]) == 1 / 6
    assert metrics.rank_flips([1, 2, 3, 4], [4, 3, 2, 1]) == 1
    assert metrics.rank_flips([1, 1, 2], [5, 6, 6]) == 0  # ties on either side are no flips
    assert metrics.rank_flips([1, 1], [5, 6]) == 0


def test_correlation_with_a_constant_is_zero():
    for correlation in (metrics.pearson, metrics.spearman, metrics.kendall):
        assert correlation([1.0, 1, 1], [1.0, 2, 3]) == 0


def test_sqnr_by_hand(rng):
    x = rng.normal(size=1000)
    assert metrics.sqnr_db(x, 1.1 * x) == pytest.approx(20)
    assert metrics.sqnr_db(x, x) == math.inf


def test_cosine_by_hand():
    mean, smallest = metrics.cosine([[1.0, 0], [1.0, 1], [0, 0]], [[0, 2.0], [3.0, 3], [0, 0]])
    assert (mean, smallest) == (pytest.approx(2 / 3), 0)


def test_kl_is_scipys_entropy_and_ignores_a_shift_of_the_logits(rng):
    left, right = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    softmax = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (left, right)]
    assert metrics.kl(left, right) == pytest.approx(stats.entropy(*softmax, axis=1).mean())
    assert metrics.kl(left, left + 1000) == pytest.approx(0, abs=1e-12)


def test_f1_by_hand():
    # class 0: TP 1, FP 1, FN 1 -> 2/4; class 1: TP 1, FP 1, FN 0 -> 2/3; class 2: TP 0 -> 0
    assert metrics.f1([0, 0, 1, 2], [0, 1, 1, 0]) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert metrics.accuracy([0, 0, 1, 2], [0, 1, 1, 0]) == 0.5


def test_retrieval_metrics_by_hand():
    scores = [[0.9, 0.8, 0.7, 0.6]]
    gains = [[0, 3, 0, 1]]
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert metrics.ndcg_at_k(scores, gains)[0] == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / ideal)
    assert metrics.ndcg_at_k(scores, gains, k=2)[0] == pytest.approx(3 / math.log2(3) / ideal)
    assert metrics.ndcg_at_k(scores, [[0, 0, 0, 0]])[0] == 0


def test_ndcg_agrees_with_scikit_learn(rng):
    ndcg_score = pytest.importorskip("sklearn.metrics").ndcg_score
    scores, gains = rng.normal(size=(5, 40)), rng.integers(0, 4, (5, 40))
    assert metrics.ndcg_at_k(scores, gains).mean() == pytest.approx(ndcg_score(gains, scores, k=10))


def test_a_document_without_a_score_ranks_last():
    assert metrics.ndcg_at_k([[math.nan, 0.1]], [[1, 0]])[0] == pytest.approx(1 / math.log2(3))


def test_outputs_that_do_not_match_are_refused():
    with pytest.raises(DataError, match="3 samples, but the quantized one for 2"):
        metrics.emd(np.ones((3, 4)), np.ones((2, 4)))
    with pytest.raises(DataError, match=r"\(3, 4\) and \(3, 5\)"):
        metrics.cosine(np.ones((3, 4)), np.ones((3, 5)))


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_and_best_accuracy_are_what_counting_gives(rng, levels):
    for size in (2, 3, 40):
        gold = np.array([0, 1, *rng.integers(0, 2, size - 2)])
        scores = rng.integers(0, levels, size).astype(float) + 0.5 * gold
        above = scores[gold == 1][:, None] - scores[gold == 0]
        assert metrics.roc_auc(gold, scores) == pytest.approx(((above > 0) + (above == 0) / 2).mean())
        thresholds = (*scores, np.inf)
        assert metrics.best_accuracy(gold, scores) == max(((scores >= t) == gold).mean() for t in thresholds)


def test_labels_without_a_difference_and_broken_scores_tell_nothing_apart():
    broken = np.array([0.1, np.nan, 0.3])
    assert metrics.roc_auc([0, 1, 1], broken) == metrics.best_accuracy([0, 1, 1], broken) == 0
    for metric in (metrics.roc_auc, metrics.best_accuracy):
        with pytest.raises(DataError, match="all 2 labels are 1"):
            metric([1, 1], [0.1, 0.2])
