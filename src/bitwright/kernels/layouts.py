"""How the kernels hold a weight in memory: defined here, once. Never written to disk.

N output features, K input features; both are padded, N to a multiple of 16, K to a multiple of 64 (int8) or 32 (bf16,
four bits). One layout serves every instruction set: four bytes of K (four codes, two bf16 values) of sixteen columns
are 64 contiguous bytes, the operand of one vpdpbusd or vdpbf16ps; sixteen of those are the 16 x 64 byte B tile of one
tdpbusd or tdpbf16ps. In four bits those four bytes are eight codes of a column: two neighbours in a byte where they
become bf16 (`pack_int4`), two at a distance of four where each half of the bytes is an operand of vpdpbusd
(`pack_wna8`, which has layouts for fewer bits, too).

A tile in memory, and the K of its values (int8; bf16: 0 1, 2 3 …; four bits: 0 … 7, 8 … 15 …):

              column 0    column 1           column 15
    row 0   |  0 …  3  |  0 …  3  |   …   |  0 …  3  |   64 bytes: one operand of a vector instruction
    row 1   |  4 …  7  |  4 …  7  |   …   |  4 …  7  |
      …
    row 15  | 60 … 63  | 60 … 63  |   …   | 60 … 63  |

Then the next tile of the same columns; after K the next sixteen columns.
"""

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bitwright.numerics.bits import check_fit

if TYPE_CHECKING:
    from torch import Tensor

# A torch tensor or a numpy array; what comes out is what went in. The engine packs without torch.
Array = TypeVar("Array", bound=Any)

MAX_K = 65793  # of int8: 255 · 128 · K must stay below 2^31
BLOCK = 16
GROUP = 4
PAD_K = 64
GROUP_BF16 = 2
PAD_K_BF16 = 32
PAD_K_INT4 = 32
WORD_WNA8 = {4: 8, 3: 32, 2: 16, 1: 32}  # bits -> K of a word of `pack_wna8`. Neither K nor a group is padded to it
MAX_GROUP_W4A8 = 128  # the sum of so many codes, int8, fits into 16 bits
MAX_ZERO_WNA8 = 128  # a code less its zero point fits into a signed byte


def _contiguous(view: Any) -> Any:
    return view.reshape(-1).reshape(view.shape)  # flattened, so that it is contiguous


Copy = Callable[[Any], Any]


def pack(codes_NK: Array, copy: Copy = _contiguous) -> Array:
    """Weight codes int8 (N, K) -> int8 (N/16, K/4, 16, 4), zero where padded.

    copy: makes the contiguous array that is returned of a view of all but its last axis; here and below.
    """
    packed: Array = _pack(codes_NK, GROUP, PAD_K, copy)
    return packed


def unpack(packed: Array, n: int, k: int) -> Array:
    """The inverse of `pack`: int8 (n, k), contiguous."""
    codes: Array = _unpack(packed, n, k)
    return codes


def pack_bf16(weight_NK: Array, copy: Copy = _contiguous) -> Array:
    """A bfloat16 weight, in numpy its bits as uint16, (N, K) -> (N/16, K/2, 16, 2), zero where padded."""
    packed: Array = _pack(weight_NK, GROUP_BF16, PAD_K_BF16, copy)
    return packed


def unpack_bf16(packed: Array, n: int, k: int) -> Array:
    """The inverse of `pack_bf16`: (n, k), contiguous."""
    weight: Array = _unpack(packed, n, k)
    return weight


