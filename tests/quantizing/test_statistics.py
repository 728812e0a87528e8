"""Linears that read the same share statistics, whatever is done to them; nothing that no linear has is kept."""

import torch

from bitwright.calibration.observers import LayerStats, observe
from bitwright.quantizing.statistics import Statistics


def seen(tokens: int) -> LayerStats:
    return observe(None, torch.ones(tokens, 4))


def filled() -> Statistics:
    stats = Statistics()
    stats.put(["q", "k", "v"], seen(1))
    stats.put(["up"], seen(2))
    return stats


def test_linears_share_what_was_put_together() -> None:
    stats = filled()
    assert stats.get("q") is stats.get("v")
    assert stats.get("down") is None
    assert "down" not in stats
    assert stats.sharing(["up", "v", "down", "q", "gate"]) == [["up"], ["v", "q"], ["down", "gate"]]
    assert [one.n_tokens for one in stats.distinct(["k", "up", "q"])] == [1, 2]


def test_equal_statistics_that_were_put_apart_are_not_shared() -> None:
    stats, one = Statistics(), seen(3)
    stats.put(["a"], one)
    stats.put(["b"], one)
    assert stats.sharing(["a", "b"]) == [["a"], ["b"]]


def test_what_is_replaced_stays_shared_and_leaves_the_others_alone() -> None:
    stats, more = filled(), seen(5)
    stats.replace(["q", "up", "k"], lambda old: more if old.n_tokens == 1 else old)
    assert stats.sharing(["q", "k", "v", "up"]) == [["q", "k"], ["v"], ["up"]]
    assert (stats.get("k"), [one.n_tokens for one in stats.distinct(["v", "up"])]) == (more, [1, 2])


def test_what_no_linear_has_is_let_go_of() -> None:
    stats = filled()
    stats.put(["q"], seen(3))
    stats.drop(["up"])
    assert sorted(one.n_tokens for one in stats._stats.values()) == [1, 3]
    stats.replace(["k", "v"], lambda old: seen(old.n_tokens + 6))
    assert sorted(one.n_tokens for one in stats._stats.values()) == [3, 7]
