"""A weighted score is the plain score of the sample in which every unit is repeated as often as its weight says."""

import numpy as np
import pytest
from scipy import stats

from bitwright.evaluate import metrics
from bitwright.evaluate.kinds import spread_pairs
from bitwright.evaluate.statistic import MacroF1, Mean, Perplexity, Spearman


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def resamples(rng, n, count=20):
    counts = rng.multinomial(n, np.full(n, 1 / n), size=count)
    return counts.astype(float), [np.repeat(np.arange(n), row) for row in counts]


def test_mean(rng):
    values = rng.normal(size=30)
    weights, drawn = resamples(rng, 30)
    np.testing.assert_allclose(Mean(values)(weights), [values[i].mean() for i in drawn])


def test_macro_f1(rng):
    gold, predicted = rng.integers(0, 4, 30), rng.integers(0, 4, 30)
    weights, drawn = resamples(rng, 30)
    expected = [metrics.f1(gold[i], predicted[i]) for i in drawn]
    np.testing.assert_allclose(MacroF1(gold, predicted)(weights), expected)


def test_perplexity_of_windows_of_different_length(rng):
    tokens = rng.integers(1, 9, 30).astype(float)
    nll = tokens * rng.uniform(1, 5, 30)
    weights, drawn = resamples(rng, 30)
    expected = [np.exp(nll[i].sum() / tokens[i].sum()) for i in drawn]
    np.testing.assert_allclose(Perplexity(nll, tokens)(weights), expected)


def test_perplexity_is_bounded_and_a_broken_window_that_was_not_drawn_does_not_matter():
    statistic = Perplexity(np.array([np.nan, 2.0, 1e9]), np.ones(3))
    broken, whole, wrong = statistic(np.eye(3))
    assert whole == pytest.approx(np.exp(2))
    assert broken == wrong == pytest.approx(np.exp(100))


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_of_pairs(rng, ties):
    x = rng.normal(size=50)
    y = np.round(x + rng.normal(size=50)) if ties else x + rng.normal(size=50)
    weights, drawn = resamples(rng, 50)
    np.testing.assert_allclose(Spearman(x, y)(weights), [stats.spearmanr(x[i], y[i]).statistic for i in drawn])


def test_spearman_of_the_pairs_of_units_leaves_out_a_units_own_duplicates(rng):
    n = 12
    pairs = spread_pairs(n)
    x, y = rng.normal(size=(n, n)), rng.normal(size=(n, n))
    x, y = x + x.T, y + y.T
    weights, drawn = resamples(rng, n)
    expected = []
    for units in drawn:
        both = [(a, b) for k, a in enumerate(units) for b in units[k + 1 :] if a != b]
        expected.append(stats.spearmanr([x[p] for p in both], [y[p] for p in both]).statistic)
    statistic = Spearman(x[tuple(pairs.T)], y[tuple(pairs.T)], pairs)
    assert statistic.n_units == n
    np.testing.assert_allclose(statistic(weights), expected)


def test_spearman_of_what_is_not_finite_is_the_worst_value():
    x = np.array([1.0, np.nan, 3])
    assert Spearman(x, np.arange(3.0))(np.ones((2, 3))).tolist() == [-1, -1]
    assert Spearman(np.ones(3), np.arange(3.0))(np.ones((1, 3))).tolist() == [0]
