"""read ∘ write is the identity for the tensors of every scheme, and they are those of compressed-tensors where it has
words for them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.checkpoints.linear_tensors import described, is_portable, linear_entries, linear_tensors, read_linear
from bitwright.checkpoints.quantization_config import Group
from bitwright.checkpoints.schemes import format_of
from bitwright.errors import NumericsError
from bitwright.files.safetensors_writer import spelled
from bitwright.numerics.arrays import Bf16, as_torch
from bitwright.numerics.linear import QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec

Make = Callable[..., QuantizedLinear]
Parts = Callable[[QuantizedLinear], list[Any]]
QUANTIZED = [name for name, scheme in SCHEMES.items() if scheme.weight is not None]


def group_of(linear: QuantizedLinear) -> Group:
    return Group(("Linear",), format_of(linear.weight.spec, linear.input_spec), linear.form)


def written(linear: QuantizedLinear, *, guarded: bool) -> dict[str, Tensor]:
    return {suffix: as_torch(array) for suffix, array in linear_tensors(linear, guarded=guarded).items()}


def in_numpy(tensor: Tensor) -> np.ndarray | Bf16:
    """As a file gives it."""
    if tensor.dtype == torch.bfloat16:
        return Bf16(tensor.view(torch.uint16).numpy())
    values: np.ndarray = tensor.numpy()
    return values


def read_back(tensors: Mapping[str, Tensor], group: Group, bias_N: np.ndarray | None = None) -> QuantizedLinear:
    stored = {suffix: in_numpy(tensor) for suffix, tensor in tensors.items()}
    header = {suffix: (spelled(tensor), tuple(tensor.shape)) for suffix, tensor in tensors.items()}
    weight_shape = stored.get("weight_shape")
    assert not isinstance(weight_shape, Bf16)
    shape, form, guarded = described(group, header, weight_shape)
    assert form == group.form
    return read_linear(stored, group, shape, bias_N, guarded=guarded)


@pytest.mark.parametrize("k", [37, 96, 128])
@pytest.mark.parametrize("scheme", QUANTIZED)
def test_reading_gives_back_what_was_written(make_linear: Make, parts_of: Parts, scheme: str, k: int) -> None:
    """With and without a transform and the guard, K a multiple of the words' codes or not."""
    spec = SCHEMES[scheme].weight
    assert spec is not None
    if spec.group_size is not None and k % spec.group_size and not SCHEMES[scheme].choose_group:
        return
    torch.manual_seed(k)
    for n in (1, 5):
        for transform in (False, True):
            layer = make_linear(torch.randn(n, k), scheme, transform=transform)
            for guarded in (False, True):
                tensors = written(layer, guarded=guarded)
                entries = linear_entries(layer.shape, layer.form, guarded=guarded)
                assert {name: (spelled(t), tuple(t.shape)) for name, t in tensors.items()} == entries
                bias_N = np.arange(n, dtype=np.float32)
                back = read_back(tensors, group_of(layer), bias_N)
                assert parts_of(back) == parts_of(layer)
                assert back.bias_N is bias_N


@pytest.mark.parametrize("scheme", QUANTIZED)
def test_a_guarded_weight_has_no_shape_of_a_weight(make_linear: Make, scheme: str) -> None:
    tensors = written(make_linear(torch.randn(6, 64), scheme), guarded=True) if fits(scheme, 64) else {}
    for name, tensor in tensors.items():
        assert "weight_packed" not in name
        if name == "weight":
            assert (tensor.ndim, tensor.shape[:2]) == (3, (6, 1))


def fits(scheme: str, k: int) -> bool:
    spec = SCHEMES[scheme].weight
    assert spec is not None
    return SCHEMES[scheme].choose_group or spec.group_size is None or k % spec.group_size == 0


def test_what_has_words(make_linear: Make) -> None:
    w_NK = torch.randn(4, 64)
    portable = {name for name in QUANTIZED if fits(name, 64) and is_portable(make_linear(w_NK, name).form)}
    assert {"w8a8", "w8a16", "w4a16_asym", "w4a8", "w3a16", "w2a16_channel"} <= portable
    assert not {name for name in portable if name.startswith(("log4", "nf4", "kmeans", "ternary", "binary"))}
    assert not is_portable(make_linear(w_NK, "w8a8", transform=True).form)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 32])
