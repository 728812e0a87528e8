"""The loss on a new kind of text: pairs only within a kind, a mean over kinds, and a bound that holds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bitwright.evaluate import judge, label_free_task, loss_interval, paired_bootstrap
from bitwright.evaluate.by_kind import bounds_of_new_kind, kind_losses
from bitwright.evaluate.tasks import joined, of_text_kinds

KINDS = ("a", "b", "c", "d", "e", "f", "g")


def task_and_outputs(noise: dict[str, float], n: int = 12, seed: int = 0, logits: bool = False):
    rng = np.random.default_rng(seed)
    texts = [f"{kind} {i}" for i in range(n) for kind in noise]
    kinds = tuple(text[0] for text in texts)
    task = replace(label_free_task(texts, logits=logits), text_kinds=kinds)
    before = rng.normal(size=(len(texts), 16))
    after = before + rng.normal(size=before.shape) * np.array([[noise[kind]] for kind in kinds])
    return task, before, after


def test_the_loss_is_the_mean_over_kinds_each_within_itself() -> None:
    task, before, after = task_and_outputs(dict(zip(KINDS, np.geomspace(0.01, 0.6, 7), strict=True)))
    interval = loss_interval(task, before, after)
    alone = []
    for kind in KINDS:
        units = [i for i, other in enumerate(task.text_kinds) if other == kind]
        part = of_text_kinds(task, {kind})
        assert [task.texts[i] for i in units] == list(part.texts)
        alone.append(part.loss(before[units], after[units]))
    assert [kind.loss for kind in interval.kinds] == alone
    assert interval.loss == pytest.approx(np.mean(alone))
    assert interval.worst is not None
    assert interval.worst.kind == "g"
    assert interval.lower < interval.loss < interval.worst.loss < interval.upper
    assert (interval.n_units, sum(kind.n for kind in interval.kinds)) == (84, 84)


def test_one_kind_is_judged_by_the_bootstrap() -> None:
    task, before, after = task_and_outputs({"a": 0.1}, n=40)
    assert loss_interval(task, before, after, seed=3) == paired_bootstrap(task, before, after, seed=3)


def test_kinds_without_any_change_of_answers_are_not_known_to_have_none() -> None:
    task, before, _ = task_and_outputs(dict.fromkeys(KINDS, 0.0), logits=True)
    interval = loss_interval(task, before, before)
    assert interval.loss == 0
    assert interval.upper == pytest.approx(3 / 84, rel=0.3)  # the rule of three


def test_the_bound_covers_a_new_kind_as_often_as_it_says() -> None:
    """Of kinds whose losses are normal, and log-normal: the shapes that the two prediction intervals are for."""
    rng = np.random.default_rng(0)
    for draw in (lambda n: rng.normal(1, 0.2, n), lambda n: rng.lognormal(0, 0.7, n)):
        held = [draw(1)[0] <= bounds_of_new_kind(draw(8))[2] for _ in range(2000)]
        assert 0.935 <= np.mean(held) <= 0.985


def test_broken_outputs_have_no_bound() -> None:
    assert bounds_of_new_kind([0.1, math.inf, 0.2]) == (math.inf, -math.inf, math.inf)
    assert bounds_of_new_kind([0.1])[2] == math.inf


def test_the_verdict_speaks_of_a_new_kind() -> None:
    task, before, after = task_and_outputs(dict(zip(KINDS, np.geomspace(0.01, 0.6, 7), strict=True)))
    interval = loss_interval(task, before, after)
    met = judge(interval, 2 * interval.upper)
    assert met.verdict == "met"
    assert "84 texts of 7 kinds" in met.sentence
    assert "of a new kind" in met.sentence
    undecided = judge(interval, interval.upper * 0.9)
    assert (undecided.verdict, undecided.needed_samples) == ("undecided", None)
    assert "(on g); text of a new kind may lose up to" in undecided.sentence
    alike = loss_interval(*task_and_outputs(dict.fromkeys(KINDS, 0.5)))
    assert judge(alike, alike.lower / 2).verdict == "not met"


def test_sides_of_built_in_texts_join() -> None:
    task, before, after = task_and_outputs(dict.fromkeys(KINDS, 0.1))
    left, right = of_text_kinds(task, set("abc")), of_text_kinds(task, set("defg"))
    whole = joined(left, right)
    order = [task.texts.index(text) for text in whole.texts]
    assert sorted(order) == list(range(84))
    together = kind_losses(whole, before[order], after[order])
    assert {row.kind: row.loss for row in together} == {r.kind: r.loss for r in kind_losses(task, before, after)}


def test_flips_of_a_kind_are_estimated_with_the_shifts_of_all():
    """Of 20 texts of a kind a count would say 0 or 5 %; margins say how near each kind is to flipping."""
    rng = np.random.default_rng(0)
    ahead = np.concatenate([rng.exponential(scale, 20) for scale in (0.3, *[4.0] * 9)])
    task = replace(
        label_free_task([str(i) for i in range(200)], logits=True),
        text_kinds=tuple(f"kind {i // 20}" for i in range(200)),
    )
    left = ahead[:, None] * [1, 0]
    kinds = loss_interval(task, left, left + 0.05 * rng.normal(size=left.shape)).kinds
    assert max(kinds, key=lambda kind: kind.loss).kind == "kind 0"
    assert 0 < kinds[0].loss < 0.2
