"""Codes packed into as few bits as they need. The only file that knows the order of bits.

There is one order, dense and from the lowest bit up: along a row, code i takes the bits i·b … i·b + b − 1 of a stream
whose bit j is bit j mod 8 of byte j // 8. Codes of 3 bits straddle bytes. The last byte or word ends in zeros.
Rows are viewed as bytes and as words by turns: right on little-endian machines, the only ones with kernels.

    pack_words    int32, the stream read as little-endian words; code −2^(b−1) is stored as 0. What compressed-tensors
                  calls pack-quantized: weights along K, zero points along N.
    pack_bytes    uint8, the smallest code of the spec is stored as 0. For grids that only Bitwright reads.
"""

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.spec import QuantSpec


def pack_words(codes: Tensor, bits: int, *, dim: int = 1) -> Tensor:
    """Codes of a signed grid as compressed-tensors stores them.

    Args:
        codes: int8 (N, C), each in [−2^(b−1), 2^(b−1) − 1].
        dim: 1 packs along rows, giving (N, ⌈C·b / 32⌉); 0 along columns, giving (⌈N·b / 32⌉, C).

    Returns:
        int32, contiguous.

    Raises:
        NumericsError: codes that do not fit into so many bits.
    """
    rows = codes if dim == 1 else codes.T
    stream = _pack(rows, bits, lowest=-(2 ** (bits - 1)))
    words = _filled(stream, -(-stream.shape[1] // 4) * 4).view(torch.int32)
    return words if dim == 1 else words.T.contiguous()


def unpack_words(words: Tensor, bits: int, count: int, *, dim: int = 1) -> Tensor:
    """The inverse of `pack_words`: int8, with `count` codes along `dim`.

    Raises:
        NumericsError: another number of words than `count` codes take.
    """
    rows = words if dim == 1 else words.T
    want = -(-count * bits // 32)
    if words.dtype != torch.int32 or rows.ndim != 2 or rows.shape[1] != want:
        raise NumericsError(
            f"{count} codes of {bits} bits take {want} int32 words along axis {dim}, got {words.dtype} "
            f"{tuple(words.shape)}"
        )
    codes = _unpack(_filled(rows, want).view(torch.uint8), bits, count, lowest=-(2 ** (bits - 1)))
    return codes if dim == 1 else codes.T.contiguous()


def pack_bytes(codes_NK: Tensor, spec: QuantSpec) -> Tensor:
    """Codes of any grid: uint8 (N, ⌈K·b / 8⌉).

    Raises:
        NumericsError: codes outside [spec.code_min, spec.code_max].
    """
    return _pack(codes_NK, spec.bits, lowest=spec.code_min)


def unpack_bytes(packed: Tensor, spec: QuantSpec, k: int) -> Tensor:
    """The inverse of `pack_bytes`: int8 (N, K) with K = `k`.

    Raises:
        NumericsError: another number of bytes than `k` codes take.
    """
    want = -(-k * spec.bits // 8)
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != want:
        raise NumericsError(
            f"{k} codes of {spec.bits} bits take {want} bytes a row, got {packed.dtype} {tuple(packed.shape)}"
        )
    return _unpack(packed, spec.bits, k, lowest=spec.code_min)


def _pack(codes: Tensor, bits: int, lowest: int) -> Tensor:
    """The stream of each row: uint8 (N, ⌈C·b / 8⌉)."""
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise NumericsError(f"codes to pack are int8 (N, K), got {codes.dtype} {tuple(codes.shape)}")
    if codes.numel() and (int(codes.min()) < lowest or int(codes.max()) >= lowest + 2**bits):
        raise NumericsError(
            f"codes lie in [{int(codes.min())}, {int(codes.max())}], and {bits} bits hold "
            f"[{lowest}, {lowest + 2**bits - 1}]"
        )
    n, count = codes.shape
    n_eights = -(-count // 8)
    eights = _filled(codes.view(torch.uint8) + -lowest, n_eights * 8).view(torch.int64)  # wraps around, as it must
    for lane in (8, 16, 32):  # two lanes of so many bits hold `width` each: push the upper's down to the lower's
        width = bits * lane // 8
        eights = (eights & _mask(width, lane)) | ((eights >> (lane - width)) & _mask(width, lane, width))
    stream = eights.view(torch.uint8).reshape(n, n_eights, 8)[..., :bits].reshape(n, n_eights * bits)
    return stream[:, : -(-count * bits // 8)].contiguous()


def _unpack(stream: Tensor, bits: int, count: int, lowest: int) -> Tensor:
    """Each step of `_pack` undone, in reverse: int8 (N, `count`)."""
    n, n_eights = stream.shape[0], -(-count // 8)
    spread = stream.new_zeros(n, n_eights, 8)
    spread[..., :bits] = _filled(stream, n_eights * bits).reshape(n, n_eights, bits)
    eights = spread.view(torch.int64)[..., 0]
    for lane in (32, 16, 8):
        width = bits * lane // 8
        eights = (eights & _mask(width, lane)) | ((eights & _mask(width, lane, width)) << (lane - width))
    stored = eights.view(torch.uint8)[:, :count]
    return (stored + lowest % 256).view(torch.int8)


def _filled(rows: Tensor, n_columns: int) -> Tensor:
    """A copy whose rows end at, or are filled with zeros up to, so many columns.

    Its strides are those of its shape. `contiguous` leaves any stride to an axis of length 1, and `view` refuses that.
    """
    copy = rows.new_zeros(len(rows), n_columns)
    copy[:, : rows.shape[1]] = rows[:, :n_columns]
    return copy


def _mask(width: int, lane: int, shift: int = 0) -> int:
    """`width` ones, `shift` bits up, in every other lane of an int64."""
    mask = sum(((1 << width) - 1) << (start + shift) for start in range(0, 64, 2 * lane))
    return mask - (1 << 64) if mask >> 63 else mask
