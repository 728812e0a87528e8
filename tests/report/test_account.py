"""The error of every layer: ranked, experts together, nothing lost."""

import copy
import math

from bitwright.report.account import collapsed, error_points, error_rows, has_errors


def test_a_dense_model_has_a_row_per_linear_worst_first(language):
    rows = error_rows(language)
    assert {row["name"] for row in rows} == {row["name"] for row in language["layers"]}
    assert [row["error"] for row in rows] == sorted((row["error"] for row in language["layers"]), reverse=True)


def test_experts_of_one_place_are_one_row_with_their_worst(experts):
    rows = {row["name"]: row for row in error_rows(experts)}
    assert len(rows) == 2 * (2 + 3)
    row = rows["model.layers.0.mlp.experts.*.down_proj"]
    members = [r for r in experts["layers"] if r["block"] == 0 and r["name"].endswith("down_proj")]
    assert row["count"] == len(members)
    assert row["n_tokens"] == sum(r["n_tokens"] for r in members)
    assert (row["error"], row["cosine"]) == (max(r["error"] for r in members), min(r["cosine"] for r in members))
    assert "4 of 8 starved" in row["notes"]


def test_notes_tell_what_is_unusual(language):
    usual, *_ = language["layers"]
    (row,) = error_rows({"layers": [usual]})
    assert row["notes"] == ["folded, α\u00a0=\u00a00.5"]
    trouble = {"damping_failed": "0.01, 0.1", "damping": 1.0, "dead_inputs": 3, "something_new": 7, "transform": None}
    (row,) = error_rows({"layers": [usual | trouble]})
    assert row["notes"] == [
        "damping 0.01, 0.1 was not enough", "1 was", "3 inputs were always 0", "something new: 7",
    ]  # fmt: skip
    starved = {"n_tokens": 3, "fewest": 32, "policy": "lent"}
    (row,) = error_rows({"layers": [usual | {"transform": None, "starved": starved}]})
    assert row["notes"] == ["saw 3 calibration tokens, fewer than 32: uses what all experts of the block saw"]
    (row,) = error_rows({"layers": [usual | {"transform": None, "reason": "no factor"}]})
    assert row["notes"] == ["rounded to nearest: no factor"]


def test_broken_layers_come_first_and_unmeasured_ones_last(language):
    language["layers"][3]["error"] = math.nan
    del language["layers"][5]["error"]
    names = [row["name"] for row in error_rows(language)]
    assert (names[0], names[-1]) == (language["layers"][3]["name"], language["layers"][5]["name"])
    assert language["layers"][3]["name"] not in {point.name for point in error_points(language)}


def test_points_are_the_worst_of_block_and_role(experts):
    points = {(point.block, point.role): point for point in error_points(experts)}
    assert len(points) == 2 * 3
    for (block, role), point in points.items():
        members = [row for row in experts["layers"] if (row["block"], row["role"]) == (block, role)]
        assert point.error == max(row["error"] for row in members)
        assert point.error_rtn == max(row["error_rtn"] for row in members)


def test_rounding_without_a_look_at_inputs_measures_no_error(language):
    for row in language["layers"]:
        for key in ("error", "error_rtn", "cosine", "sqnr_db", "block_emd", "n_tokens"):
            del row[key]
    assert not has_errors(language)
    assert error_points(language) == []
    assert not has_errors({})


def test_collapsed_plans_lose_no_byte_and_no_decision(experts):
    plan = copy.deepcopy(experts["plan"])
    plan[3] |= {"scheme": "16bit", "method": "cast"}
    rows = collapsed(plan)
    assert sum(row.get("count", 1) for row in rows) == len(plan)
    for key in ("bytes_before", "bytes_after"):
        assert sum(row[key] for row in rows) == sum(row[key] for row in plan)
    assert len(rows) == 2 * (2 + 3) + 1  # the one that differs stands alone
    assert plan[4] == experts["plan"][4]  # nothing is changed in place


def test_a_plan_without_experts_is_left_as_it_is(record):
    assert collapsed(record["plan"]) == record["plan"]
