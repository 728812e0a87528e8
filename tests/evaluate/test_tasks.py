"""Tasks: scores, losses, companions, and splits that share nothing."""

import math

import numpy as np
import pytest
from scipy import stats

from bitwright.errors import DataError, KernelError
from bitwright.evaluate import (
    Task,
    label_free_task,
    metrics,
    paired_bootstrap,
    shared_texts,
    similarity_matrix_task,
    split,
)
from bitwright.evaluate.agreement import CLASSES, LABELS, SCORES
from bitwright.evaluate.kinds import (
    MAX_PAIRS,
    Classification,
    Custom,
    Pairs,
    Retrieval,
    pair_cosines,
    spread_pairs,
)


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def texts_of(n):
    return tuple(f"text number {i}" for i in range(n))


def pairs_task(rng, n_pairs=60, n_texts=80):
    """Pairs of neighbours in a list of texts: each text is in at most three, and chains of shared texts are short."""
    first = np.sort(rng.choice(n_texts - 2, n_pairs, replace=False)) // 3 * 3
    second = first + rng.integers(1, 3, n_pairs)
    return Task("pairs", texts_of(n_texts), Pairs(first, second, rng.random(n_pairs)))


def retrieval_task(rng, n_documents=30, n_queries=20):
    relevant = tuple(
        (rng.choice(n_documents, 3, replace=False), rng.integers(1, 4, 3).astype(float)) for _ in range(n_queries)
    )
    return Task("retrieval", texts_of(n_documents + n_queries), Retrieval(n_documents, relevant))


def matrix_task(rng, n=20):
    gold = rng.random((n, n))
    return similarity_matrix_task(texts_of(n), gold + gold.T)


def embedding_tasks(rng):
    return [pairs_task(rng), retrieval_task(rng), matrix_task(rng), label_free_task(texts_of(40))]


def test_similarity_is_spearman_of_cosine_and_score(rng):
    task = pairs_task(rng)
    outputs = rng.normal(size=(80, 8))
    left, right = outputs[task.kind.first_P], outputs[task.kind.second_P]
    cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert task.score(outputs) == pytest.approx(stats.spearmanr(cosine, task.kind.gold_P).statistic)


def test_labels_of_two_kinds_are_scored_by_rank_and_told_apart_by_either_model(rng):
    """Spearman is the area under the ROC curve in other units; the companions give that area itself."""
    gold = (rng.random(40) > 0.6).astype(float)
    task = Task("labels", texts_of(80), Pairs(np.arange(40), np.arange(40) + 40, gold))
    outputs, quantized = rng.normal(size=(2, 80, 8))
    found = task.companions(outputs, quantized)
    n, p = len(gold), gold.mean()
    for score, model in zip(task.scores(outputs, quantized), ("float", "quantized"), strict=True):
        auc = found[f"roc_auc_{model}"]
        assert score == pytest.approx(math.sqrt(3 * p * (1 - p)) * (2 * auc - 1) * n / math.sqrt(n**2 - 1))
        assert max(p, 1 - p) <= found[f"best_accuracy_{model}"] <= 1
    assert "roc_auc_float" not in pairs_task(rng).companions(outputs, quantized)


def test_similarity_matrix_is_spearman_over_the_upper_triangle(rng):
    task = matrix_task(rng)
    outputs = metrics.unit_rows(rng.normal(size=(20, 8)))
    upper = np.triu_indices(20, 1)
    expected = stats.spearmanr((outputs @ outputs.T)[upper], task.kind.gold_UU[upper]).statistic
    assert task.score(outputs) == pytest.approx(expected)


def test_a_large_similarity_matrix_counts_no_more_pairs_than_the_label_free_metric(rng):
    task = matrix_task(rng, n=1000)
    outputs = rng.normal(size=(1000, 8))
    float_score, quant_score = task.statistics(outputs, outputs)
    assert (float_score.n_units, quant_score.n_units) == (1000, 1000)
    assert 0.9 * MAX_PAIRS < len(float_score.x_P) == len(quant_score.x_P) <= MAX_PAIRS


def test_retrieval_is_the_mean_ndcg_of_the_queries_however_many_there_are(rng):
    task = retrieval_task(rng, n_queries=150)  # more than are scored at once
    outputs = metrics.unit_rows(rng.normal(size=(180, 8)))
    gains = np.zeros((150, 30))
    for row, (found, gain) in zip(gains, task.kind.relevant, strict=True):
        row[found] = gain
    assert task.score(outputs) == pytest.approx(metrics.ndcg_at_k(outputs[30:] @ outputs[:30].T, gains).mean())


