"""One linear as a directory stores it: the numbers that torch's reader sees, and files that contradict themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.linear_tensors import is_portable, linear_tensors
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.engine import packing
from bitwright.engine.heads import head_in_int8
from bitwright.engine.linears import Linear, grid_of, join, operator_of
from bitwright.engine.memory import Memory
from bitwright.engine.ops.multiply import PackedBf16, PackedW4A8, PackedWna16
from bitwright.engine.packing import pack
from bitwright.engine.weights import open_weights
from bitwright.errors import CheckpointError, EngineError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import layouts, reference
from bitwright.models.names import ModelNames
from bitwright.numerics.arrays import Bf16, as_torch, narrow
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import FloatLinear, InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor, code_values
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec
from bitwright.runtime.generic import Linears

N, K = 33, 96
SPECS = {name: scheme.weight for name, scheme in SCHEMES.items() if scheme.weight is not None and scheme.input is None}
SPECS = {name: spec for name, spec in SPECS.items() if spec.group_size in (None, 32)} | {
    "int4 in groups of 4": QuantSpec(bits=4, group_size=4, symmetric=False),
    "nf4 in groups of 4": QuantSpec(bits=4, group_size=4, grid="nf4"),
    "int4 per tensor": QuantSpec(bits=4, per_tensor=True, symmetric=False),
    "int8 asymmetric": QuantSpec(symmetric=False, group_size=32),
}


def stored(spec: QuantSpec) -> QuantizedLinear:
    w_NK = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
    ends = torch.aminmax(grouped(w_NK, spec), dim=-1)
    return QuantizedLinear(quantize(w_NK, *scale_and_zero_point(ends.min, ends.max, spec), spec))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[QuantizedLinear], Path]:
    """The directory of one linear, "m"."""

    def write(layer: QuantizedLinear) -> Path:
        portable = is_portable(layer.form)
        tensors = linear_tensors(layer, guarded=not portable)
        save_file(
            {f"m.{suffix}": as_torch(tensor).contiguous() for suffix, tensor in tensors.items()},
            tmp_path / "model.safetensors",
        )
        config = make_quantization_config({"m": layer.form}, (), (), "", portable=portable)
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
        return tmp_path

    return write


def change(directory: Path, **tensors: Tensor | None) -> None:
    kept = load_file(directory / "model.safetensors") | {f"m.{name}": value for name, value in tensors.items()}
    save_file({name: t.contiguous() for name, t in kept.items() if t is not None}, directory / "model.safetensors")


@pytest.mark.parametrize("name", SPECS)
def test_both_doors_read_the_same_linear(written: Callable[[QuantizedLinear], Path], name: str) -> None:
    """The engine's in numpy, the generic path's in torch, of the same files; bias, static grid, transform too."""
    static, inputs = StaticGrid(0.25, -3), QuantSpec(symmetric=False, per_tensor=True)
    transform = InputTransform(torch.linspace(0.5, 2.0, K), torch.linspace(-1.0, 1.0, K))
    for layer in (stored(SPECS[name]), QuantizedLinear(stored(QuantSpec()).weight, None, inputs, static, transform)):
        path = written(layer)
        change(path, bias=torch.arange(N) / 2)
        linear = open_weights(ModelDirectory(path)).linear("m")
        names = ModelNames("", ("m",), (), {}, {"m.weight": (N, K), "m.bias": (N,)})
        other = Linears(read_checkpoint(ModelDirectory(path)), names)["m"]
        assert isinstance(linear, QuantizedLinear)
        assert (linear.form, linear.static) == (other.form, other.static) == (layer.form, layer.static)
        for ours, theirs in zip(arrays_of(linear), arrays_of(other), strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or (isinstance(ours, np.ndarray) and isinstance(theirs, Tensor))
            assert ours is None or np.array_equal(ours, theirs)
        assert np.array_equal(linear.bias_N, np.arange(N, dtype=np.float32) / 2)


def arrays_of(linear: QuantizedLinear) -> list[Any]:
    weight, transform = linear.weight, linear.transform
    parts = (None, None) if transform is None else (transform.scale_K, transform.shift_K)
    return [linear.bias_N, weight.codes_NK, weight.scale_NG, weight.zero_point_NG, weight.codebook, *parts]


@pytest.mark.parametrize("name", SPECS)
def test_the_numbers_are_those_of_the_codes(written: Callable[[QuantizedLinear], Path], name: str) -> None:
    layer = stored(SPECS[name])
    linear = open_weights(ModelDirectory(written(layer))).linear("m")
    assert isinstance(linear, QuantizedLinear)
    assert np.array_equal(linear.weight.dequantize(), layer.weight.dequantize().numpy())
    assert (operator_of(linear) == "linear_bf16") == ("groups of 4" in name)


@pytest.mark.parametrize("name", ["w4a16_g32_asym", "w3a16_channel", "nf4_g32", "kmeans4_channel", "ternary_g32"])
def test_four_bits_index_the_levels(written: Callable[[QuantizedLinear], Path], name: str) -> None:
    linear = open_weights(ModelDirectory(written(stored(SPECS[name])))).linear("m")
    packed = pack([linear, linear], Memory())
    assert isinstance(packed, PackedWna16)
    codes, levels = packed.codes, packed.levels
    assert levels is not None
    assert codes.nbytes == 80 * K // 2  # of 66 columns
    for values in (codes, levels, packed.scale, packed.zero, packed.bias):
        assert values is None or values.ctypes.data % 64 == 0
    assert isinstance(linear, QuantizedLinear)
    held = linear.weight
    known = code_values(held.codes_NK, np.ones(1, np.float32), None, held.spec, held.codebook)
    assert np.array_equal(levels[layouts.unpack_int4(codes, 2 * N, K)], np.concatenate([known, known]))


@pytest.mark.parametrize("name", ["w4a16_g32", "w3a16_g32_asym", "w3a16_channel", "w2a16_g32", "ternary_g32"])
def test_integer_products_take_codes_in_their_own_bits(written: Callable[[QuantizedLinear], Path], name: str) -> None:
    linear = open_weights(ModelDirectory(written(stored(SPECS[name])))).linear("m")
    assert isinstance(linear, QuantizedLinear)
    packed, bits = pack([linear, linear], Memory(), "int8"), linear.weight.spec.bits
    assert isinstance(packed, PackedW4A8)
    assert (packed.bits, packed.codes.nbytes) == (bits, 80 * K * bits // 8)  # of 66 columns
    lowest = -(1 << bits - 1)
    codes = layouts.unpack_wna8(packed.codes, 2 * N, K, bits).astype(np.int8) + lowest
    assert np.array_equal(codes, np.concatenate([linear.weight.codes_NK] * 2))
    given = linear.weight.zero_point_NG
    assert (packed.zero is None) == (given is None)
    if packed.zero is not None:
        assert np.array_equal(packed.zero.swapaxes(1, 2).reshape(80, -1)[:N].astype(np.int8) + lowest, given)


def test_zero_points_that_no_unsigned_byte_holds_are_refused() -> None:
    """A file can say so where zero points are bytes of their own; they would become 255."""
    held = stored(SPECS["int4 per tensor"]).weight
    lowest = np.full((1, 1), -9, np.int8)
    weight = QTensor(held.codes_NK.numpy(), held.scale_NG.numpy(), lowest, held.spec)
    with pytest.raises(NumericsError, match=r"zero points lie in \[-9, -9\], and the kernels hold \[-8, 120\]"):
        pack([QuantizedLinear(weight)], Memory(), "int8")


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(bits=bits, group_size=group, grid=grid)
        for bits, grid in (
            (4, "fp4"), (4, "nf4"), (4, "kmeans"), (3, "kmeans"), (2, "kmeans"), (4, "apot"), (4, "pot"), (3, "pot"),
            (2, "pot"), (1, "binary"),
        )
        for group in (None, 32, 16)
    ],
    ids=str,
)  # fmt: skip
def test_integer_products_take_whole_levels(spec: QuantSpec) -> None:
    """Those of `reference.in_whole_levels`, in a table or, where they are small, as codes."""
    held = stored(spec).weight
    held = replace(held, scale_NG=held.scale_NG.bfloat16().float())
    codebook = None if held.codebook is None else held.codebook.numpy()
    weight = QTensor(held.codes_NK.numpy(), held.scale_NG.numpy(), None, spec, codebook)
    want = reference.in_whole_levels(held)
    packed = pack([QuantizedLinear(weight)], Memory(), "int8")
    assert isinstance(packed, PackedW4A8)
    assert (packed.zero, packed.minimum, packed.group * packed.per) == (None, None, spec.group_size or K)
    codes = layouts.unpack_wna8(packed.codes, N, K, packed.bits)
    if packed.levels is None:
        held_in = 1 if packed.group % 32 == 0 else 2
        assert packed.bits == {"pot": 4 if spec.bits > 2 else 2, "binary": held_in}[spec.grid]
        values = codes.view(np.int8)
        values = 2 * values - 1 if packed.bits == 1 else values - (1 << packed.bits - 1)
        assert np.array_equal(values, want.codes_NK)
    else:
        assert (packed.bits, packed.levels.shape, packed.levels.dtype) == (4, (16,), np.int8)
        assert packed.levels.ctypes.data % 16 == 0
        assert np.array_equal(packed.levels[codes], want.codes_NK)
    assert (packed.scale.dtype == np.uint16) == (spec.grid in ("fp4", "pot", "binary"))  # the step is a power of two
    scale = Bf16(packed.scale).widen() if packed.scale.dtype == np.uint16 else packed.scale
    assert np.array_equal(scale.swapaxes(1, 2).reshape(-1, want.scale_NG.shape[1])[:N], want.scale_NG)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_head_that_is_not_finite_is_refused(value: float) -> None:
    """Fuzzing found it: the message named no file."""
    weight = np.ones((16, 64), np.float32)
    weight[3, 5] = value
    with pytest.raises(EngineError, match="NaN or infinity"):
        head_in_int8(FloatLinear(weight, None))


def test_rows_that_are_packed_part_by_part_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the parts; also of a head that becomes int8 on the way, and never lies in memory whole."""
    rng = np.random.default_rng(0)
    heads = [FloatLinear(rng.standard_normal((n, 128), np.float32), np.arange(n, dtype=np.float32)) for n in (64, 75)]
    heads[1] = FloatLinear(narrow(np.asarray(heads[1].weight_NK)), None)
    asked: list[int] = []

    def convert(linear: Linear) -> Linear:
        asked.append(linear.shape[0])
        return head_in_int8(linear)

    whole = pack([head_in_int8(linear) for linear in heads], Memory(), "int8")
    monkeypatch.setattr(packing, "_VALUES_AT_ONCE", 32 * 128)
    for found in (pack(heads, Memory(), "int8", convert), pack([head_in_int8(x) for x in heads], Memory(), "int8")):
        assert isinstance(found, PackedW4A8)
        assert isinstance(whole, PackedW4A8)
        for name in ("codes", "scale", "zero", "bias"):
            assert np.array_equal(getattr(found, name), getattr(whole, name)), name
        assert found.codes.ctypes.data % 64 == 0
    assert max(asked) == 32


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("bf16", [True, False])
def test_minima_go_beside_the_scales(bits: int, bf16: bool) -> None:
    spec = QuantSpec(bits=bits, symmetric=False, group_size=32)
    zero = stored(spec).weight
    scale, minimum = (0.25 if bf16 else 0.1) * np.ones((N, 3), np.float32), np.full((N, 3), -1.5, np.float32)
    weight = QTensor(zero.codes_NK.numpy(), scale, None, spec, minimum_NG=minimum)
    linear = QuantizedLinear(weight)
    packed = pack([linear, linear], Memory(), "int8")
    assert isinstance(packed, PackedW4A8)
    assert packed.zero is None
    assert packed.minimum is not None
    assert packed.minimum.dtype == packed.scale.dtype == (np.uint16 if bf16 else np.float32)
    held = packed.minimum.astype(np.uint32) << 16 if bf16 else packed.minimum
    assert np.array_equal(held.view(np.float32).swapaxes(1, 2).reshape(80, 3)[: 2 * N], np.tile(minimum, (2, 1)))
    assert operator_of(linear, "bf16") == "linear_bf16"  # of what the codes stand for
    floats = pack([linear], Memory())
    assert isinstance(floats, PackedBf16)
    assert np.array_equal(layouts.unpack_bf16(floats.values, N, K), narrow(weight.dequantize()).bits)
    assert join(linear, linear)
    # Q2_K beside Q4_1, which fuzzing found: both are floats in bf16, and their groups differ in int8.
    halves = np.repeat(scale, 2, axis=1), np.repeat(minimum, 2, axis=1)
    spec16 = QuantSpec(bits=bits, symmetric=False, group_size=16)
    assert not join(linear, QuantizedLinear(QTensor(weight.codes_NK, halves[0], None, spec16, minimum_NG=halves[1])))
    assert not join(linear, QuantizedLinear(QTensor(weight.codes_NK, scale, np.zeros((N, 3), np.int8), spec)))
    with pytest.raises(NumericsError, match="float minimum for each group cannot be stored"):
        linear_tensors(linear, guarded=False)
    assert not is_portable(linear.form)


