"""One line says how attention is computed; its rows are no matrices of the report's tables."""

import copy
from typing import Any

import pytest

from bitwright.record import HELD, record_of
from bitwright.report import compare_records, render_model_card, render_report
from bitwright.report.account import collapsed
from bitwright.report.attention import arithmetic_words, attention_words
from bitwright.report.tables import decisions

COST = {"loss_float": 0.0012, "loss_int8": 0.0020, "loss": 0.0013, "max_added": 0.0003}


def with_attention(record: dict[str, Any], schemes: str, cost: dict[str, Any] | None) -> dict[str, Any]:
    """schemes: a letter for each block, "i" or "f"."""
    made = copy.deepcopy(record)
    for block, letter in enumerate(schemes):
        name, scheme = f"encoder.layer.{block}.attention.self", {"i": "int8", "f": "float"}[letter]
        made["plan"].append(
            {"name": name, "block": block, "role": "attention", "unit": name, "shape": [12, 32], "scheme": scheme,
             "method": "rtn", "bytes_before": 0, "bytes_after": 0, "reason": "why"}
        )  # fmt: skip
    return made | ({} if cost is None else {"attention": cost})


@pytest.mark.parametrize(
    ("schemes", "cost", "words"),
    [
        ("iii", COST, "8 bit in 3 of 3 blocks; that adds 0.01 points of loss on tuning texts"),
        ("ifi", COST, "8 bit in 2 of 3 blocks (float in block 1); that adds 0.01 points of loss on tuning texts"),
        ("ffi", COST, "8 bit in 1 of 3 blocks (float in blocks 0 and 1); that adds 0.01 points of loss on tuning texts"),  # noqa: E501
        ("fff", COST, "float in all 3 blocks; in 8 bit it would add 0.08 points of loss on tuning texts"),
        ("ii", None, "8 bit in 2 of 2 blocks; what that costs was not measured"),
        ("ff", None, ""),
        ("", None, ""),
    ],
)  # fmt: skip
def test_the_words(record: dict[str, Any], schemes: str, cost: dict[str, Any] | None, words: str) -> None:
    made = record_of(with_attention(record, schemes, cost))
    assert attention_words(made) == words
    page, card = render_report(made), render_model_card(made, None)
    assert (words in page) == (words in card.replace("\\", "")) == bool(words) or not words
    assert ("Attention, on" in page) == bool(words)


def test_attention_is_no_matrix(record: dict[str, Any]) -> None:
    plain, made = record_of(record), record_of(with_attention(record, "iif", COST))
    assert decisions(made.plan) == decisions(plain.plan)
    assert collapsed(made.plan) == collapsed(plain.plan)
    rows = {row.name: row for row in compare_records(plain, made)}
    assert (rows["blocks with 8-bit attention"].a, rows["blocks with 8-bit attention"].b) == ("–", "2")
    assert "layers stored as int8" not in rows
    assert "layers stored as float" not in rows


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("w8a8", "the head holds 8 bits"),
        (
            "w4a16_g32",
            "linears of at most 4 bits read inputs rounded to 8 bits, by token and group; the head holds 8 bits",
        ),
        (
            "nf4_g32",
            "linears of at most 4 bits read inputs rounded to 8 bits, by token and group; levels of nf4 are rounded to "
            "1/127 of the largest; the head holds 8 bits",
        ),
    ],
)
def test_the_words_of_the_arithmetic(record: dict[str, Any], scheme: str, words: str) -> None:
    made = copy.deepcopy(record)
    held = with_attention(record, "i", None)["plan"][-1] | {"name": "engine: head", "role": HELD, "scheme": "int8"}
    made["plan"] = [*(row | {"scheme": scheme} for row in made["plan"] if row["role"] != "embedding"), held]
    assert arithmetic_words(record_of(made)) == words