def pack_int4(codes_NK: Array, copy: Copy = _contiguous) -> Array:
    """Codes below 16, uint8 (N, K) -> (N/16, K/8, 16, 4): two of K in a byte, the first in its lower half; zero where
    padded.

    Raises:
        NumericsError: a code that does not fit.
    """
    check_fit(codes_NK, 0, 15, "4 bits")
    n, k = codes_NK.shape
    even = _padded(codes_NK, n, k + k % 2)
    packed: Array = _pack(even[:, 0::2] | even[:, 1::2] << 4, GROUP, PAD_K_INT4 // 2, copy)
    return packed


def unpack_int4(packed: Array, n: int, k: int) -> Array:
    """The inverse of `pack_int4`: uint8 (n, k), contiguous."""
    pairs: Any = _unpack(packed, n, k // 2 + k % 2)
    codes: Any = _zeros(pairs, n, k)
    codes[:, 0::2] = pairs & 15
    codes[:, 1::2] = (pairs >> 4)[:, : k // 2]
    out: Array = codes
    return out


def bits_wna8(bits: int, group: int) -> int:
    """In how many bits `linear_w4a8` holds codes of so many: in those if a group of K is whole words, else in 4."""
    return bits if bits in WORD_WNA8 and group % WORD_WNA8[bits] == 0 else 4


def pack_wna8(codes_NK: Array, bits: int, copy: Copy = _contiguous) -> Array:
    """Codes below 2^bits, uint8 (N, K) -> uint8 (N/16, K · bits/32, 16, 4), zero where padded; bits = 1 to 4.

    K is whole words of `WORD_WNA8[bits]` values. A word is runs of four values; run i of a column are four bytes, in
    each of which it has some bits (linear_w4a8/contract.h).

    Raises:
        NumericsError: a code that does not fit.
    """
    check_fit(codes_NK, 0, (1 << bits) - 1, f"{bits} bits")
    n, k = codes_NK.shape
    lying = _padded(codes_NK, n, k)
    words = lying.view(_int32_of(lying)).reshape(n, k // WORD_WNA8[bits], -1)  # a run moves as one number
    run = [words[:, :, i] for i in range(words.shape[2])]
    if bits == 3:
        vectors = [
            run[0] | run[1] << 3 | (run[6] & 0x03030303) << 6,
            run[2] | run[3] << 3 | (run[7] & 0x03030303) << 6,
            run[4] | run[5] << 3 | (run[6] & 0x04040404) << 4 | (run[7] & 0x04040404) << 5,
        ]
    else:
        vectors = [functools.reduce(operator.or_, (part << i * bits for i, part in enumerate(run)))]
    held = _zeros(codes_NK, n, k * bits // 8)
    for i, vector in enumerate(vectors):
        held.view(vector.dtype).reshape(n, -1, len(vectors))[:, :, i] = vector
    packed: Array = _pack(held, GROUP, GROUP, copy)
    return packed


def unpack_wna8(packed: Array, n: int, k: int, bits: int) -> Array:
    """The inverse of `pack_wna8`: uint8 (n, k), contiguous."""
    held: Any = _unpack(packed, n, k * bits // 8)
    codes: Any = _zeros(held, n, k)
    words = codes.reshape(n, k // WORD_WNA8[bits], WORD_WNA8[bits] // GROUP, GROUP)
    vectors, fields = held.reshape(n, words.shape[1], -1, GROUP), 8 // bits
    for i in range(fields * vectors.shape[2]):
        words[:, :, i] = vectors[:, :, i // fields] >> i % fields * bits & (1 << bits) - 1
    if bits == 3:
        for i in (6, 7):
            words[:, :, i] = vectors[:, :, i - 6] >> 6 | (vectors[:, :, 2] >> i & 1) << 2
    out: Array = codes
    return out


def pack_scales(*values_NG: Array) -> tuple[Array, ...]:
    """float32 scales (N, G), and perhaps minima -> (N/16, G, 16) each, zero where padded: bfloat16, in numpy its bits
    as uint16, if that holds every one of all of them exactly, else float32.
    """
    narrowed = [_narrowed(values) for values in values_NG]
    exact = all(exact for _, exact in narrowed)
    return tuple(
        pack_groups(narrow if exact else values) for values, (narrow, _) in zip(values_NG, narrowed, strict=True)
    )


def _narrowed(values: Any) -> tuple[Any, bool]:
    """In bfloat16, and whether that is exact."""
    if isinstance(values, np.ndarray):
        bits = np.ascontiguousarray(values).view(np.uint32)
        return (bits >> 16).astype(np.uint16), not (bits & 0xFFFF).any()
    narrow = values.bfloat16()
    return narrow, bool((narrow.float() == values).all())


def input_group_w4a8(group: int) -> int | None:
    """How many values of K share a scale of the input, where `group` of them share one of the weight: the most that
    divide it. None where the kernels have no such group.
    """
    sizes = range(WORD_WNA8[4], MAX_GROUP_W4A8 + 1, WORD_WNA8[4])
    return max((size for size in sizes if group % size == 0), default=None)


def pack_groups(values_NG: Array) -> Array:
    """One value for each group of K of each feature, (N, G) -> (N/16, G, 16), zero where padded."""
    packed: Array = _pack(values_NG, 1, 1, _contiguous)[..., 0]
    return packed


def _pack(values_NK: Any, group: int, pad_k: int, copy: Copy) -> Any:
    n, k = values_NK.shape
    padded = _padded(values_NK, n + -n % BLOCK, k + -k % pad_k)
    if group * padded.itemsize == 4:  # it moves as one number
        groups = padded.view(_int32_of(padded)).reshape(-1, BLOCK, padded.shape[1] // group).swapaxes(1, 2)
        return copy(groups).reshape(-1).view(padded.dtype).reshape(*groups.shape, group)
    return copy(padded.reshape(-1, BLOCK, padded.shape[1] // group, group).swapaxes(1, 2))


def _int32_of(like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return np.int32
    import torch

    return torch.int32


def _padded(values_NK: Any, height: int, width: int) -> Any:
    n, k = values_NK.shape
    if (n, k) == (height, width) and _lies_in_rows(values_NK):
        return values_NK
    padded = _zeros(values_NK, height, width)
    padded[:n, :k] = values_NK
    return padded


def _lies_in_rows(values: Any) -> bool:
    """Whether an array of numpy or of torch is contiguous, and can be seen as wider numbers."""
    if isinstance(values, np.ndarray):
        return bool(values.flags.c_contiguous)
    return bool(values.is_contiguous()) and values.storage_offset() == 0


def _zeros(like: Any, height: int, width: int) -> Any:
    shape = (height, width)
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(shape)


def _unpack(packed: Any, n: int, k: int) -> Any:
    blocks, groups, _, group = packed.shape
    rows = packed.swapaxes(1, 2).reshape(blocks * BLOCK, groups * group)[:n, :k]
    return rows.reshape(-1).reshape(n, k)


def column_sums(codes_NK: "Tensor") -> "Tensor":
    """Sum over K of each feature's codes: int32, (N padded to 16,). With it the input's zero point is taken off."""
    return pad_columns(codes_NK.sum(dim=1).int())


def pad_columns(values_N: "Tensor") -> "Tensor":
    """One value per feature, padded by zeros to a multiple of 16; a copy, so that it is aligned as torch allocates."""
    n = values_N.shape[0]
    padded = values_N.new_zeros(n + -n % BLOCK)
    padded[:n] = values_N
    return padded


def pad_inputs(values_K: "Tensor") -> "Tensor":
    """One value per input feature, padded by zeros to a multiple of 64: float32."""
    k = values_K.shape[0]
    padded = values_K.new_zeros(k + -k % PAD_K).float()
    padded[:k] = values_K
    return padded
