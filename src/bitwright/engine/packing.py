"""Weights as the kernels hold them (`kernels/layouts.py`), each at a multiple of 64 bytes."""

import numpy as np

from bitwright.engine.weights import narrow
from bitwright.kernels import layouts


def pack_int8(codes_NK: np.ndarray, scale_N: np.ndarray, bias_N: np.ndarray) -> dict[str, np.ndarray | None]:
    """What `linear_w8a8` takes: the packed weight, its column sums, scales and bias."""
    return {
        "weight": aligned(layouts.pack(codes_NK)),
        "colsum": _columns(codes_NK.sum(axis=1, dtype=np.int32)),
        "scale": _columns(scale_N.astype(np.float32)),
        "bias": _columns(bias_N),
    }


def pack_bf16(values_NK: np.ndarray, bias_N: np.ndarray) -> dict[str, np.ndarray | None]:
    """What `linear_bf16` takes: the packed weight and the bias."""
    return {"weight": aligned(layouts.pack_bf16(narrow(values_NK))), "bias": _columns(bias_N)}


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


def _columns(values_N: np.ndarray) -> np.ndarray:
    return aligned(np.pad(values_N, (0, -len(values_N) % layouts.BLOCK)))