@pytest.mark.parametrize("macro_f1", [False, True])
def test_classification_is_accuracy_or_macro_f1_of_the_largest_logit(rng, macro_f1):
    gold = rng.integers(0, 3, 50)
    logits = rng.normal(size=(50, 3))
    task = Task("classes", texts_of(50), Classification(gold, macro_f1=macro_f1))
    expected = (metrics.f1 if macro_f1 else metrics.accuracy)(gold, logits.argmax(axis=1))
    assert task.score(logits) == pytest.approx(expected)
    assert task.kind.metric == ("macro F1" if macro_f1 else "accuracy")


def test_the_float_model_has_no_loss_against_itself(rng):
    for task in embedding_tasks(rng):
        outputs = rng.normal(size=(len(task.texts), 8))
        assert task.loss(outputs, outputs) == pytest.approx(0, abs=1e-12), task.name


def test_a_broken_model_loses_on_every_task(rng):
    for task in embedding_tasks(rng):
        outputs = rng.normal(size=(len(task.texts), 8))
        if task.score(outputs) < 0:
            outputs = -outputs
        broken = np.full_like(outputs, np.nan)
        assert task.scores(outputs, broken)[1] <= 0, task.name
        companions = task.companions(outputs, broken)
        assert companions["emd"] == math.inf
        assert companions["cosine_mean"] == -1
    logits = rng.normal(size=(50, 3))
    task = Task("classes", texts_of(50), Classification(logits.argmax(axis=1)))
    assert task.scores(logits, np.full_like(logits, np.nan)) == (1, 0)


def test_label_free_loss_is_one_minus_spearman_of_all_pairwise_similarities(rng):
    task = label_free_task(texts_of(30))
    outputs = rng.normal(size=(30, 8))
    quantized = outputs + 0.3 * rng.normal(size=(30, 8))
    pairs = spread_pairs(30)
    assert len(pairs) == 30 * 29 // 2
    expected = 1 - stats.spearmanr(pair_cosines(outputs, pairs), pair_cosines(quantized, pairs)).statistic
    assert task.loss(outputs, quantized) == pytest.approx(expected)


def test_label_free_loss_of_a_classifier_is_the_disagreement(rng):
    task = label_free_task(texts_of(4), logits=True)
    assert task.loss(np.eye(4), np.eye(4)[[0, 1, 2, 0]]) == 0.25
    # Token classifiers: rows of a text are tokens, and texts have different numbers of them.
    left = [np.eye(3), np.eye(3)[:2], np.eye(3)[:1], np.eye(3)]
    right = [np.eye(3), np.eye(3)[[0, 0]], np.eye(3)[[1]], np.eye(3)]
    assert task.loss(left, right) == pytest.approx((0 + 1 / 2 + 1 + 0) / 4)
    assert task.companions(left, right)["top1_agreement"] == pytest.approx(1 - (0 + 1 / 2 + 1 + 0) / 4)


def test_label_free_loss_of_a_model_of_one_score_is_one_minus_spearman(rng):
    task = label_free_task(texts_of(30), logits=True, n_labels=1)
    assert task.kind == SCORES
    scores = rng.normal(size=(30, 1))
    noisy = scores + 0.3 * rng.normal(size=(30, 1))
    assert task.loss(scores, 2 * scores + 1) == pytest.approx(0)
    assert task.loss(scores, noisy) == pytest.approx(1 - stats.spearmanr(scores, noisy).statistic)
    assert task.loss(scores, np.full_like(scores, np.nan)) == 2
    interval = paired_bootstrap(task, scores, noisy, n=100)
    assert (interval.n_units, interval.unit) == (30, "texts")
    assert 0 < interval.lower < interval.loss < interval.upper
    companions = task.companions(scores, -scores)
    assert (companions["kendall"], companions["rank_flips"]) == (pytest.approx(-1), 1)
    assert "top1_agreement" not in companions  # it would be 1 whatever the model does


def test_a_model_of_one_score_has_no_classes_to_agree_on(rng):
    with pytest.raises(DataError, match="one value per text, so there are no classes"):
        label_free_task(texts_of(5), logits=True).loss(np.ones((5, 1)), np.zeros((5, 1)))
    with pytest.raises(DataError, match="3 to 3 values per text, but one score"):
        label_free_task(texts_of(5), logits=True, n_labels=1).loss(np.ones((5, 3)), np.zeros((5, 3)))


