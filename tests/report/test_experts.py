"""The expert account: what each saw, who starved, what was done."""

import math

from bitwright.record import record_of
from bitwright.report.experts import expert_blocks, expert_rows


def test_every_expert_is_counted_once(experts):
    blocks = expert_blocks(record_of(experts).layers)
    assert [block.block for block in blocks] == [0, 1]
    assert [len(block.tokens) for block in blocks] == [8, 8]
    assert blocks[0].tokens == (1000, 5, 1002, 7, 1004, 9, 1006, 11)
    assert len(expert_rows(record_of(experts).layers)) == 16


def test_starved_experts_have_their_policy(experts):
    block = expert_blocks(record_of(experts).layers)[0]
    assert block.n_starved == 4
    assert block.policies == {"uses what all experts of the block saw": 8, "rounded to nearest": 4}
    first, *_, last = expert_rows(record_of(experts).layers)
    assert (first.n_tokens, last.n_tokens) == (5, 1006)
    assert first.policy == "gate_proj, up_proj: uses what all experts of the block saw; down_proj: rounded to nearest"
    assert last.policy == ""


def test_errors_of_a_block_name_their_worst(experts):
    rows = [row for row in experts["layers"] if row["role"] == "expert" and row["block"] == 1]
    block = expert_blocks(record_of(experts).layers)[1]
    assert block.errors[1] == max(row["error"] for row in rows)
    assert f"{block.name}.{block.worst}" == max(rows, key=lambda row: row["error"])["name"]


def test_errors_may_be_missing_or_broken(experts):
    for row in experts["layers"]:
        row["error"] = math.nan
    assert expert_blocks(record_of(experts).layers)[0].errors is None
    for row in experts["layers"]:
        del row["error"]
    assert expert_blocks(record_of(experts).layers)[0].worst == ""


def test_dense_models_have_no_experts(language, record):
    for data in (language, record):
        layers = record_of(data).layers
        assert expert_blocks(layers) == expert_rows(layers) == []