WORDS, SCALE = torch.zeros(N, K // 8, dtype=torch.int32), torch.ones(N, 3)
BAD_SCALE = SCALE.clone()
BAD_SCALE[7, 1] = -1.0


@pytest.mark.parametrize(
    ("scheme", "tensors", "message"),
    [
        (
            "w4a16_g32",
            {"weight_packed": WORDS[:, 1:]},
            r"weight_packed is I32 \[33, 11\]; expected I32 \[33, 12\] .* N, K = \[33, 96\]",
        ),
        ("w4a16_g32", {"weight_packed": WORDS[1:]}, r"\[32, 12\]; expected I32 \[33, 12\]"),
        ("w4a16_g32", {"weight_packed": WORDS.float()}, "is F32"),
        ("w4a16_g32", {"weight_packed": None}, "weight_packed is missing"),
        ("w4a16_g32", {"weight_shape": None}, "weight_shape is missing"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, 1 << 40])}, "N, K"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, -K])}, r"N, K = \[33, -96\]: a linear has"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, K, 1])}, "is not two integers"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, 95])}, "K = 95 is not a multiple of group_size = 32"),
        ("w4a16_g32", {"weight_scale": SCALE[:, :2]}, r"weight_scale is F32 \[33, 2\]; expected F32 \[33, 3\]"),
        ("w4a16_g32", {"weight_scale": BAD_SCALE}, "every scale must be finite and positive"),
        ("w4a16_g32", {"weight_scale": SCALE * torch.nan}, "every scale must be finite and positive"),
        ("w4a16_g32", {"weight_zero_point": torch.ones(5, 3, dtype=torch.int32)}, "config.json says that"),
        (
            "w4a16_g32",
            {"weight_g_idx": torch.zeros(K, dtype=torch.int32)},
            "weight_g_idx is unexpected: config.json says nothing",
        ),
        ("w4a16_g32", {"bias": torch.ones(N - 1)}, r"\(33,\) is expected"),
        ("w4a16_g32_asym", {"weight_zero_point": None}, "weight_zero_point is missing"),
        (
            "w4a16_g32_asym",
            {"weight_zero_point": torch.zeros(4, 3, dtype=torch.int32)},
            r"\[4, 3\]; expected I32 \[5, 3\]",
        ),
        ("w4a16_g32_asym", {"weight_zero_point": torch.zeros(5, 3)}, "weight_zero_point is F32"),
        ("nf4_g32", {"weight_codebook": torch.ones(15)}, r"\[15\]; expected F32 \[16\]"),
        (
            "nf4_g32",
            {"weight_codebook": torch.full((16,), torch.inf)},
            r"weight_codebook = \[inf.*, but the nf4 grid has",
        ),
        (
            "log4_g32",
            {"weight": torch.full((N, 1, K // 2), 255, dtype=torch.uint8)},
            r"lie in \[15, 15\], outside \[0, 14\]",
        ),
        ("ternary_g32", {"weight": torch.full((N, 1, K // 4), 255, dtype=torch.uint8)}, r"outside \[-1, 1\]"),
        (
            "ternary_g32",
            {"weight": torch.zeros(N, 2, K // 8, dtype=torch.uint8)},
            r"weight is U8 \[33, 2, 12\]; expected U8 \[33, 1, 24\]",
        ),
    ],
)
def test_tensors_that_contradict(
    written: Callable[[QuantizedLinear], Path], scheme: str, tensors: dict[str, Tensor | None], message: str
) -> None:
    directory = written(stored(SPECS[scheme]))
    open_weights(ModelDirectory(directory)).linear("m")
    change(directory, **tensors)
    with pytest.raises(CheckpointError, match=message):
        open_weights(ModelDirectory(directory)).linear("m")


def test_an_input_without_a_kernel_is_left_to_the_generic_path() -> None:
    inputs = QuantSpec(symmetric=False, per_tensor=True, dynamic=True)
    linear = replace(stored(QuantSpec()), input_spec=inputs)
    with pytest.raises(EngineError, match="no int8 kernel"):
        grid_of(linear)