def test_label_free_loss_of_a_multi_label_classifier_is_the_share_of_labels_that_change(rng):
    task = label_free_task(texts_of(4), logits=True, multi_label=True)
    assert task.kind == LABELS
    logits = np.array([[3.0, -1, 2], [-1, -2, -3], [5, 4, 3], [-1, 2, -3]])
    changed = logits.copy()
    changed[0, 0], changed[2, 1] = 1.0, -0.1  # the first stays positive, though another is now the largest
    assert task.loss(logits, changed) == pytest.approx(1 / 12)
    changed[1] = np.nan
    assert task.loss(logits, changed) == pytest.approx(4 / 12)
    assert set(task.companions(logits, changed)) == {"label_agreement", "emd", "max_abs", "sqnr_db"}


def test_the_units_of_a_task_are_those_of_its_statistics(rng):
    for task in embedding_tasks(rng):
        outputs = rng.normal(size=(len(task.texts), 8))
        assert task.n_units == task.statistics(outputs, outputs)[0].n_units, task.name
    assert Task("own", (), Custom(lambda encode: 1.0, "metric.py:own")).n_units is None


@pytest.mark.parametrize("n", [3, 316, 317, 1000, 5001])
def test_spread_pairs_are_distinct_bounded_and_balanced(n):
    pairs = spread_pairs(n)
    assert len(pairs) == n * (n - 1) // 2 or 0.9 * MAX_PAIRS < len(pairs) <= MAX_PAIRS
    ordered = np.sort(pairs, axis=1)
    assert (ordered[:, 0] < ordered[:, 1]).all()
    assert len(np.unique(ordered, axis=0)) == len(pairs)
    assert len(set(np.bincount(pairs.ravel(), minlength=n))) == 1


def test_pair_cosines_do_not_depend_on_how_they_are_computed(rng, monkeypatch):
    outputs = rng.normal(size=(50, 8))
    pairs = spread_pairs(50)
    expected = pair_cosines(outputs, pairs)
    monkeypatch.setattr("bitwright.evaluate.kinds._MAX_MATRIX", 0)
    np.testing.assert_allclose(pair_cosines(outputs, pairs), expected)


def test_companions_of_equal_models_are_perfect(rng):
    task = label_free_task(texts_of(30))
    outputs = rng.normal(size=(30, 8))
    perfect = {"cosine_mean": 1, "cosine_min": 1, "spearman": 1, "kendall": 1, "rank_flips": 0}
    perfect |= {"top1_neighbour_agreement": 1, "emd": 0, "sqnr_db": math.inf}
    assert task.companions(outputs, outputs) == pytest.approx(perfect)


def test_splits_are_disjoint_complete_and_seeded(rng):
    for task in embedding_tasks(rng):
        tuning, held_out = split(task, seed=0)
        assert not shared_texts(tuning, held_out), task.name
        assert sum(len(part.kind.groups(part.texts)) for part in (tuning, held_out)) == len(
            task.kind.groups(task.texts)
        )
        assert split(task, seed=0)[0].texts == tuning.texts
        assert split(task, seed=1)[0].texts != tuning.texts
        small, large = split(task, seed=0, tuning_fraction=0.2)
        assert len(small.kind.groups(small.texts)) < len(large.kind.groups(large.texts))


def test_the_parts_score_their_own_units(rng):
    """A part's score is that of the whole with the other units' weights zero: its texts and labels moved together."""
    for task in embedding_tasks(rng)[:3]:
        vectors = dict(zip(task.texts, rng.normal(size=(len(task.texts), 8)), strict=True))

        def encode(texts, vectors=vectors):
            return np.stack([vectors[text] for text in texts])

        scored = task.run(encode)
        for part in split(task, seed=3):
            own = set(part.texts[getattr(part.kind, "n_documents", 0) :])
            if isinstance(task.kind, Pairs):
                inside = np.array([task.texts[i] in own for i in task.kind.first_P])
            else:
                inside = np.array([text in own for text in task.texts[getattr(task.kind, "n_documents", 0) :]])
            expected = task.statistics(scored, scored)[0](inside[None].astype(float))[0]
            assert part.score(part.run(encode)) == pytest.approx(expected), task.name


