"""The searches are pure: they only see callables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bitwright.models.architectures import LinearSite
from bitwright.search.fallback import Step, find_fallback, step_rows
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import Reading, measure_sensitivity, parts_of, ranked_units, read_outputs

SITES = [
    LinearSite("b.0.q", 0, "qkv", "b.0.qkv"),
    LinearSite("b.0.k", 0, "qkv", "b.0.qkv"),
    LinearSite("b.0.f", 0, "ffn", "b.0.f"),
    LinearSite("b.1.f", 1, "ffn", "b.1.f"),
]
WEIGHT = {"b.0.q": 1.0, "b.0.k": 2.0, "b.0.f": 8.0, "b.1.f": 4.0}


def additive(names: frozenset[str]) -> Reading:
    """Distance is the sum of each linear's own."""
    total = sum(WEIGHT[name] for name in names)
    return Reading(total, -total, 1 - total / 100, total / 100, total / 10)


def test_units_are_ranked_by_their_distance() -> None:
    found = measure_sensitivity(SITES, additive, Journal(None, ""))
    assert ranked_units(found) == ("b.0.f", "b.1.f", "b.0.qkv")
    ones = [row["name"] for row in found["rows"] if row["mode"] == "one"]
    assert ones == ["b.0.f", "b.1.f", "b.0.k", "b.0.q"]
    reverse = [row["name"] for row in found["rows"] if row["mode"] == "all but one"]
    assert reverse == ones  # with additive errors, leaving out the worst helps most
    assert found["spearman_with_metric_loss"] == pytest.approx(1.0)


def test_groups_are_roles_of_blocks_and_of_the_model() -> None:
    groups = {(p.role, p.block): p.members for p in parts_of(SITES) if p.kind == "groups"}
    assert groups["ffn", None] == {"b.0.f", "b.1.f"}
    assert groups["qkv", 0] == {"b.0.q", "b.0.k"}
    assert groups["ffn", 1] == {"b.1.f"}


def test_a_distance_that_is_not_a_number_ranks_first() -> None:
    def broken(names: frozenset[str]) -> Reading:
        return Reading(math.nan, 0, 0, 0, 0) if names == {"b.0.q"} else additive(names)

    found = measure_sensitivity(SITES, broken, Journal(None, ""))
    assert found["rows"][0]["name"] == "b.0.q"
    assert found["rows"][0]["emd"] == math.inf


def test_emd_is_blind_to_permutations_and_rank_flips_are_not() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8))
    reading = read_outputs(rows, rows[:, ::-1], 0.0)
    assert reading.emd == pytest.approx(0, abs=1e-12)
    assert reading.cosine < 0.9
    shuffled = read_outputs(rows, rows[::-1], 0.0)
    assert shuffled.rank_flips > 0.2


def test_outputs_that_are_not_finite_are_infinitely_far() -> None:
    rows = np.ones((4, 5))
    broken = rows.copy()
    broken[2, 2] = np.nan
    assert read_outputs(rows, broken, 0.0).emd == math.inf


def test_everything_quantized_is_tried_first_and_ranking_is_not_asked() -> None:
    def never() -> tuple[str, ...]:
        raise AssertionError("ranking was asked for")

    kept, steps = find_fallback(never, lambda kept: Step(kept, 0.001, 0.002, 10), 0.01)
    assert (kept, len(steps)) == ((), 1)


def test_most_sensitive_units_fall_back_until_the_bound_is_inside() -> None:
    losses = {(): 0.05, ("a",): 0.02, ("a", "b"): 0.009, ("a", "b", "c"): 0.001}
    kept, steps = find_fallback(
        lambda: ("a", "b", "c"), lambda kept: Step(kept, losses[kept], losses[kept] + 0.0005, 100 + len(kept)), 0.01
    )
    assert kept == ("a", "b")
    assert [row["unit"] for row in step_rows(steps)] == [None, "a", "b"]


def test_when_no_bound_is_inside_the_first_estimate_that_is_wins() -> None:
    losses = {(): 0.05, ("a",): 0.008, ("a", "b"): 0.006}
    kept, steps = find_fallback(lambda: ("a", "b"), lambda kept: Step(kept, losses[kept], 1.0, 1), 0.01)
    assert kept == ("a",)
    assert len(steps) == 3
    kept, _ = find_fallback(lambda: ("a", "b"), lambda kept: Step(kept, 0.5, 1.0, 1), 0.01)
    assert kept == ("a", "b")


def test_journal_remembers_across_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return 0.1 + 0.2

    first = Journal(path, "context")
    assert first.remember("a", lambda: measure("a")) == 0.1 + 0.2
    path.write_text(path.read_text() + '{"context": "context", "key": "b", "val')  # killed here
    second = Journal(path, "context")
    assert second.remember("a", lambda: measure("again")) == 0.1 + 0.2
    second.remember("b", lambda: measure("b"))
    third = Journal(path, "context")
    third.remember("b", lambda: measure("again"))
    assert calls == ["a", "b"]
    assert (first.reused, second.reused, third.reused) == (0, 1, 1)
    first.remember("a", lambda: measure("again"))
    assert first.reused == 0  # measured by this very process


def test_journal_of_another_context_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, "one").remember("a", lambda: 1)
    assert Journal(path, "two").remember("a", lambda: 2) == 2
    assert Journal(path, "one").remember("a", lambda: 3) == 1
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
