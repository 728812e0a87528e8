"""Weights as the kernels hold them (`kernels/layouts.py`), in memory that they can read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bitwright.engine.linears import Inputs, Linear, Operator, group_of, input_group, levels, operator_of
from bitwright.engine.memory import Memory
from bitwright.engine.ops.multiply import Packed, PackedBf16, PackedW4A8, PackedW8A8, PackedWna16
from bitwright.kernels import layouts
from bitwright.numerics.arrays import Bf16, narrow
from bitwright.numerics.levels import whole_levels
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor


def pack(linears: Sequence[Linear], memory: Memory, inputs: Inputs = "bf16") -> Packed:
    """What the operator of linears that join takes of them, side by side. inputs: as in `operator_of`."""
    return _PACK[operator_of(linears[0], inputs)](linears, memory)


def _pack_w8a8(linears: Sequence[Linear], memory: Memory) -> PackedW8A8:
    codes_NK = _codes(linears)
    return PackedW8A8(
        codes=layouts.pack(codes_NK, memory.copy),
        colsum=_columns(codes_NK.sum(axis=1, dtype=np.int32), memory),
        scale=_columns(_scales(linears)[:, 0], memory),
        bias=_bias(linears, memory),
    )


def _pack_bf16(linears: Sequence[Linear], memory: Memory) -> PackedBf16:
    weight_NK = _joined([_in_bf16(linear).bits for linear in linears])
    return PackedBf16(values=layouts.pack_bf16(weight_NK, memory.copy), bias=_bias(linears, memory))


def _pack_wna16(linears: Sequence[Linear], memory: Memory) -> PackedWna16:
    """Codes of less than 8 bits are held in 4, each as the index of its level."""
    codes_NK, first, given = _codes(linears), linears[0], levels(linears[0])
    zero = _zero_points(linears)
    assert isinstance(first, QuantizedLinear)
    if first.weight.spec.bits == 8:
        weight, held = layouts.pack(codes_NK, memory.copy), None
    elif given is None:
        held = memory.copy(np.arange(-8, 8, dtype=np.float32))
        weight = layouts.pack_int4((codes_NK + np.int8(8)).view(np.uint8), memory.copy)
    else:
        held = memory.copy(np.pad(given, (0, 16 - len(given))))
        weight = layouts.pack_int4(codes_NK.view(np.uint8), memory.copy)
    return PackedWna16(
        codes=weight,
        levels=held,
        scale=memory.copy(layouts.pack_groups(_scales(linears))),
        zero=None if zero is None else memory.copy(layouts.pack_groups(zero)),
        bias=_bias(linears, memory),
        group=group_of(first),
    )


def _pack_w4a8(linears: Sequence[Linear], memory: Memory) -> PackedW4A8:
    """Codes are held from 0 on, in their own bits where groups allow it; scales in bf16 where that is exact."""
    first = linears[0]
    assert isinstance(first, QuantizedLinear)
    group = input_group(first)
    held = _held_codes(linears, group)
    lowest = np.int8(-(1 << held.bits - 1))
    codes_NK = held.codes_NK.view(np.uint8)
    if held.levels is None:
        codes_NK = codes_NK - lowest.view(np.uint8)  # wraps, as it must
    zero = _zero_points(linears)
    minimum = _of_groups(linears, lambda weight: weight.minimum_NG)
    floats = [x.astype(np.float32, copy=False) for x in (_scales(linears), minimum) if x is not None]
    if held.step != 1.0:
        floats[0] = floats[0] * np.float32(held.step)
    scale, *minima = map(memory.copy, layouts.pack_scales(*floats))
    return PackedW4A8(
        codes=layouts.pack_wna8(codes_NK, held.bits, memory.copy),
        bits=held.bits,
        levels=None if held.levels is None else memory.copy(held.levels),
        scale=scale,
        zero=None if zero is None else memory.copy(layouts.pack_groups((zero - lowest).view(np.uint8))),
        minimum=minima[0] if minima else None,
        bias=_bias(linears, memory),
        group=group,
        per=group_of(first) // group,
    )


class _HeldCodes(NamedTuple):
    """int8 codes, held in so many bits: multiples of a step times the scale, or indices of such, the levels."""

    codes_NK: np.ndarray
    bits: int
    levels: np.ndarray | None = None
    step: float = 1.0


def _held_codes(linears: Sequence[Linear], group: int) -> _HeldCodes:
    """Where codes are indices of levels that are small whole numbers, those are the codes, of binary in 2 bits."""
    first, given, codes_NK = linears[0], levels(linears[0]), _codes(linears)
    assert isinstance(first, QuantizedLinear)
    if given is None:
        return _HeldCodes(codes_NK, layouts.bits_wna8(first.weight.spec.bits, group))
    whole, step = whole_levels(given.tolist())
    table = np.array(whole, np.int8)
    for bits in (2, 3, 4):
        if -(1 << bits - 1) <= min(whole) and max(whole) < 1 << bits - 1:
            return _HeldCodes(table[codes_NK], layouts.bits_wna8(bits, group), step=step)
    return _HeldCodes(codes_NK, 4, np.pad(table, (0, 16 - len(table))), step)


_PACK: dict[Operator, Callable[[Sequence[Linear], Memory], Packed]] = {
    "linear_w8a8": _pack_w8a8, "linear_bf16": _pack_bf16, "linear_wna16": _pack_wna16,
    "linear_w4a8": _pack_w4a8,
}  # fmt: skip


def pack_heads(table_PN: np.ndarray, heads: int, memory: Memory) -> np.ndarray:
    """A packed bf16 weight for each head, of its part of the columns of a float32 table: (heads, …)."""
    parts = np.split(table_PN, heads, axis=1)
    return memory.copy(np.stack([layouts.pack_bf16(narrow(part_PD).bits) for part_PD in parts]))


def _codes(linears: Sequence[Linear]) -> np.ndarray:
    return _joined([x.weight.codes_NK for x in linears if isinstance(x, QuantizedLinear)])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of all parts; of one part, that itself."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _scales(linears: Sequence[Linear]) -> np.ndarray:
    scale_NG = _of_groups(linears, lambda weight: weight.scale_NG)
    assert scale_NG is not None
    return scale_NG


def _zero_points(linears: Sequence[Linear]) -> np.ndarray | None:
    return _of_groups(linears, lambda weight: weight.zero_point_NG)


def _of_groups(linears: Sequence[Linear], values: Callable[[QTensor], np.ndarray | None]) -> np.ndarray | None:
    """(N, G), also where a tensor has one such value; None if the linears have none."""
    weights = [x.weight for x in linears if isinstance(x, QuantizedLinear)]
    given = [(weight.shape[0], values_NG) for weight in weights if (values_NG := values(weight)) is not None]
    return np.concatenate([np.broadcast_to(x, (n, x.shape[1])) for n, x in given]) if given else None


def _in_bf16(linear: Linear) -> Bf16:
    """The weight in bf16; of codes whose groups no operator takes, what they stand for."""
    weight_NK = linear.weight_NK if isinstance(linear, FloatLinear) else linear.weight.dequantize()
    return weight_NK if isinstance(weight_NK, Bf16) else narrow(weight_NK)


def _bias(linears: Sequence[Linear], memory: Memory) -> np.ndarray:
    zeros = [np.zeros(linear.shape[0], np.float32) for linear in linears]
    return _columns(
        np.concatenate([z if x.bias_N is None else x.bias_N for x, z in zip(linears, zeros, strict=True)]), memory
    )


def _columns(values_N: np.ndarray, memory: Memory) -> np.ndarray:
    padded = np.zeros(len(values_N) + -len(values_N) % layouts.BLOCK, values_N.dtype)
    padded[: len(values_N)] = values_N
    return memory.copy(padded)
