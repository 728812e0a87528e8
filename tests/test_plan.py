"""The plan's rows of attention: what a recipe makes of each block, and that they stand for no linear."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.errors import RecipeError
from bitwright.kernels import native
from bitwright.models.load import open_lazily
from bitwright.models.sites import find_embeddings, find_linears
from bitwright.plan import Plan, attention_rows, half_names, int8_attention, make_plan, quantized_names
from bitwright.recipe import make_recipe
from bitwright.report.verdict import bits_per_weight
from tests.families import ENCODERS

TinyModel = Callable[..., Path]


@pytest.fixture
def planned(tiny_model: TinyModel) -> Callable[..., Plan]:
    def plan(family: str = "bert", **recipe: Any) -> Plan:
        loaded = open_lazily(tiny_model(family))
        model, row = loaded.model, loaded.architecture
        sites, tables = find_linears(model, row), find_embeddings(model, row)
        wanted = make_recipe({"targets": ["bitwright"]} | recipe)
        return make_plan(wanted, model, row, sites, tables, lambda name: torch.float32)

    return plan


@pytest.fixture(autouse=True)
def _native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is the same whether they are built here or not."""
    monkeypatch.setattr(native, "load_error", lambda: None)


@pytest.mark.parametrize("family", ENCODERS)
def test_each_block_has_a_row(planned: Callable[..., Plan], family: str) -> None:
    plan = planned(family)
    rows = attention_rows(plan)
    blocks = {row.block for row in plan if row.is_linear and row.block is not None}
    assert [row.block for row in rows] == sorted(blocks)
    assert {row.scheme for row in rows} == {"int8"}
    assert {(row.bytes_before, row.bytes_after, row.shape) for row in rows} == {(0, 0, (2, 16))}
    assert int8_attention(plan) == blocks


def test_the_rows_stand_for_no_linear(planned: Callable[..., Plan]) -> None:
    plan = planned()
    without = tuple(row for row in plan if not row.is_attention)
    for names in (quantized_names, half_names):
        assert names(plan) == names(without)
    assert bits_per_weight(plan) == bits_per_weight(without)


@pytest.mark.parametrize(
    ("recipe", "schemes", "reason"),
    [
        ({}, ["int8", "int8"], "linears with 8-bit inputs"),
        ({"attention": "float"}, ["float", "float"], "as asked"),
        ({"scheme": "w8a16"}, ["float", "float"], "linears without 8-bit inputs"),
        ({"scheme": "w8a16", "attention": "int8"}, ["int8", "int8"], "as asked"),
        ({"scheme": "16bit", "attention": "int8"}, ["float", "float"], "no linear is quantized"),
        ({"rules": [{"match": "*.0.qkv", "scheme": "16bit"}]}, ["float", "int8"], "without 8-bit inputs"),
        ({"rules": [{"match": "*.0.*", "scheme": "16bit", "attention": "int8", "reason": "why"}]}, ["int8"] * 2, "why"),
        ({"rules": [{"match": "*.0.*", "attention": "float"}]}, ["float", "int8"], "rule: match"),
        ({"rules": [{"match": "*.0.*", "scheme": "w8a8_static"}], "scheme": "w4a16"}, ["int8", "float"], "8-bit"),
    ],
)  # fmt: skip
def test_the_recipe_decides(
    planned: Callable[..., Plan], recipe: dict[str, Any], schemes: list[str], reason: str
) -> None:
    rows = attention_rows(planned(**recipe))
    assert [row.scheme for row in rows] == schemes
    assert reason in rows[0].reason


def test_without_native_kernels_auto_is_float(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_error", lambda: "no such file")
    assert {(row.scheme, row.reason) for row in attention_rows(planned())} == {
        ("float", "the native kernels are not available: no such file")
    }


def test_a_decoder_has_no_rows(planned: Callable[..., Plan]) -> None:
    assert attention_rows(planned("llama")) == ()


@pytest.mark.parametrize(
    ("family", "recipe", "message"),
    [
        ("llama", {"attention": "int8"}, "and llama is none of them; use auto or float"),
        ("llama", {"rules": [{"match": "*", "attention": "int8"}]}, "leave `attention` out of the rule"),
        ("bert", {"rules": [{"match": "*.layer.7.*", "attention": "float"}]}, r"none of the 2 blocks.*first is enc"),
        ("bert", {"rules": [{"match": "*.7.*", "scheme": "16bit", "attention": "float"}]}, "none of the 2 blocks"),
        ("bert", {"rules": [{"match": "encoder.layer.0.attention.self", "scheme": "16bit"}]}, "none of the .* linears"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    planned: Callable[..., Plan], family: str, recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(family, **recipe)
