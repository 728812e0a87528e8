"""One linear as a directory stores it: the numbers that torch's reader sees, and files that contradict themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitwright.checkpoints.linear_tensors import is_portable, linear_tensors
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.engine.linears import Linear, unpack_bits
from bitwright.engine.ops.multiply import PackedWna16
from bitwright.engine.packing import pack
from bitwright.engine.weights import Weights
from bitwright.errors import CheckpointError
from bitwright.kernels import layouts
from bitwright.numerics.bits import pack_bytes, pack_words
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import QuantizedLinear, ready
from bitwright.numerics.spec import SCHEMES, QuantSpec

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
    return QuantizedLinear(quantize(w_NK, *scale_and_zero_point(ends.min, ends.max, spec), spec), None)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[QuantizedLinear], Path]:
    """The directory of one linear, "m"."""

    def write(layer: QuantizedLinear) -> Path:
        lazy = ready(layer)
        portable = is_portable(lazy)
        tensors = linear_tensors(layer, guarded=not portable)
        save_file(
            {f"m.{suffix}": tensor.contiguous() for suffix, tensor in tensors.items()}, tmp_path / "model.safetensors"
        )
        config = make_quantization_config({"m": lazy}, (), (), "", portable=portable)
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
        return tmp_path

    return write


def change(directory: Path, **tensors: Tensor | None) -> None:
    kept = load_file(directory / "model.safetensors") | {f"m.{name}": value for name, value in tensors.items()}
    save_file({name: t.contiguous() for name, t in kept.items() if t is not None}, directory / "model.safetensors")


def numbers(linear: Linear) -> np.ndarray:
    """W, float32."""
    if linear.values_NK is not None:
        return linear.values_NK
    assert linear.codes_NK is not None
    assert linear.scale_NG is not None
    steps = linear.codes_NK.astype(np.float32) if linear.levels is None else linear.levels[linear.codes_NK]
    steps = steps.reshape(*linear.scale_NG.shape, -1)
    if linear.zero_NG is not None:
        steps = steps - linear.zero_NG[..., None]
    return (steps * linear.scale_NG[..., None]).reshape(linear.shape)


@pytest.mark.parametrize("name", SPECS)
def test_the_numbers_are_those_of_the_codes(written: Callable[[QuantizedLinear], Path], name: str) -> None:
    layer = stored(SPECS[name])
    linear = Weights(written(layer)).linear("m")
    assert np.array_equal(numbers(linear), layer.weight.dequantize().numpy())
    assert (linear.operator == "linear_bf16") == ("groups of 4" in name)


@pytest.mark.parametrize("name", ["w4a16_g32_asym", "w3a16_channel", "nf4_g32", "kmeans4_channel", "ternary_g32"])
def test_four_bits_index_the_levels(written: Callable[[QuantizedLinear], Path], name: str) -> None:
    linear = Weights(written(stored(SPECS[name]))).linear("m")
    packed = pack([linear, linear])
    assert isinstance(packed, PackedWna16)
    codes, levels = packed.codes, packed.levels
    assert levels is not None
    assert codes.nbytes == 80 * K // 2  # of 66 columns
    for values in (codes, levels, packed.scale, packed.zero, packed.bias):
        assert values is None or values.ctypes.data % 64 == 0
    known = numbers(replace(linear, scale_NG=np.ones_like(linear.scale_NG), zero_NG=None))
    assert np.array_equal(levels[layouts.unpack_int4(codes, 2 * N, K)], np.concatenate([known, known]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 31, 100])
def test_bits_in_torchs_order(bits: int, count: int) -> None:
    grid = QuantSpec(bits=bits, full_range=True) if bits > 1 else QuantSpec(bits=1, grid="binary")
    codes = torch.randint(grid.code_min, grid.code_max + 1, (5, count), dtype=torch.int8)
    rows = [pack_bytes(codes, grid)] + ([pack_words(codes, bits).view(torch.uint8)] if bits > 1 else [])
    for row in rows:
        assert np.array_equal(unpack_bits(row.numpy(), bits, count), (codes - grid.code_min).numpy().view(np.uint8))


WORDS, SCALE = torch.zeros(N, K // 8, dtype=torch.int32), torch.ones(N, 3)
BAD_SCALE = SCALE.clone()
BAD_SCALE[7, 1] = -1.0


@pytest.mark.parametrize(
    ("scheme", "tensors", "message"),
    [
        ("w4a16_g32", {"weight_packed": WORDS[:, 1:]}, r"\[33, 44\] bytes; codes of 4 bits for N, K = \[33, 96\]"),
        ("w4a16_g32", {"weight_packed": WORDS[1:]}, r"\[32, 48\] bytes"),
        ("w4a16_g32", {"weight_packed": WORDS.float()}, "is F32"),
        ("w4a16_g32", {"weight_packed": None}, "no 'm.weight'"),
        ("w4a16_g32", {"weight_shape": None}, "no 'm.weight_shape'"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, 1 << 40])}, "N, K"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, -K])}, "not N and K"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, K, 1])}, "not N and K"),
        ("w4a16_g32", {"weight_shape": torch.tensor([N, 95])}, "K = 95 is not a multiple of group_size = 32"),
        ("w4a16_g32", {"weight_scale": SCALE[:, :2]}, r"weight_scale has the shape \[33, 2\], not \[33, 3\]"),
        ("w4a16_g32", {"weight_scale": BAD_SCALE}, "which is not finite and positive"),
        ("w4a16_g32", {"weight_scale": SCALE * torch.nan}, "which is not finite and positive"),
        ("w4a16_g32", {"weight_zero_point": torch.ones(5, 3, dtype=torch.int32)}, "config.json says symmetric"),
        ("w4a16_g32", {"weight_g_idx": torch.zeros(K, dtype=torch.int32)}, "by an index"),
        ("w4a16_g32", {"bias": torch.ones(N - 1)}, r"\(33,\) is expected"),
        ("w4a16_g32_asym", {"weight_zero_point": None}, "no 'm.weight_zero_point'"),
        ("w4a16_g32_asym", {"weight_zero_point": torch.zeros(4, 3, dtype=torch.int32)}, r"\[4, 3\], not \[5, 3\]"),
        ("w4a16_g32_asym", {"weight_zero_point": torch.zeros(5, 3)}, "zero points are int8"),
        ("nf4_g32", {"weight_codebook": torch.ones(15)}, r"\(16,\) is expected"),
        ("nf4_g32", {"weight_codebook": torch.full((16,), torch.inf)}, "level that is not finite"),
        ("log4_g32", {"weight": torch.full((N, 1, K // 2), 255, dtype=torch.uint8)}, "from 15 to 15; those of 4 bits"),
        ("ternary_g32", {"weight": torch.full((N, 1, K // 4), 255, dtype=torch.uint8)}, r"lie in \[-1, 1\]"),
        ("ternary_g32", {"weight": torch.zeros(N, 2, K // 8, dtype=torch.uint8)}, r"codes of a grid-quantized weight"),
    ],
)
def test_tensors_that_contradict(
    written: Callable[[QuantizedLinear], Path], scheme: str, tensors: dict[str, Tensor | None], message: str
) -> None:
    directory = written(stored(SPECS[scheme]))
    Weights(directory).linear("m")
    change(directory, **tensors)
    with pytest.raises(CheckpointError, match=message):
        Weights(directory).linear("m")
