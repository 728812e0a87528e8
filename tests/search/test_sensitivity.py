"""The sensitivity analysis sees one callable that measures, so that its laws can be stated on sums."""

import math

import numpy as np
import pytest

from bitwright.models.sites import LinearSite
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import (
    Reading,
    measure_sensitivity,
    measure_units,
    parts_of,
    ranked_units,
    read_outputs,
)

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
    ones = [row.name for row in found.rows if row.mode == "one"]
    assert ones == ["b.0.f", "b.1.f", "b.0.k", "b.0.q"]
    reverse = [row.name for row in found.rows if row.mode == "all but one"]
    assert reverse == ones  # with additive errors, leaving out the worst helps most
    assert found.spearman_with_metric_loss == pytest.approx(1.0)


def test_groups_are_roles_of_blocks_and_of_the_model() -> None:
    groups = {(p.role, p.block): p.members for p in parts_of(SITES) if p.kind == "groups"}
    assert groups["ffn", None] == {"b.0.f", "b.1.f"}
    assert groups["qkv", 0] == {"b.0.q", "b.0.k"}
    assert groups["ffn", 1] == {"b.1.f"}


def test_only_units_that_matter_are_measured() -> None:
    """They are ranked by their distance, whatever the estimate; the others follow, by theirs."""
    asked: list[frozenset[str]] = []

    def measure(names: frozenset[str]) -> Reading:
        asked.append(names)
        return additive(names)

    estimates = {"b.1.f": 60.0, "b.0.f": 36.0, "b.0.qkv": 4.0}
    found = measure_units(SITES, estimates, measure, Journal(None, ""))
    assert asked == [{"b.1.f"}, {"b.0.f"}]
    assert ranked_units(found) == ("b.0.f", "b.1.f", "b.0.qkv")
    assert [row.emd for row in found.units] == [8.0, 4.0, None]
    assert {row.name: row.estimate for row in found.units} == estimates
    assert (found.rows, found.groups) == ((), ())


def test_an_estimate_that_is_infinite_comes_first_and_hides_no_other() -> None:
    estimates = {"b.0.qkv": math.inf, "b.0.f": 0.0, "b.1.f": 3.0}
    found = measure_units(SITES, estimates, additive, Journal(None, ""))
    assert [row.emd for row in found.units] == [4.0, 3.0, None]


def test_no_more_than_a_few_of_many_alike_are_measured() -> None:
    sites = [LinearSite(f"b.{i}.f", i, "ffn", f"b.{i}.f") for i in range(40)]
    found = measure_units(
        sites, {site.unit: 1.0 for site in sites}, lambda _: Reading(1, 0, 0, 0, 0), Journal(None, "")
    )
    assert 0 < sum(row.emd is not None for row in found.units) < 10
    assert len(found.units) == 40


def test_a_distance_that_is_not_a_number_ranks_first() -> None:
    def broken(names: frozenset[str]) -> Reading:
        return Reading(math.nan, 0, 0, 0, 0) if names == {"b.0.q"} else additive(names)

    found = measure_sensitivity(SITES, broken, Journal(None, ""))
    assert found.rows[0].name == "b.0.q"
    assert found.rows[0].emd == math.inf


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
