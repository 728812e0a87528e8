"""Rows grouped, ranked and joined."""

import math
from dataclasses import replace

import pytest

from bitwright.record import Record, Sensitivity, StepRow, record_of
from bitwright.report.tables import (
    chosen_step,
    decisions,
    distributions_by_sensitivity,
    emd_by_linear,
    heat_cells,
    ranked,
    step_units,
    whole_groups,
)


@pytest.fixture
def typed(record) -> Record:
    return record_of(record)


def step(loss: float, upper: float, **more) -> StepRow:
    return StepRow(**{"n_fallback": 0, "loss": loss, "loss_upper": upper, "bytes": 1} | more)


def test_decisions_lose_no_layer_and_no_byte(typed):
    groups = decisions(typed.plan)
    assert sorted(name for group in groups for name in group.names) == sorted(row.name for row in typed.plan)
    for key in ("bytes_before", "bytes_after"):
        assert sum(getattr(group, key) for group in groups) == sum(getattr(row, key) for row in typed.plan)
    assert len({(group.scheme, group.method, group.reason) for group in groups}) == len(groups)


@pytest.mark.parametrize("kind", ["groups", "units", "rows"])
def test_heat_map_has_a_cell_for_each_block_and_group_whatever_was_measured(typed, kind):
    cells = heat_cells(Sensitivity(**{kind: getattr(typed.sensitivity, kind)}))
    assert [(cell.block, cell.role) for cell in cells] == [
        (str(block), role) for block in range(6) for role in ("qkv", "attention_output", "ffn")
    ]


def test_heat_map_shows_the_worst_unit_and_the_head(typed):
    units = typed.sensitivity.units
    head = replace(units[0], name="classifier", block=None, role="head", emd=0.5)
    cells = {(cell.block, cell.role): cell.emd for cell in heat_cells(Sensitivity(units=(*units, head)))}
    assert cells["0", "ffn"] == max(u.emd for u in units if (u.block, u.role) == (0, "ffn"))
    assert cells["head", "head"] == 0.5


def test_ranking_puts_broken_outputs_first(typed):
    rows = list(typed.sensitivity.rows)
    rows[10], rows[20] = replace(rows[10], emd=math.inf), replace(rows[20], emd=math.nan)
    found = ranked(rows)
    assert {row.name for row in found[:2]} == {rows[10].name, rows[20].name}
    finite = [row.emd for row in found[2:]]
    assert finite == sorted(finite, reverse=True)
    assert all(row.emd_all_but is not None for row in found)


def test_groups_are_those_of_the_whole_model(typed):
    assert {row.name for row in whole_groups(typed.sensitivity)} == {"qkv", "attention_output", "ffn"}
    assert len(whole_groups(typed.sensitivity)) == 3


def test_linears_have_their_sensitivity(typed):
    alone = {row.name: row.emd for row in typed.sensitivity.rows if row.mode == "one"}
    assert emd_by_linear(typed.sensitivity) == alone
    assert set(alone) == {row.name for row in typed.plan if row.role != "embedding"}


def test_distributions_come_in_the_order_of_the_ranking(typed):
    names = [row.name for row in distributions_by_sensitivity(typed)]
    assert names == [row.name for row in ranked(typed.sensitivity.rows)]
    assert distributions_by_sensitivity(replace(typed, sensitivity=None)) == list(typed.distributions)


@pytest.mark.parametrize(
    ("losses", "bounds", "chosen"),
    [
        ([0.03, 0.01], [0.04, 0.015], 1),  # the last one's bound is inside
        ([0.03, 0.01, 0.03], [0.04, 0.015, 0.04], 1),  # one between is, and fewer units were tried in vain
        ([0.03, 0.018, 0.012], [0.05, 0.04, 0.03], 1),  # no bound is: the first whose estimate is
        ([0.05, 0.04], [0.06, 0.05], 1),  # nothing is: the last
    ],
)
def test_chosen_step(losses, bounds, chosen):
    steps = [step(loss, bound) for loss, bound in zip(losses, bounds, strict=True)]
    assert chosen_step(steps, 0.02) == chosen


def test_the_step_that_is_marked_was_chosen():
    steps = [step(0.01, 0.01, chosen=chosen) for chosen in (False, True, False)]
    assert chosen_step(steps, 0.02) == 1
    assert chosen_step([step(0.5, 0.6)], None) == 0


def test_units_of_a_step_in_records_of_both_kinds():
    assert step_units(step(0.1, 0.2)) == step_units(step(0.1, 0.2, units=())) == ()
    assert step_units(step(0.1, 0.2, unit="b")) == ("b",)
    assert step_units(step(0.1, 0.2, unit="b", units=("a", "b"))) == ("a", "b")
