"""Weights as the kernels hold them (`kernels/layouts.py`), each at a multiple of 64 bytes."""

from collections.abc import Sequence

import numpy as np

from bitwright.engine.linears import Linear
from bitwright.engine.weights import narrow
from bitwright.kernels import layouts

Packed = dict[str, np.ndarray | None]


def pack(linears: Sequence[Linear]) -> Packed:
    """What the operator of linears that join takes of them, side by side, in the order of its arguments."""
    return _PACK[linears[0].operator](linears)


def _pack_w8a8(linears: Sequence[Linear]) -> Packed:
    codes_NK = _joined(linears, "codes_NK")
    return {
        "weight": aligned(layouts.pack(codes_NK)),
        "colsum": _columns(codes_NK.sum(axis=1, dtype=np.int32)),
        "scale": _columns(_joined(linears, "scale_NG")[:, 0]),
        "bias": _bias(linears),
    }


def _pack_bf16(linears: Sequence[Linear]) -> Packed:
    return {"weight": aligned(layouts.pack_bf16(narrow(_joined(linears, "values_NK")))), "bias": _bias(linears)}


def _pack_wna16(linears: Sequence[Linear]) -> Packed:
    """Codes of less than 8 bits are held in 4, each as the index of its level."""
    codes_NK, first = _joined(linears, "codes_NK"), linears[0]
    if first.bits == 8:
        weight, levels = layouts.pack(codes_NK), None
    elif first.levels is None:
        levels = aligned(np.arange(-8, 8, dtype=np.float32))
        weight = layouts.pack_int4((codes_NK + np.int8(8)).view(np.uint8))
    else:
        levels = aligned(np.pad(first.levels, (0, 16 - len(first.levels))))
        weight = layouts.pack_int4(codes_NK.view(np.uint8))
    return {
        "weight": aligned(weight),
        "levels": levels,
        "scale": aligned(layouts.pack_groups(_joined(linears, "scale_NG"))),
        "zero": None if first.zero_NG is None else aligned(layouts.pack_groups(_joined(linears, "zero_NG"))),
        "bias": _bias(linears),
    }


_PACK = {"linear_w8a8": _pack_w8a8, "linear_bf16": _pack_bf16, "linear_wna16": _pack_wna16}


def pack_heads(table_PN: np.ndarray, heads: int) -> np.ndarray:
    """A packed bf16 weight for each head, of its part of the columns of a float32 table: (heads, …)."""
    parts = np.split(table_PN, heads, axis=1)
    return aligned(np.stack([layouts.pack_bf16(narrow(part_PD)) for part_PD in parts]))


def aligned(values: np.ndarray) -> np.ndarray:
    """A contiguous copy that begins at a multiple of 64 bytes."""
    memory = np.empty(values.nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    out = memory[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    out[...] = values
    return out


def _joined(linears: Sequence[Linear], name: str) -> np.ndarray:
    return np.concatenate([getattr(linear, name) for linear in linears])


def _bias(linears: Sequence[Linear]) -> np.ndarray:
    zeros = [np.zeros(linear.shape[0], np.float32) for linear in linears]
    return _columns(np.concatenate([z if x.bias_N is None else x.bias_N for x, z in zip(linears, zeros, strict=True)]))


def _columns(values_N: np.ndarray) -> np.ndarray:
    return aligned(np.pad(values_N, (0, -len(values_N) % layouts.BLOCK)))
