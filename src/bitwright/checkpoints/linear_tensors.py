"""The tensors of one quantized linear `<m>`, written and read: N outputs, K inputs, G groups (1 of a row), b bits.

    <m>.weight             int8 (N, K)                   int-quantized
    <m>.weight_packed      int32 (N, ⌈K·b/32⌉)           pack-quantized: codes + 2^(b−1), lowest bits first
    <m>.weight             uint8 (N, 1, ⌈K·b/8⌉)         grid-quantized: codes, or codes + 1 of the ternary grid
    <m>.weight_shape       int64 (2,)                    N and K, where codes are packed
    <m>.weight_scale       float32 (N, G), or (1,) per tensor
    <m>.weight_zero_point  int8, shaped like the scale; int32 (⌈N·b/32⌉, G) where codes are packed; asymmetric only
    <m>.weight_codebook    float32 (L,)                  the levels of a grid that has them
    <m>.input_scale        float32 (1,)                  static inputs
    <m>.input_zero_point   int8 (1,)                     static asymmetric inputs
    <m>.input_scale_K      float32 (K,)                  input transform: x̂ = (x − shift) / scale
    <m>.input_shift_K      float32 (K,)
    <m>.bias               as in the source; not of concern here

Readers that ignore an unknown quant_method (transformers logs it and goes on) would take codes for numbers, or start
with random ones where they find none. So what plain readers cannot represent is guarded: the codes are called `weight`,
whatever the format, and have a 1 in the middle, (N, 1, …), at which such a reader stops.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bitwright.checkpoints.quantization_config import Group
from bitwright.checkpoints.schemes import Format, format_of
from bitwright.checkpoints.stored import LazyLinear, StoredLinear
from bitwright.errors import NumericsError
from bitwright.numerics.bits import pack_bytes, pack_words, unpack_bytes, unpack_words
from bitwright.numerics.codebooks import codebook_of
from bitwright.numerics.qtensor import QTensor, scale_shape
from bitwright.numerics.spec import QuantSpec

Entry = tuple[torch.dtype, tuple[int, ...]]

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})  # in which other tools store scales

# Ends of the names of what a quantized linear may store.
SUFFIXES = (
    *("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_codebook"),
    *("input_scale", "input_zero_point", "input_scale_K", "input_shift_K"),
)


def is_portable(layer: LazyLinear) -> bool:
    """Whether compressed-tensors has words for a linear."""
    return layer.weight_spec.grid == "uniform" and not layer.has_scale_K and not layer.has_shift_K


def linear_entries(layer: LazyLinear, *, guarded: bool) -> dict[str, Entry]:
    """dtype and shape of every tensor of a linear, by suffix. Nothing is loaded."""
    return _entries(layer, format_of(layer.weight_spec, layer.input_spec), guarded=guarded)


def linear_tensors(layer: StoredLinear, *, guarded: bool) -> dict[str, Tensor]:
    """The tensors of a linear, by suffix: as `linear_entries` promises them."""
    weight = layer.qtensor
    spec, format_ = weight.spec, format_of(weight.spec, layer.input_spec)
    scale = weight.scale_NG.float()
    zero = weight.zero_point_NG
    if zero is not None and format_ == "pack-quantized" and not spec.per_tensor:
        zero = pack_words(zero, spec.bits, dim=0)
    codes = _pack(weight.codes_NK, spec, format_)
    tensors = {
        _codes_name(format_, guarded=guarded): codes.unsqueeze(1) if guarded else codes,
        "weight_shape": None if format_ == "int-quantized" else torch.tensor(weight.shape),
        "weight_scale": scale.reshape(1) if spec.per_tensor else scale,
        "weight_zero_point": zero.reshape(1) if zero is not None and spec.per_tensor else zero,
        "weight_codebook": codebook_of(spec) if weight.codebook is None else weight.codebook,
        "input_scale": layer.input_scale,
        "input_zero_point": layer.input_zero_point,
        "input_scale_K": layer.input_scale_K,
        "input_shift_K": layer.input_shift_K,
    }
    return {suffix: tensor for suffix, tensor in tensors.items() if tensor is not None}


def described(group: Group, header: Mapping[str, Entry], weight_shape: Tensor | None) -> tuple[LazyLinear, bool]:
    """What a linear of `group` is, by dtype and shape of the tensors that the file holds for it, and whether it is
    guarded. Its `load` is not to be used.

    Args:
        header: suffix -> dtype and shape; nothing but what `SUFFIXES` names. weight_shape: that tensor, if there.

    Raises:
        NumericsError: a tensor is missing, is one too many, or has another dtype or shape than the group says.
    """
    name = "weight_packed" if group.format == "pack-quantized" and "weight" not in header else "weight"
    if name not in header:
        raise NumericsError(f"{name} is missing")
    stored = header[name][1]
    guarded = name == "weight" and len(stored) == 3
    if group.format == "int-quantized":
        shape = (stored[0], stored[-1]) if stored else (0, 0)
    elif weight_shape is None or weight_shape.dtype not in (torch.int64, torch.int32) or weight_shape.numel() != 2:
        raise NumericsError("weight_shape is missing, or is no two integers")
    else:
        shape = (int(weight_shape[0]), int(weight_shape[1]))
    layer = LazyLinear(shape, group.weight_spec, group.input_spec, group.has_scale_K, group.has_shift_K, _unloaded)
    promised = _entries(layer, group.format, guarded=guarded)
    for suffix, entry in promised.items():
        if suffix not in header:
            raise NumericsError(f"{suffix} is missing")
        if not _agree(suffix, header[suffix], entry):
            raise NumericsError(
                f"{suffix} is {header[suffix][0]} {list(header[suffix][1])}; expected {entry[0]} {list(entry[1])} of a "
                f"{group.format} weight with N, K = {list(shape)}"
            )
    for suffix in sorted(header.keys() - promised.keys()):
        if suffix != "weight_zero_point":  # older tools store one, all zero, with symmetric weights too
            raise NumericsError(f"{suffix} is unexpected: config.json speaks of a {group.format} weight without one")
    return layer, guarded


def read_linear(tensors: Mapping[str, Tensor], group: Group, layer: LazyLinear, *, guarded: bool) -> StoredLinear:
    """The linear that these tensors, by suffix, are. `layer` and `guarded` are what `described` said of them.

    Raises:
        NumericsError: values that contradict one another or the group.
    """
    spec, (n, k) = layer.weight_spec, layer.shape
    stray = None if not spec.symmetric else tensors.get("weight_zero_point")
    if stray is not None and bool((stray != 0).any()):
        raise NumericsError("weight_zero_point is not zero, but config.json says symmetric")
    promised = _entries(layer, group.format, guarded=guarded)
    found = {suffix: tensors[suffix].to(dtype).reshape(shape) for suffix, (dtype, shape) in promised.items()}
    codes = found[_codes_name(group.format, guarded=guarded)]
    codes_NK = _unpack(codes.squeeze(1) if guarded else codes, k, spec, group.format)
    if spec.symmetric and spec.bits == 8 and codes_NK.numel() and int(codes_NK.min()) == -128:
        spec = replace(spec, full_range=True)  # other tools use −128 too
    scale, zero = found["weight_scale"], found.get("weight_zero_point")
    if zero is not None and zero.dtype == torch.int32:
        zero = unpack_words(zero, spec.bits, n, dim=0)
    if spec.per_tensor:
        scale, zero = scale.reshape(1, 1), None if zero is None else zero.reshape(1, 1)
    codebook, fixed = found.get("weight_codebook"), codebook_of(spec)
    if fixed is not None and codebook is not None and not torch.equal(codebook, fixed):
        raise NumericsError(f"weight_codebook = {codebook.tolist()}: the {spec.grid} grid has {fixed.tolist()}")
    return StoredLinear(
        QTensor(codes_NK, scale, zero, spec, codebook if fixed is None else None),
        layer.input_spec,
        found.get("input_scale"),
        found.get("input_zero_point"),
        found.get("input_scale_K"),
        found.get("input_shift_K"),
    )


def _agree(suffix: str, found: Entry, promised: Entry) -> bool:
    """Whether a stored tensor holds what is promised, maybe as other tools spell it: a scale in 16 bit, no shape for a
    single value, no 1 beside the number of rows, N and K as int32."""
    is_scale, codes = suffix.endswith("_scale"), suffix in ("weight", "weight_packed")
    same_dtype = found[0] == promised[0] or (is_scale and found[0] in _FLOATS) or suffix == "weight_shape"
    same_shape = [d for d in found[1] if d != 1] == [d for d in promised[1] if d != 1] and not codes
    return same_dtype and (found[1] == promised[1] or same_shape)


def _unloaded() -> StoredLinear:
    raise AssertionError("described, not loaded")


def _entries(layer: LazyLinear, format_: Format, *, guarded: bool) -> dict[str, Entry]:
    weight, input_spec, (n, k) = layer.weight_spec, layer.input_spec, layer.shape
    bits = weight.bits
    codes: dict[Format, Entry] = {
        "int-quantized": (torch.int8, (n, k)),
        "pack-quantized": (torch.int32, (n, math.ceil(k * bits / 32))),
        "grid-quantized": (torch.uint8, (n, math.ceil(k * bits / 8))),
    }
    dtype, (_, width) = codes[format_]
    scale: tuple[int, ...] = (1,) if weight.per_tensor else scale_shape(n, k, weight)
    entries: dict[str, Entry] = {}
    entries[_codes_name(format_, guarded=guarded)] = (dtype, (n, 1, width) if guarded else (n, width))
    if format_ != "int-quantized":
        entries["weight_shape"] = (torch.int64, (2,))
    entries["weight_scale"] = (torch.float32, scale)
    if not weight.symmetric:
        words = (torch.int32, (math.ceil(n * bits / 32), scale[-1]))
        packed = format_ == "pack-quantized" and not weight.per_tensor
        entries["weight_zero_point"] = words if packed else (torch.int8, scale)
    if weight.has_codebook:
        entries["weight_codebook"] = (torch.float32, (weight.code_max + 1,))
    if input_spec is not None and not input_spec.dynamic:
        entries["input_scale"] = (torch.float32, (1,))
        if not input_spec.symmetric:
            entries["input_zero_point"] = (torch.int8, (1,))
    transforms = {"input_scale_K": layer.has_scale_K, "input_shift_K": layer.has_shift_K}
    return entries | {suffix: (torch.float32, (k,)) for suffix, there in transforms.items() if there}


def _codes_name(format_: Format, *, guarded: bool) -> str:
    return "weight_packed" if format_ == "pack-quantized" and not guarded else "weight"


def _pack(codes_NK: Tensor, spec: QuantSpec, format_: Format) -> Tensor:
    if format_ == "int-quantized":
        return codes_NK
    if format_ == "pack-quantized":
        return pack_words(codes_NK, spec.bits)
    return pack_bytes(codes_NK, spec)


def _unpack(codes: Tensor, k: int, spec: QuantSpec, format_: Format) -> Tensor:
    if format_ == "int-quantized":
        return codes
    if format_ == "pack-quantized":
        return unpack_words(codes, spec.bits, k)
    return unpack_bytes(codes, spec, k)
