"""The grounds of a decision, in whatever shape they come."""

import pytest

from bitwright.report.evidence import cell, exhibits

DECISION = {
    "reason": "sensitive weights",
    "tolerable_error": 0.05,
    "units": [
        {"unit": "0.ffn", "tail": 12.5, "sites": [], "method": "rtn"},
        {"unit": "0.qkv", "expected": {"rtn": 0.1, "gptq": 0.05}, "method": "gptq"},
    ],
    "rejected": ["awq: no better"],
    "cost": {"seconds": 12.0, "memory_bytes": 1000, "n_tokens": 64},
    "regret": [],
    "nothing": None,
}


def test_single_facts_come_first_and_empty_parts_are_left_out():
    titles = [part.title for part in exhibits(DECISION)]
    assert titles == ["in short", "units", "rejected", "cost"]
    assert [[text for _, text in row] for row in exhibits(DECISION)[0].rows] == [
        ["reason", "sensitive weights"], ["tolerable error", "5\u00a0%"],
    ]  # fmt: skip


def test_rows_become_a_table_with_every_column_that_holds_anything():
    units = exhibits(DECISION)[1]
    assert units.columns == ("unit", "method", "tail", "expected")
    assert [[value for value, _ in row] for row in units.rows] == [
        ["0.ffn", "rtn", 12.5, None], ["0.qkv", "gptq", None, {"rtn": 0.1, "gptq": 0.05}],
    ]  # fmt: skip


def test_texts_become_lines_and_pairs_a_table():
    _, _, rejected, cost = exhibits(DECISION)
    assert rejected.lines == ("awq: no better",)
    assert [text for row in cost.rows for _, text in row] == ["seconds", "12\u00a0s", "memory bytes", "1.00\u00a0kB",
                                                              "tokens", "64"]  # fmt: skip
    assert cost.columns == ()


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        ({"rtn": 0.1, "gptq": 0.05}, "expected", "rtn 10 %, gptq 5 %"),
        ({"rtn": 0.1, "memory_bytes": 2e9}, "", "rtn 0.1, memory bytes 2.00 GB"),
        (["a", "b"], "names", "a, b"),
        ([f"name{i}" for i in range(9)], "names", "name0 and 8 others"),
        (True, "loss", "yes"),
        (None, "loss", "–"),
        ("attention_output", "role", "attention output"),
        ("awq_gptq", "method", "awq_gptq"),
        (1234567, "flops", "1,234,567"),
        (0.0123, "error_int4", "1.23 %"),
        (90, "seconds", "1 min 30 s"),
    ],
)
def test_cells_say_what_a_number_is(value, key, text):
    assert cell(value, key).replace("\u00a0", " ") == text


@pytest.mark.parametrize("decision", [None, {}, [], "text"])
def test_no_decision_has_no_exhibits(decision):
    assert exhibits(decision) == []
