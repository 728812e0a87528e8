"""The grounds of a decision, in whatever shape they come."""

import pytest

from bitwright.report.evidence import cell, exhibits

DECISION = {
    "reason": "sensitive weights",
    "tolerable_error": 0.05,
    "units": [{"unit": "0.ffn", "tail": 12.5, "sites": []}, {"unit": "0.qkv", "expected": {"rtn": 0.1, "gptq": 0.05}}],
    "rejected": ["awq: no better"],
    "cost": {"seconds": 12.0, "memory_bytes": 1000},
    "regret": [],
    "nothing": None,
}


def test_parts_keep_their_order_and_empty_ones_are_left_out():
    assert [part.title for part in exhibits(DECISION)] == ["reason", "tolerable error", "units", "rejected", "cost"]


def test_rows_become_a_table_with_every_column_that_holds_anything():
    units = exhibits(DECISION)[2]
    assert units.columns == ("unit", "tail", "expected")
    assert units.rows == (("0.ffn", 12.5, None), ("0.qkv", None, {"rtn": 0.1, "gptq": 0.05}))


def test_texts_become_lines_and_pairs_a_table():
    _, tolerable, _, rejected, cost = exhibits(DECISION)
    assert (tolerable.lines, rejected.lines) == (("0.05",), ("awq: no better",))
    assert cost.rows == (("seconds", 12.0), ("memory bytes", 1000))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"rtn": 0.1, "gptq": 0.05}, "rtn 0.1, gptq 0.05"),
        (["a", "b"], "a, b"),
        ([f"name{i}" for i in range(9)], "name0 and 8 others"),
        (True, "yes"),
        (None, "–"),
        (1234567, "1,234,567"),
    ],
)
def test_cells(value, text):
    assert cell(value) == text


@pytest.mark.parametrize("decision", [None, {}, [], "text"])
def test_no_decision_has_no_exhibits(decision):
    assert exhibits(decision) == []