def test_equal_texts_of_a_classification_stay_together():
    texts = tuple(f"text {i // 2}" for i in range(40))
    task = Task("classes", texts, Classification(np.arange(40) % 2))
    assert not shared_texts(*split(task, seed=0))


def test_where_shared_texts_chain_all_pairs_the_split_is_by_pair_and_shared_texts_tells():
    chain = np.arange(40)
    task = Task("chain", texts_of(41), Pairs(chain, chain + 1, chain.astype(float)))
    tuning, held_out = split(task, seed=0)
    assert len(tuning.kind.gold_P) == len(held_out.kind.gold_P) == 20
    assert shared_texts(tuning, held_out)


def test_a_sample_too_small_to_split_is_refused(rng):
    with pytest.raises(DataError, match="3 texts cannot be split"):
        split(label_free_task(texts_of(3)), seed=0)
    with pytest.raises(DataError, match="tuning_fraction = 1"):
        split(pairs_task(rng), seed=0, tuning_fraction=1)


def test_custom_values_are_split_without_overlap(rng):
    values = np.arange(10.0)
    task = Task("own", (), Custom(lambda encode: values, "metric.py:own"))
    tuning, held_out = split(task, seed=0, tuning_fraction=0.3)
    parts = [part.statistics(values, values)[0].values_U for part in (tuning, held_out)]
    assert sorted(np.concatenate(parts)) == values.tolist()
    assert len(parts[0]) == 3
    with pytest.raises(DataError, match="10 values for the float model, but 9 for the quantized"):
        task.loss(values, values[:9])


def test_lower_is_better_turns_the_loss_round():
    task = Task("own", (), Custom(lambda encode: 1.0, "metric.py:own", higher_is_better=False))
    assert task.loss(np.array([2.0]), np.array([2.2])) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, math.nan], "value 1 of 2 is nan"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([], r"shape \(0,\)"),
        ("many", "raised ValueError"),
    ],
)
def test_what_a_custom_metric_must_not_return(returned, message):
    task = Task("own", (), Custom(lambda encode: returned, "metric.py:own"))
    with pytest.raises(DataError, match=f"metric.py:own.*{message}"):
        task.run(lambda texts: np.ones((len(texts), 2)))


class OwnError(Exception):
    """What the author of a metric may define."""


def test_whatever_a_custom_metric_raises_is_told(rng):
    def own(encode):
        raise OwnError("no such thing")

    with pytest.raises(DataError, match=r"metric\.py:own: the function raised OwnError: no such thing") as caught:
        Task("own", (), Custom(own, "metric.py:own")).run(len)
    assert isinstance(caught.value.__cause__, OwnError)


def test_what_the_model_raises_inside_a_custom_metric_stays_what_it_is(rng):
    def encode(texts):
        raise KernelError("no such variant")

    with pytest.raises(KernelError, match=r"^no such variant$"):
        Task("own", (), Custom(lambda encode: encode(["a"]), "metric.py:own")).run(encode)


def test_outputs_that_do_not_fit_are_refused(rng):
    with pytest.raises(DataError, match="3 outputs for 5 texts"):
        label_free_task(texts_of(5)).run(lambda texts: np.ones((3, 2)))
    with pytest.raises(DataError, match=r"shape \(80,\)"):
        pairs_task(rng).score(np.ones(80))
    classes = Task("classes", texts_of(4), Classification(np.array([0, 1, 2, 3])))
    with pytest.raises(DataError, match="classes 0…3, but the model gives 2 values"):
        classes.score(np.ones((4, 2)))
    with pytest.raises(DataError, match="of 6, but the model gives 384"):
        Task("classes", texts_of(4), Classification(np.arange(4), n_classes=6)).score(np.ones((4, 384)))


def test_a_float_score_of_zero_has_no_relative_loss():
    task = Task("classes", texts_of(2), Classification(np.array([0, 0])))
    with pytest.raises(DataError, match="accuracy is 0"):
        task.loss(np.array([[0.0, 1], [0, 1]]), np.array([[1.0, 0], [1, 0]]))


def test_label_free_texts_are_made_unique():
    task = label_free_task(["a", "b", "a", "c"], logits=True)
    assert task.texts == ("a", "b", "c")
    assert task.kind == CLASSES
    with pytest.raises(DataError, match="2 different texts"):
        label_free_task(["a", "b", "a"])
