"""Flips estimated from margins: right where shifts are chance, counted where they are not."""

import numpy as np
import pytest

from bitwright.evaluate import label_free_task, metric_found, paired_bootstrap
from bitwright.evaluate.agreement import CLASSES
from bitwright.evaluate.flips import class_margins, doubt, estimate, label_margins
from bitwright.evaluate.statistic import Estimated


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def classifiers(rng, n, noise=0.05, classes=3):
    """Logits of a classifier and of another that differs by chance."""
    logits = rng.normal(size=(n, classes))
    return logits, logits + noise * rng.normal(size=(n, classes))


def rate_of(left, right):
    return float((left.argmax(1) != right.argmax(1)).mean())


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_the_estimate_is_the_rate_of_flips_of_other_texts(rng, noise):
    true = rate_of(*classifiers(rng, 200_000, noise))
    found = [estimate(class_margins(*classifiers(rng, 400, noise))) for _ in range(40)]
    rates = np.array([each.values_U.mean() for each in found])
    counts = np.array([rate_of(*classifiers(rng, 400, noise)) for _ in range(400)])
    assert rates.mean() == pytest.approx(true, rel=0.1)
    assert [each.own_U.mean() for each in found] == pytest.approx(rates)  # the shifts' part has no mean
    assert rates.std() < 0.95 * counts.std()


def test_the_estimate_holds_where_a_sure_model_moves_less(rng):
    """Shifts fall with the margin, as in a model that is trained until its logits are saturated."""

    def draw(n):
        left = rng.exponential(1.0, n)[:, None] * [1, 0]
        return left, left + 0.2 * np.exp(-left[:, :1]) * rng.normal(size=(n, 2))

    true = rate_of(*draw(200_000))
    rates = [estimate(class_margins(*draw(1000))).values_U.mean() for _ in range(20)]
    assert np.mean(rates) == pytest.approx(true, rel=0.12)


@pytest.mark.parametrize("n", [60, 250])
def test_the_upper_bound_of_few_flips_holds(rng, n):
    true = rate_of(*classifiers(rng, 200_000, 0.02))
    assert true < 0.02
    task = label_free_task([str(i) for i in range(n)], logits=True)
    bounds = np.array([paired_bootstrap(task, *classifiers(rng, n, 0.02), n=200).upper for _ in range(100)])
    assert (bounds >= true).mean() > 0.9
    assert bounds.mean() < true + 3 / n


def test_each_text_tells_whether_it_is_near_to_flipping(rng):
    left, right = classifiers(rng, 20_000)
    found = estimate(class_margins(left, right))
    flipped_U = left.argmax(1) != right.argmax(1)
    for low, high in ((0.1, 0.5), (0.5, 1.01)):
        some = (low < found.own_U) & (found.own_U <= high)
        assert flipped_U[some].sum() == pytest.approx(found.own_U[some].sum(), rel=0.2)
    assert not flipped_U[found.own_U == 0].any()


def test_rows_of_a_text_count_as_much_as_the_text(rng):
    """Half of the texts have one token, which flips easily, half have nine, which hardly do."""
    sizes = np.resize([1, 9], 400)
    left = [np.abs(rng.normal(scale=0.1 if n == 1 else 10, size=n))[:, None] * [1, 0] for n in sizes]
    right = [rows + 0.05 * rng.normal(size=rows.shape) for rows in left]
    margins = class_margins(left, right)
    counted = margins.by_text(margins.flipped_D).mean()
    assert estimate(margins).values_U.mean() == pytest.approx(counted, rel=0.15)
    assert counted > 1.5 * margins.flipped_D.mean()


def test_labels_flip_by_their_sign(rng):
    left = rng.normal(size=(500, 4))
    right = left + 0.1 * rng.normal(size=left.shape)
    margins = label_margins(left, right)
    counted = ((left > 0) != (right > 0)).mean()
    assert margins.flipped_D.mean() == counted
    assert estimate(margins).values_U.mean() == pytest.approx(counted, rel=0.2)


def test_more_flips_than_margins_let_expect_are_counted_and_told(rng):
    ahead = rng.uniform(0.04, 1, 300)
    ahead[:12] = 0.03  # these turn round, and nothing else moves: shifts do not meet margins by chance
    left = ahead[:, None] * [1, 0]
    right = np.where(ahead > 0.03, ahead, -0.03)[:, None] * [1, 0]
    name, why = metric_found(CLASSES, left, right)
    assert name == "top-1 agreement with float"
    assert "because 12 of 300 texts change" in why
    assert label_free_task([str(i) for i in range(300)], logits=True).loss(left, right) == pytest.approx(0.04)


def test_answers_that_are_estimated_are_said_to_be(rng):
    left, right = classifiers(rng, 300)
    assert metric_found(CLASSES, left, right) == ("top-1 agreement with float, estimated from margins", None)
    assert isinstance(CLASSES.statistics(left, right)[1], Estimated)


def test_many_flips_are_counted(rng):
    left, right = classifiers(rng, 300, 0.5)
    assert metric_found(CLASSES, left, right) == ("top-1 agreement with float", None)
    task = label_free_task([str(i) for i in range(300)], logits=True)
    assert task.loss(left, right) == pytest.approx(rate_of(left, right))


def test_few_answers_are_counted(rng):
    left, right = classifiers(rng, 29, 0.5)
    assert "29" in doubt(class_margins(left, right))
    task = label_free_task([str(i) for i in range(29)], logits=True)
    assert task.loss(left, right) == pytest.approx(rate_of(left, right))


def test_what_is_not_finite_has_flipped(rng):
    left, right = classifiers(rng, 100)
    right[:10] = np.nan
    margins = class_margins(left, right)
    assert estimate(margins).own_U[:10] == pytest.approx(1)
    task = label_free_task([str(i) for i in range(100)], logits=True)
    assert task.loss(left, right) >= 0.1
    assert task.loss(left, np.full_like(right, np.nan)) == 1


def test_a_model_that_answers_always_the_same_is_not_called_faithful(rng):
    left = rng.normal(size=(300, 2))
    task = label_free_task([str(i) for i in range(300)], logits=True)
    assert task.loss(left, np.zeros_like(left)) == pytest.approx((left.argmax(1) == 1).mean(), abs=0.05)


def test_a_row_of_one_class_never_flips(rng):
    left = [rng.normal(size=(2, 1 + i % 3)) for i in range(90)]
    right = [rows + 0.1 * rng.normal(size=rows.shape) for rows in left]
    own_D = estimate(class_margins(left, right)).own_D
    sizes = np.repeat([rows.shape[1] for rows in left], 2)
    assert (own_D[sizes == 1] == 0).all()
    assert np.isfinite(own_D).all()