def test_packed_tensors_are_those_of_compressed_tensors(bits: int, symmetric: bool, group_size: int | None) -> None:
    """The bytes of its own compressor, given the same scales, zero points and weights."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    torch.manual_seed(bits)
    n, k = 9, 96
    spec = QuantSpec(bits=bits, symmetric=symmetric, group_size=group_size, full_range=None if bits < 8 else True)
    spec = spec if symmetric else QuantSpec(bits=bits, symmetric=False, group_size=group_size)
    g = 1 if group_size is None else k // group_size
    codes = torch.randint(spec.code_min, spec.code_max + 1, (n, k)).to(torch.int8)
    scale = torch.rand(n, g) + 0.5
    zero = None if symmetric else torch.randint(spec.code_min, spec.code_max + 1, (n, g)).to(torch.int8)
    qtensor = QTensor(codes, scale, zero, spec)
    args = quantization.QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    compressor = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    state = {"weight": qtensor.dequantize(), "weight_scale": scale}
    theirs = compressor.compress(state | ({} if zero is None else {"weight_zero_point": zero}), scheme)
    ours = written(QuantizedLinear(qtensor), guarded=False)
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(compressor.decompress(ours, scheme)["weight"], qtensor.dequantize())


def packed(make_linear: Make) -> tuple[dict[str, Tensor], Group]:
    layer = make_linear(torch.randn(4, 64), "w4a16_g32_asym")
    return written(layer, guarded=False), group_of(layer)


LIES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no shape": (lambda t: t.pop("weight_shape"), "weight_shape is missing"),
    "no codes": (lambda t: t.pop("weight_packed"), "weight is missing|weight_packed is missing"),
    "no zero point": (lambda t: t.pop("weight_zero_point"), "weight_zero_point is missing"),
    "shape of one": (lambda t: t.update(weight_shape=torch.tensor([4])), "weight_shape is missing, or is not two"),
    "larger K": (lambda t: t.update(weight_shape=torch.tensor([4, 96])), r"N, K = \[4, 96\]"),
    "larger N": (lambda t: t.update(weight_shape=torch.tensor([8, 64])), r"N, K = \[8, 64\]"),
    "negative": (lambda t: t.update(weight_shape=torch.tensor([-4, -64])), r"N, K = \[-4, -64\]"),
    "huge": (lambda t: t.update(weight_shape=torch.tensor([4, 2**62])), "weight_packed is"),
    "no group": (lambda t: t.update(weight_shape=torch.tensor([4, 63])), "K = 63 is not a multiple"),
    "words as bytes": (lambda t: t.update(weight_packed=t["weight_packed"].view(torch.uint8)), "weight_packed is"),
    "zero points as bytes": (
        lambda t: t.update(weight_zero_point=torch.zeros(4, 2, dtype=torch.int8)),
        "weight_zero_point is I8",
    ),
    "indices of columns": (lambda t: t.update(weight_codebook=torch.ones(16)), "weight_codebook is unexpected"),
    "a static input": (lambda t: t.update(input_scale=torch.ones(1)), "input_scale is unexpected"),
    "a transform": (lambda t: t.update(input_scale_K=torch.ones(64)), "input_scale_K is unexpected"),
}


@pytest.mark.parametrize("lie", LIES)
def test_packed_tensors_that_contradict_one_another(make_linear: Make, lie: str) -> None:
    change, message = LIES[lie]
    tensors, group = packed(make_linear)
    change(tensors)
    with pytest.raises(NumericsError, match=message):
        read_back(tensors, group)


def test_a_codebook_that_is_not_the_grids(make_linear: Make) -> None:
    layer = make_linear(torch.randn(4, 64), "nf4_g32")
    tensors = written(layer, guarded=True)
    tensors["weight_codebook"] = tensors["weight_codebook"] * 1.01
    with pytest.raises(NumericsError, match=r"weight_codebook = .* the nf4 grid has"):
        read_back(tensors, group_of(layer))


def test_a_transform_that_is_no_number(make_linear: Make) -> None:
    layer = make_linear(torch.randn(4, 64), "w8a8", transform=True)
    for name, value, message in (
        ("input_scale_K", 0.0, "input_scale_K = 0.0 .* finite, positive"),
        ("input_scale_K", math.nan, "input_scale_K = nan"),
        ("input_shift_K", math.inf, "input_shift_K = .*inf: must be finite"),
    ):
        tensors = {key: tensor.clone() for key, tensor in written(layer, guarded=True).items()}
        tensors[name][3] = value
        with pytest.raises(NumericsError, match=message):
            read_back(tensors, group_of(layer))


def test_other_tools_spellings(make_linear: Make) -> None:
    """Scales in 16 bit, without the 1 beside the rows, and a zero point of zeros with a symmetric weight."""
    layer = make_linear(torch.randn(4, 64), "w4a16_channel")
    tensors, group = written(layer, guarded=False), group_of(layer)
    tensors["weight_scale"] = tensors["weight_scale"].bfloat16().reshape(4)
    tensors["weight_zero_point"] = torch.zeros(1, 1, dtype=torch.int32)
    back = read_back(tensors, group)
    assert np.array_equal(back.weight.codes_NK, layer.weight.codes_NK)
    assert np.array_equal(back.weight.scale_NG, layer.weight.scale_NG.bfloat16().float())
    tensors["weight_zero_point"] += 1
    with pytest.raises(NumericsError, match=r"not zero, but config\.json says that"):
        read_back(tensors, group)


def test_a_symmetric_input_may_have_a_zero_point_of_zeros(make_linear: Make) -> None:
    """Other tools store one beside the scale of a static input."""
    layer = replace(make_linear(torch.randn(4, 64), "w8a8_static_symmetric"), static=StaticGrid(0.5))
    tensors, group = written(layer, guarded=False), group_of(layer)
    tensors["input_zero_point"] = torch.zeros(1, dtype=torch.int8)
    assert read_back(tensors, group).static == StaticGrid(0.5)
    tensors["input_zero_point"] += 1
    with pytest.raises(NumericsError, match=r"input_zero_point is not zero, but config\.json says that"):
        read_back(tensors, group)
