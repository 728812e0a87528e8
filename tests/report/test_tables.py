"""Rows grouped, ranked and joined."""

import math

import pytest

from bitwright.report.tables import (
    chosen_step,
    decisions,
    distributions_by_sensitivity,
    heat_cells,
    layer_rows,
    ranked,
    step_units,
    whole_groups,
)


def test_decisions_lose_no_layer_and_no_byte(record):
    groups = decisions(record["plan"])
    assert sorted(name for group in groups for name in group["names"]) == sorted(row["name"] for row in record["plan"])
    for key in ("bytes_before", "bytes_after"):
        assert sum(group[key] for group in groups) == sum(row[key] for row in record["plan"])
    assert len({(group["scheme"], group["method"], group["reason"]) for group in groups}) == len(groups)


@pytest.mark.parametrize("kind", ["groups", "units", "rows"])
def test_heat_map_has_a_cell_for_each_block_and_group_whatever_was_measured(record, kind):
    cells = heat_cells({kind: record["sensitivity"][kind]})
    assert [(cell.block, cell.role) for cell in cells] == [
        (str(block), role) for block in range(6) for role in ("qkv", "attention_output", "ffn")
    ]


def test_heat_map_shows_the_worst_unit_and_the_head(record):
    units = record["sensitivity"]["units"]
    head = {**units[0], "name": "classifier", "block": None, "role": "head", "emd": 0.5}
    cells = {(cell.block, cell.role): cell.emd for cell in heat_cells({"units": [*units, head]})}
    assert cells["0", "ffn"] == max(u["emd"] for u in units if (u["block"], u["role"]) == (0, "ffn"))
    assert cells["head", "head"] == 0.5


def test_ranking_puts_broken_outputs_first(record):
    rows = record["sensitivity"]["rows"]
    rows[10]["emd"], rows[20]["emd"] = math.inf, math.nan
    found = ranked(rows)
    assert {row["name"] for row in found[:2]} == {rows[10]["name"], rows[20]["name"]}
    finite = [row["emd"] for row in found[2:]]
    assert finite == sorted(finite, reverse=True)
    assert all(row["emd_all_but"] is not None for row in found)


def test_groups_are_those_of_the_whole_model(record):
    assert {row["name"] for row in whole_groups(record["sensitivity"])} == {"qkv", "attention_output", "ffn"}
    assert len(whole_groups(record["sensitivity"])) == 3


def test_layers_carry_their_sensitivity(record):
    emd = {row["name"]: row["emd"] for row in record["sensitivity"]["rows"] if row["mode"] == "one"}
    rows = layer_rows(record)
    assert len(rows) == len(record["plan"])
    assert all(row["emd"] == emd.get(row["name"]) for row in rows)


def test_distributions_come_in_the_order_of_the_ranking(record):
    names = [row["name"] for row in distributions_by_sensitivity(record)]
    assert names == [row["name"] for row in ranked(record["sensitivity"]["rows"])]
    record["sensitivity"] = None
    assert distributions_by_sensitivity(record) == record["distributions"]


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
    steps = [{"loss": loss, "loss_upper": bound} for loss, bound in zip(losses, bounds, strict=True)]
    assert chosen_step(steps, 0.02) == chosen


def test_the_step_that_is_marked_was_chosen():
    steps = [{"loss": 0.01, "loss_upper": 0.01, "chosen": chosen} for chosen in (False, True, False)]
    assert chosen_step(steps, 0.02) == 1
    assert chosen_step([{"loss": 0.5}], None) == 0


def test_units_of_a_step_in_records_of_both_kinds():
    assert step_units({"unit": None}) == step_units({"unit": None, "units": []}) == []
    assert step_units({"unit": "b"}) == ["b"]
    assert step_units({"unit": "b", "units": ["a", "b"]}) == ["a", "b"]
