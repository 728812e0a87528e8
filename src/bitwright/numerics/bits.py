"""Codes packed into as few bits as they need. The only file that knows the order of bits.

There is one order, dense and from the lowest bit up: along a row, code i takes the bits i·b … i·b + b − 1 of a stream
whose bit j is bit j mod 8 of byte j // 8. Codes of 3 bits straddle bytes. The last byte or word ends in zeros.
Rows are viewed as bytes and as words by turns: right on little-endian machines, the only ones with kernels.

    pack_words    int32, the stream read as little-endian words; code −2^(b−1) is stored as 0. What compressed-tensors
                  calls pack-quantized: weights along K, zero points along N.
    pack_awq      int32, the same of 4 bits, but each eight codes of a row in the order of `_AWQ`.
    pack_bytes    uint8, the smallest code of the spec is stored as 0. For grids that only Bitwright reads.

Arrays are numpy's, or torch's on the CPU, of which views are taken: what comes out is what went in. Whoever packs, here
or elsewhere, asks `check_fit` first: bits that run over would change the neighbours, or be lost.
"""

import numpy as np

from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Array, alike, as_numpy, dtype_name
from bitwright.numerics.spec import QuantSpec

_AWQ = [0, 2, 4, 6, 1, 3, 5, 7]  # the k-th four bits of a word of AutoAWQ's hold this one of its eight codes


def check_fit(values: Array, lowest: int, highest: int, held_in: str, what: str = "codes") -> None:
    """Refuse whole numbers that do not fit.

    Args:
        values: of numpy or of torch; of any shape, none at all too. lowest, highest: what fits. held_in: what holds
            them, "4 bits". what: they are called so.

    Raises:
        NumericsError: one does not fit.
    """
    if 0 in values.shape:
        return
    low, high = int(values.min()), int(values.max())
    if low < lowest or high > highest:
        raise NumericsError(f"{what} lie in [{low}, {high}], and {held_in} hold [{lowest}, {highest}]")


