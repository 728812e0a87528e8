"""Int8 linears that write codes for the next one: which do, and that they compute what two operators would."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.engine import lowering
from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.lowering import Lowering
from bitwright.engine.ops import Embed, MultiplyW8A8
from bitwright.engine.program import Program
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch

Written = Callable[..., Path]
ISAS = [row.name for row in dispatch.isa_table() if row.supported]


def linears_to_codes(program: Program) -> list[MultiplyW8A8]:
    return [op for op in program.ops if isinstance(op, MultiplyW8A8) and op.grid is not None]


def writers_of_codes(program: Program) -> list[str]:
    return [op.name for op in linears_to_codes(program)]


@pytest.mark.parametrize("method", ["rtn", "smoothquant"])
def test_the_first_linear_of_a_static_ffn_writes_codes(written: Written, method: str) -> None:
    program = lower_encoder(open_weights(ModelDirectory(written("bert", scheme="w8a8_static", method=method))))
    blocks = [f"encoder.layer.{layer}" for layer in range(2)]
    assert writers_of_codes(program) == [f"{block}.intermediate.dense" for block in blocks]
    quantized = [op.name for op in program.ops if op.kind == "quantize"]
    assert quantized == [f"{block}.attention.output.dense: input" for block in blocks]
    assert program.text().count("32→64 int8 gelu static") == 2
    assert [buffer.number for buffer in program.buffers] == list(range(len(program.buffers)))
    assert all((op.transform is not None) == (method == "smoothquant") for op in linears_to_codes(program))
    assert all(op.grid is not None and op.grid.mode == "static" for op in linears_to_codes(program))


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("bert", {"scheme": "w8a8"}),
        ("albert", {"scheme": "w8a8_static"}),  # gelu_new is an operator between the two
        ("modernbert", {"scheme": "w8a8_static"}),  # so is the gate
        ("bert", {"rules": [{"match": "*.intermediate.dense", "scheme": "16bit"}], "scheme": "w8a8_static"}),
    ],
)
def test_what_needs_more_than_the_linear_stays_an_operator(
    written: Written, family: str, recipe: dict[str, Any]
) -> None:
    assert writers_of_codes(lower_encoder(open_weights(ModelDirectory(written(family, **recipe))))) == []


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("method", ["rtn", "smoothquant"])
def test_the_same_as_two_operators(
    written: Written, sequences: list[list[int]], monkeypatch: pytest.MonkeyPatch, isa: str, method: str
) -> None:
    weights = open_weights(ModelDirectory(written("bert", scheme="w8a8_static", method=method)))
    got = Executor(lower_encoder(weights), dispatch.native_isa(isa)).run(sequences, 1)
    monkeypatch.setattr(lowering, "fuse_codes", lambda *unfused: unfused)
    program = lower_encoder(weights)
    assert writers_of_codes(program) == []
    want = Executor(program, dispatch.native_isa(isa)).run(sequences, 1)
    assert np.linalg.norm(got - want) < 0.015 * np.linalg.norm(want)  # without the rounding to bf16 in between


def test_threads_and_groups_change_no_bit(written: Written, sequences: list[list[int]]) -> None:
    program = lower_encoder(open_weights(ModelDirectory(written("bert", scheme="w8a8_static", method="smoothquant"))))
    want = Executor(program, dispatch.native_isa()).run(sequences * 30, 1)
    for group_tokens in (1, 48):
        executor = Executor(program, dispatch.native_isa(), group_tokens=group_tokens)
        assert all(np.array_equal(executor.run(sequences * 30, threads), want) for threads in (2, 3))


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_passes_through_codes_and_stays_in_its_row(written: Written, isa: str) -> None:
    lower = Lowering(open_weights(ModelDirectory(written("bert", scheme="w8a8_static", method="rtn"))))
    x = lower.embed("embeddings.word_embeddings.weight", None, None)
    inner = lower.linears(["encoder.layer.0.intermediate.dense"], x, out="bf16", activation="gelu")
    y = lower.linears(["encoder.layer.0.output.dense"], inner, out="f32")
    program = lower.finish(y, max_tokens=66)
    assert len(writers_of_codes(program)) == 1
    words = np.ones((200, 32), np.float32)
    words[7], words[8, 3] = np.nan, np.inf
    embed, *others = program.ops
    assert isinstance(embed, Embed)
    program = program._replace(ops=(replace(embed, words_VH=words, word_scale_V=None), *others))
    for threads in (1, 2):
        rows = Executor(program, dispatch.native_isa(isa)).run([[5, 6, 7, 9], [10, 8]], threads)
        assert np.isnan(rows).all(1).tolist() == [False, False, True, False, False, True]
        assert np.isfinite(rows).all(1).sum() == 4


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_not_finite_writes_no_codes(written: Written, value: float, isa: str) -> None:
    weights = open_weights(ModelDirectory(written("bert", scheme="w8a8_static", method="rtn")))
    lower = Lowering(weights)
    x = lower.embed("embeddings.word_embeddings.weight", None, None)
    inner = lower.linears(["encoder.layer.0.intermediate.dense"], x, out="bf16", activation="gelu")
    first = next(op for op in lower._ops if isinstance(op, MultiplyW8A8))
    first.weight.bias[5] = value
    program = lower.finish(lower.linears(["encoder.layer.0.output.dense"], inner, out="f32"), max_tokens=66)
    assert writers_of_codes(program) == []
    assert np.isnan(Executor(program, dispatch.native_isa(isa)).run([[5, 6, 7]], 1)).all()
