"""The error of every layer: ranked, experts together, nothing lost."""

import math
from dataclasses import replace

import pytest

from bitwright.record import LayerRow, PlanRow, Starved, record_of
from bitwright.report.account import collapsed, error_points, error_rows, has_errors


@pytest.fixture
def layers(language) -> tuple[LayerRow, ...]:
    """Of a dense language model."""
    return record_of(language).layers


@pytest.fixture
def of_experts(experts) -> tuple[LayerRow, ...]:
    return record_of(experts).layers


@pytest.fixture
def plan(experts) -> tuple[PlanRow, ...]:
    """Of a mixture of experts."""
    return record_of(experts).plan


def test_a_dense_model_has_a_row_per_linear_worst_first(layers):
    rows = error_rows(layers)
    assert {row.name for row in rows} == {row.name for row in layers}
    assert [row.error for row in rows] == sorted((row.error for row in layers), reverse=True)


def test_experts_of_one_place_are_one_row_with_their_worst(of_experts):
    rows = {row.name: row for row in error_rows(of_experts)}
    assert len(rows) == 2 * (2 + 3)
    row = rows["model.layers.0.mlp.experts.*.down_proj"]
    members = [r for r in of_experts if r.block == 0 and r.name.endswith("down_proj")]
    assert row.count == len(members)
    assert row.n_tokens == sum(r.n_tokens for r in members)
    assert (row.error, row.cosine) == (max(r.error for r in members), min(r.cosine for r in members))
    assert "4 of 8 starved" in row.notes


def test_notes_tell_what_is_unusual(layers):
    usual, *_ = layers
    (row,) = error_rows([usual])
    assert row.notes == ("folded, α\u00a0=\u00a00.5",)
    (row,) = error_rows([
        replace(usual, damping_failed="0.01, 0.1", damping=1.0, dead_inputs=3, more={"something_new": 7},
                transform=None),
    ])  # fmt: skip
    assert row.notes == ("damping 0.01, 0.1 was not enough", "1 was", "3 inputs were always 0", "something new: 7")
    (row,) = error_rows([replace(usual, transform=None, reason="no factor", gave_way_to="rtn", error_input=0.25)])
    assert row.notes == ("rounded to nearest: no factor", "gave way to: rtn", "error input: 0.25")


@pytest.mark.parametrize(
    ("starved", "note"),
    [
        (Starved(5, 32, "rtn"), "saw 5 calibration tokens, fewer than 32: rounded to nearest"),
        (Starved(5, 32, "lent"), "saw 5 calibration tokens, fewer than 32: uses what all experts of the block saw"),
        ("in the words of an earlier release", "in the words of an earlier release"),
    ],
)
def test_a_starved_expert_says_how_few_tokens_it_saw_and_what_was_done(layers, starved, note):
    (row,) = error_rows([replace(layers[0], transform=None, starved=starved)])
    assert row.notes == (note,)


def test_broken_layers_come_first_and_unmeasured_ones_last(layers):
    rows = list(layers)
    rows[3], rows[5] = replace(rows[3], error=math.nan), replace(rows[5], error=None)
    names = [row.name for row in error_rows(rows)]
    assert (names[0], names[-1]) == (rows[3].name, rows[5].name)
    assert rows[3].name not in {point.name for point in error_points(rows)}


def test_points_are_the_worst_of_block_and_role(of_experts):
    points = {(point.block, point.role): point for point in error_points(of_experts)}
    assert len(points) == 2 * 3
    for (block, role), point in points.items():
        members = [row for row in of_experts if (row.block, row.role) == (block, role)]
        assert point.error == max(row.error for row in members)
        assert point.error_rtn == max(row.error_rtn for row in members)


def test_rounding_without_a_look_at_inputs_measures_no_error(layers):
    rows = [LayerRow(row.name, row.block, row.role, row.unit, scheme="w8a8", method="rtn") for row in layers]
    assert not has_errors(rows)
    assert error_points(rows) == []
    assert not has_errors(())


def test_collapsed_plans_lose_no_byte_and_no_decision(plan):
    plan = [replace(row, scheme="16bit", method="cast") if i == 3 else row for i, row in enumerate(plan)]
    rows = collapsed(plan)
    assert sum(row.count or 1 for row in rows) == len(plan)
    for key in ("bytes_before", "bytes_after"):
        assert sum(getattr(row, key) for row in rows) == sum(getattr(row, key) for row in plan)
    assert len(rows) == 2 * (2 + 3) + 1  # the one that differs stands alone


def test_a_plan_without_experts_has_a_line_per_row(record):
    plan = record_of(record).plan
    lines = collapsed(plan, {plan[0].name: 0.5})
    for line, row in zip(lines, plan, strict=True):
        assert all(getattr(line, key) == getattr(row, key) for key in ("name", "role", "shape", "scheme", "reason"))
        assert line.count is None
    assert [line.emd for line in lines[:2]] == [0.5, None]