def pack_words(codes: Array, bits: int, *, dim: int = 1, what: str = "codes") -> Array:
    """Codes of a signed grid as compressed-tensors stores them.

    Args:
        codes: int8 (N, C), each in [−2^(b−1), 2^(b−1) − 1].
        dim: 1 packs along rows, giving (N, ⌈C·b / 32⌉); 0 along columns, giving (⌈N·b / 32⌉, C).
        what: they are called so in an error.

    Returns:
        int32, contiguous.

    Raises:
        NumericsError: codes that do not fit into so many bits.
    """
    rows = as_numpy(codes if dim == 1 else codes.T)
    stream = _pack(rows, bits, lowest=-(2 ** (bits - 1)), what=what)
    words = _filled(stream, -(-stream.shape[1] // 4) * 4).view(np.int32)
    return alike(words if dim == 1 else np.ascontiguousarray(words.T), codes)


def unpack_words(words: Array, bits: int, count: int, *, dim: int = 1) -> Array:
    """The inverse of `pack_words`: int8, with `count` codes along `dim`.

    Raises:
        NumericsError: another number of words than `count` codes take.
    """
    rows = words if dim == 1 else words.T
    want = -(-count * bits // 32)
    if dtype_name(words) != "int32" or rows.ndim != 2 or rows.shape[1] != want:
        raise NumericsError(
            f"{count} codes of {bits} bits take {want} int32 words along axis {dim}, got {words.dtype} "
            f"{tuple(words.shape)}"
        )
    stream = np.ascontiguousarray(as_numpy(rows)).view(np.uint8)
    codes = _unpack(stream, bits, count, lowest=-(2 ** (bits - 1)))
    return alike(codes if dim == 1 else np.ascontiguousarray(codes.T), words)


def pack_awq(codes_KN: np.ndarray, *, what: str = "codes") -> np.ndarray:
    """Codes of 4 bits as AutoAWQ stores them: int8 (K, N), N a multiple of 8 -> int32 (K, N / 8).

    what: they are called so in an error.

    Raises:
        NumericsError: codes that do not fit into 4 bits.
    """
    k, n = codes_KN.shape
    words: np.ndarray = pack_words(codes_KN.reshape(k, n // 8, 8)[:, :, _AWQ].reshape(k, n), 4, what=what)
    return words


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """The inverse of `pack_awq`.

    Raises:
        NumericsError: not int32 (K, N / 8).
    """
    codes: np.ndarray = unpack_words(words, 4, 8 * (words.shape[1] if words.ndim == 2 else 0))
    k, n = codes.shape
    return codes.reshape(k, n // 8, 8)[:, :, np.argsort(_AWQ)].reshape(k, n)


def pack_bitnet(codes_NK: np.ndarray) -> np.ndarray:
    """Ternary codes as transformers' BitNet stores them: int8 (N, K), N a multiple of 4 -> uint8 (N / 4, K).

    Raises:
        NumericsError: codes that are not −1, 0 or 1.
    """
    check_fit(codes_NK, -1, 1, "2 bits of ternary codes")
    n, k = codes_NK.shape
    stored_4RK = (codes_NK + np.int8(1)).view(np.uint8).reshape(4, n // 4, k)
    packed: np.ndarray = stored_4RK[0] | stored_4RK[1] << 2 | stored_4RK[2] << 4 | stored_4RK[3] << 6
    return packed


def unpack_bitnet(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_bitnet`: int8 (4 · rows, K) from −1 to 2, of which 2 is no ternary code."""
    stored = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    codes: np.ndarray = stored.view(np.int8) - np.int8(1)
    return codes


def add_words(words: np.ndarray, step: int, bits: int) -> np.ndarray:
    """Packed words, int32, whose every code is larger by `step`, or smaller. Whole words are added: what runs over goes
    into the next code, and comes back when it is taken off again. 2, 4 or 8 bits.
    """
    ones = sum(1 << place for place in range(0, 32, bits))
    return (words.view(np.uint32) + np.uint32(step * ones % (1 << 32))).view(np.int32)


def pack_bytes(codes_NK: Array, spec: QuantSpec) -> Array:
    """Codes of any grid: uint8 (N, ⌈K·b / 8⌉).

    Raises:
        NumericsError: codes outside [spec.code_min, spec.code_max].
    """
    return alike(_pack(as_numpy(codes_NK), spec.bits, lowest=spec.code_min), codes_NK)


def unpack_bytes(packed: Array, spec: QuantSpec, k: int) -> Array:
    """The inverse of `pack_bytes`: int8 (N, K) with K = `k`.

    Raises:
        NumericsError: another number of bytes than `k` codes take.
    """
    want = -(-k * spec.bits // 8)
    if dtype_name(packed) != "uint8" or packed.ndim != 2 or packed.shape[1] != want:
        raise NumericsError(
            f"{k} codes of {spec.bits} bits take {want} bytes a row, got {packed.dtype} {tuple(packed.shape)}"
        )
    return alike(_unpack(as_numpy(packed), spec.bits, k, lowest=spec.code_min), packed)


def _pack(codes: np.ndarray, bits: int, lowest: int, what: str = "codes") -> np.ndarray:
    """The stream of each row: uint8 (N, ⌈C·b / 8⌉). Words of a whole number of codes are put together, a code at a
    time of all of them."""
    if codes.dtype != np.int8 or codes.ndim != 2:
        raise NumericsError(f"codes to pack are int8 (N, K), got {codes.dtype} {codes.shape}")
    check_fit(codes, lowest, lowest + 2**bits - 1, f"{bits} bits", what)
    count, (n_bytes, dtype) = codes.shape[1], _word(bits)
    each = 8 * n_bytes // bits  # codes in a word
    stored = _filled(codes.view(np.uint8) + np.uint8(-lowest % 256), -(-count // each) * each)  # wraps, as it must
    words = np.zeros((len(codes), stored.shape[1] // each), dtype)
    for i in range(each):
        words |= np.left_shift(stored[:, i::each].astype(dtype), dtype.type(i * bits))
    stream = np.empty((*words.shape, n_bytes), np.uint8)
    for i in range(n_bytes):
        stream[..., i] = np.right_shift(words, dtype.type(8 * i)).astype(np.uint8)
    flat, width = stream.reshape(len(codes), words.shape[1] * n_bytes), -(-count * bits // 8)
    return flat if width == flat.shape[1] else flat[:, :width].copy()  # of one row too: its stride is seen in words


def _unpack(stream: np.ndarray, bits: int, count: int, lowest: int) -> np.ndarray:
    """`_pack` undone: int8 (N, `count`)."""
    if bits == 4:
        return _unpack_halves(stream, lowest)[:, :count]
    n_bytes, dtype = _word(bits)
    each = 8 * n_bytes // bits
    padded = _filled(stream, -(-stream.shape[1] // n_bytes) * n_bytes)
    words = np.zeros((len(stream), padded.shape[1] // n_bytes), dtype)
    for i in range(n_bytes):
        words |= np.left_shift(padded[:, i::n_bytes].astype(dtype), dtype.type(8 * i))
    stored = np.empty((*words.shape, each), np.uint8)
    for i in range(each):
        stored[..., i] = np.bitwise_and(np.right_shift(words, dtype.type(i * bits)), dtype.type((1 << bits) - 1))
    codes = stored.reshape(len(stream), words.shape[1] * each)[:, :count] + np.uint8(lowest % 256)
    return codes.view(np.int8)


def _unpack_halves(stream: np.ndarray, lowest: int) -> np.ndarray:
    """Both halves of each byte side by side: int8 (N, 2 · bytes). A byte becomes two at once."""
    pairs = stream.astype(np.uint16)
    pairs |= np.left_shift(pairs, np.uint16(4))
    pairs &= np.uint16(0x0F0F)
    stored = pairs.view(np.uint8)
    stored += np.uint8(lowest % 256)
    return stored.view(np.int8)


def _word(bits: int) -> tuple[int, np.dtype]:
    """Bytes that hold a whole number of codes, and a type for them."""
    if 8 % bits == 0:
        return 1, np.dtype(np.uint8)
    return bits, np.dtype(np.uint32 if bits <= 4 else np.uint64)


def _filled(rows: np.ndarray, n_columns: int) -> np.ndarray:
    """Rows filled with zeros up to so many columns; themselves if they are contiguous and need none."""
    if rows.shape[1] == n_columns:
        return np.ascontiguousarray(rows)
    filled = np.zeros((len(rows), n_columns), rows.dtype)
    filled[:, : rows.shape[1]] = rows
    return filled
