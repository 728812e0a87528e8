"""Every operator of a program: its record is whole, native code knows it by the same names, and some family has it."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from bitwright.engine.builders import lower_encoder
from bitwright.engine.cache_layout import CacheKind, CacheLayer, CacheLayout
from bitwright.engine.decoders import lower_decoder
from bitwright.engine.ops import Op
from bitwright.engine.ops.binder import Binder
from bitwright.engine.ops.buffers import BufferKind, Per, moved, reads, writes
from bitwright.engine.ops.inputs import PaddedTransform
from bitwright.engine.ops.rows import Function, PoolMode
from bitwright.engine.program import Program
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import native
from bitwright.kernels.input_grid import QuantizeMode

Written = Callable[..., Path]
RECORDS: tuple[type, ...] = get_args(Op)


@pytest.fixture(scope="module")
def programs(written: Written) -> list[Program]:
    """Of every way of building a block, and of every way of holding a weight."""
    whole: dict[str, Any] = {"pooling": ("mean", "cls"), "normalize": True}
    bf16 = {"match": "*.intermediate.dense", "scheme": "16bit"}
    made = [written(family, scheme="w8a8") for family in ("albert", "deberta-v2", "modernbert", "mpnet")]
    made += [written("bert", scheme=scheme) for scheme in ("w8a8_static", "nf4_g32", "w8a16")]
    made += [written("bert", scheme="w8a8_static", rules=[bf16])]
    decoder = written(
        "gemma3_text", scheme="w4a16", config={"head_dim": 16, "intermediate_size": 64, "final_logit_softcapping": 3.0}
    )
    hybrid = written("lfm2", scheme="w4a16", config={"head_dim": 16, "block_multiple_of": 64})
    parallel = written("cohere", scheme="w4a16", config={"head_dim": 16, "intermediate_size": 64})
    whole_norms = written("olmo2", scheme="w4a16", config={"head_dim": 16, "intermediate_size": 64})
    return [
        *(lower_encoder(open_weights(ModelDirectory(directory)), **whole) for directory in made),
        *(
            lower_decoder(open_weights(ModelDirectory(directory)))
            for directory in (decoder, hybrid, parallel, whole_norms)
        ),
    ]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_frozen_and_whole(record: type) -> None:
    assert is_dataclass(record)
    assert record.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(record)
    assert isinstance(vars(record)["kind"], str)
    for part in ("text", "operations", "bind"):
        assert callable(vars(record)[part])
    declared = [each for each in fields(record) if each.metadata]
    assert declared, "an operator reads or writes"
    assert all("Buffer" in str(each.type) for each in declared)
    assert not any("Buffer" in str(each.type) for each in fields(record) if not each.metadata)


@pytest.mark.parametrize("record", RECORDS)
def test_some_family_has_it(programs: list[Program], record: type) -> None:
    found = [op for program in programs for op in program.ops if isinstance(op, record)]
    assert found
    cache = CacheLayout.of([CacheLayer(2, 16)] * 2, "int8", native.load())
    binder = Binder(native.load(), cache)
    for op in found:
        struct = op.bind(binder)
        assert type(struct).__name__ == record.__name__
        assert op.text() == op.text().strip()
        assert (op.operations(3) > 0) == (op.kind in ("linear", "attention"))
        assert op.operations(6) >= op.operations(3)
        assert writes(op)


def test_native_code_refuses_what_a_struct_has_not() -> None:
    module = native.load()
    for wrong in ({}, {"out": 1, "more": 2}, {"out": 1.0}, {"out": None}):
        with pytest.raises(TypeError, match="source: int, out: int"):
            module.Select(source=0, **wrong)
    with pytest.raises(TypeError, match=r"mode: bitwright\.kernels\._native\.PoolMode"):
        module.Pool(source=0, out=1, mode=1, column=0)


@pytest.mark.parametrize(
    ("names", "enumeration"),
    [
        (BufferKind, "BufferKind"),
        (Function, "Function"),
        (PoolMode, "PoolMode"),
        (QuantizeMode, "QuantizeMode"),
        (Per, "Per"),
        (CacheKind, "CacheKind"),
    ],
)
def test_enumerations_are_those_of_the_native_module(names: Any, enumeration: str) -> None:
    assert get_args(names) == tuple(each.name for each in getattr(native.load(), enumeration))


def test_an_operator_moves_to_other_buffers(programs: list[Program]) -> None:
    for program in programs:
        new = {buffer: buffer._replace(number=buffer.number + 10) for buffer in program.buffers}
        for op in program.ops:
            there = moved(op, new)
            assert [buffer.number for buffer in (*reads(there), *writes(there))] == [
                buffer.number + 10 for buffer in (*reads(op), *writes(op))
            ]
            assert there.text() == op.text()


def test_transforms_are_equal_by_their_values() -> None:
    ones, twos = np.ones(64, np.float32), np.full(64, 2.0, np.float32)
    assert PaddedTransform(ones, twos) == PaddedTransform(ones.copy(), twos.copy())
    assert PaddedTransform(ones, twos) != PaddedTransform(ones, ones)
    assert (None, PaddedTransform(ones, twos)) != (None, None)


def test_a_constant_of_several_operators_is_held_once() -> None:
    binder, values = Binder(native.load()), np.arange(100, dtype=np.float32)[1:]
    first = binder.array(values)
    assert first % 64 == 0
    assert binder.array(values, 3) == first + 12
    assert len(binder.held(values)) == 1
    assert binder.array(values, natural=True) == values.ctypes.data
    assert binder.array(None) == 0
    assert binder.buffer(None) == native.load().NO_BUFFER < 0
