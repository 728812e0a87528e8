"""The types of llama.cpp's tensors: a row is cut into blocks, and a block holds codes with their scales. numpy alone.

    _0, _1   32 values with a scale d, fp16, and in the types _1 a minimum m
    K        256 values: groups of 16 or 32 with small whole scales (and minima), times one d (and dmin) of the block
    IQ4      codes are indices of 16 fixed whole levels. MXFP4: the same, with a power of two as scale (OCP MX 1.0)

Every type here is held as a `QTensor` without rounding. Codes of 3, 5 and 6 bits stand in 8 bits then, and so do the
levels of IQ4. A scale of a `QTensor` is positive, but one of a file may be negative: c · d = −c · |d|. Q4_0's −8 has no
counterpart, so there a group with a negative scale has the codes −1 − c with the zero point −1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bitwright.errors import NumericsError
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

_IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
# Where each code of E2M1 stands on the grid fp4, whose levels are ascending.
_E2M1_PLACES = np.array([8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 4, 3, 2, 1, 0], np.int8)


class Groups(NamedTuple):
    """What n blocks hold: a code c stands for c · scale (+ minimum, where codes count from 0).

    codes: int8 (n, groups of a block, values of a group). scale, minimum: float32 (n, groups).
    """

    codes: np.ndarray
    scale: np.ndarray
    minimum: np.ndarray | None = None


class BlockType(NamedTuple):
    """A type. number: in files. values, bytes: of a block. spec: of the `QTensor` that holds it, None of floats.

    groups: what blocks, uint8 (n, bytes), hold.
    """

    name: str
    number: int
    values: int
    bytes: int
    spec: QuantSpec | None = None
    groups: Callable[[np.ndarray], Groups] | None = None


def held(kind: BlockType, raw_NB: np.ndarray, spec: QuantSpec | None = None) -> QTensor:
    """The rows of a tensor of quantized type.

    Args:
        raw_NB: uint8 (N, bytes of a row). spec: in place of the type's: a symmetric one says that no scale is negative.

    Raises:
        NumericsError: a scale or a minimum that is not finite, or a negative scale where none can be.
    """
    assert kind.groups is not None
    spec, n = spec or kind.spec, raw_NB.shape[0]
    assert spec is not None
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused
        found = kind.groups(raw_NB.reshape(-1, kind.bytes))
    codes_NGg = found.codes.reshape(n, -1, found.codes.shape[2])
    scale_NG, zero_NG, minimum_NG = found.scale.reshape(codes_NGg.shape[:2]), None, None
    if not np.isfinite(scale_NG).all():
        raise NumericsError("a scale is not finite")
    negative, nothing = scale_NG < 0, scale_NG == 0
    if found.minimum is not None:
        minimum_NG = found.minimum.reshape(scale_NG.shape)
        codes_NGg = codes_NGg + np.int8(spec.code_min)
    elif not spec.symmetric:
        zero_NG = -negative.astype(np.int8)
    if negative.any():
        if spec.bits == 4 and zero_NG is None:
            raise NumericsError("a scale is negative, though it must not be")
        codes_NGg = _negated(codes_NGg, negative, zero_NG)
    if nothing.any():  # these values are 0, or the minimum
        codes_NGg = np.where(nothing[..., None], np.int8(0 if minimum_NG is None else spec.code_min), codes_NGg)
    scale_NG = np.where(nothing, np.float32(1), abs(scale_NG))
    if spec == _SYMMETRIC_8 and codes_NGg.size and int(codes_NGg.min()) == -128:
        spec = QuantSpec(8, group_size=32, full_range=True)  # other tools use −128 too
    return QTensor(codes_NGg.reshape(n, -1), scale_NG, zero_NG, spec, None, minimum_NG)


def _negated(codes_NGg: np.ndarray, negative_NG: np.ndarray, zero_NG: np.ndarray | None) -> np.ndarray:
    """The codes beside the magnitudes of their scales, where those are negative."""
    if zero_NG is None and int(codes_NGg[negative_NG].min()) == -128:
        raise NumericsError("a scale is negative where a code is −128, which has no counterpart")
    negated_NGg = -codes_NGg if zero_NG is None else np.int8(-1) - codes_NGg
    return np.where(negative_NG[..., None], negated_NGg, codes_NGg)


def _halves(raw: np.ndarray, first: int) -> np.ndarray:
    """fp16 at one place of each block, in float32 (n, 1)."""
    halves = np.ascontiguousarray(raw[:, first : first + 2]).view("<f2")
    return np.asarray(halves, np.float32)


def _fields(raw: np.ndarray, run: int, bits: int) -> np.ndarray:
    """Fields of so many bits, lowest first: uint8 (n, B) -> (n, B · 8 / bits). Each run of `run` bytes gives its lowest
    fields first, then the next ones."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields: np.ndarray = (raw.reshape(len(raw), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(raw), -1)


def _grouped(codes: np.ndarray, size: int) -> np.ndarray:
    """Unsigned codes (n, values) as int8 (n, groups, size)."""
    return codes.view(np.int8).reshape(len(codes), -1, size)


def _q4_0(raw: np.ndarray) -> Groups:
    return Groups(_grouped(_fields(raw[:, 2:], 16, 4), 32) - np.int8(8), _halves(raw, 0))


def _q4_1(raw: np.ndarray) -> Groups:
    return Groups(_grouped(_fields(raw[:, 4:], 16, 4), 32), _halves(raw, 0), _halves(raw, 2))


def _five(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Codes of 5 bits: the highest ones of 32 values, a bit each, and the lower four."""
    codes: np.ndarray = _fields(low, 16, 4) | np.unpackbits(high, axis=1, bitorder="little") << np.uint8(4)
    return codes


def _q5_0(raw: np.ndarray) -> Groups:
    return Groups(_grouped(_five(raw[:, 2:6], raw[:, 6:]), 32) - np.int8(16), _halves(raw, 0))


def _q5_1(raw: np.ndarray) -> Groups:
    return Groups(_grouped(_five(raw[:, 4:8], raw[:, 8:]), 32), _halves(raw, 0), _halves(raw, 2))


def _q8_0(raw: np.ndarray) -> Groups:
    return Groups(_grouped(raw[:, 2:], 32), _halves(raw, 0))


def _q2_k(raw: np.ndarray) -> Groups:
    small, d, dmin = raw[:, :16], _halves(raw, 80), _halves(raw, 82)
    return Groups(_grouped(_fields(raw[:, 16:80], 32, 2), 16), d * (small & 15), -(dmin * (small >> 4)))


def _q3_k(raw: np.ndarray) -> Groups:
    low, high = _fields(raw[:, 32:96], 32, 2), _fields(raw[:, :32], 32, 1)
    scales = _fields(raw[:, 96:104], 8, 4) | _fields(raw[:, 104:108], 4, 2) << np.uint8(4)
    codes = _grouped(low | high << np.uint8(2), 16) - np.int8(4)
    return Groups(codes, _halves(raw, 108) * (scales.astype(np.float32) - 32))


def _small(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and the 8 minima, of 6 bits each, that 12 bytes of a block hold."""
    scale, minimum, rest = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    top = np.uint8(0x30)
    scales = np.concatenate([scale & 63, (rest & 15) | ((scale >> 2) & top)], axis=1)
    return scales, np.concatenate([minimum & 63, (rest >> 4) | ((minimum >> 2) & top)], axis=1)


def _q4_k(raw: np.ndarray) -> Groups:
    scales, minima = _small(raw[:, 4:16])
    codes = _grouped(_fields(raw[:, 16:], 32, 4), 32)
    return Groups(codes, _halves(raw, 0) * scales, -(_halves(raw, 2) * minima))


def _q5_k(raw: np.ndarray) -> Groups:
    scales, minima = _small(raw[:, 4:16])
    codes = _fields(raw[:, 48:], 32, 4) | _fields(raw[:, 16:48], 32, 1) << np.uint8(4)
    return Groups(_grouped(codes, 32), _halves(raw, 0) * scales, -(_halves(raw, 2) * minima))


def _q6_k(raw: np.ndarray) -> Groups:
    codes = _fields(raw[:, :128], 64, 4) | _fields(raw[:, 128:192], 32, 2) << np.uint8(4)
    return Groups(_grouped(codes, 16) - np.int8(32), _halves(raw, 208) * raw[:, 192:208].view(np.int8))


def _iq4_nl(raw: np.ndarray) -> Groups:
    return Groups(_IQ4_LEVELS[_grouped(_fields(raw[:, 2:], 16, 4), 32)], _halves(raw, 0))


def _iq4_xs(raw: np.ndarray) -> Groups:
    high = np.ascontiguousarray(raw[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _fields(raw[:, 4:8], 1, 4) | high.astype(np.uint8) << np.uint8(4)
    codes = _IQ4_LEVELS[_grouped(_fields(raw[:, 8:], 16, 4), 32)]
    return Groups(codes, _halves(raw, 0) * (scales.astype(np.float32) - 32))


def _mxfp4(raw: np.ndarray) -> Groups:
    """The scale is 2^(e − 127); e = 255 is no number."""
    exponent = raw[:, :1].astype(np.int32)
    scale = np.where(exponent == 255, np.float32(np.nan), np.ldexp(np.float32(1), exponent - 127))
    return Groups(_E2M1_PLACES[_grouped(_fields(raw[:, 1:], 16, 4), 32)], scale)


_SYMMETRIC_8 = QuantSpec(8, group_size=32)
_IN_16 = QuantSpec(8, group_size=16)
_MINIMA_8, _MINIMA_4 = (QuantSpec(bits, symmetric=False, group_size=32) for bits in (8, 4))

_ALL = (
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
    BlockType("BF16", 30, 1, 2),
    BlockType("Q4_0", 2, 32, 18, QuantSpec(4, symmetric=False, group_size=32), _q4_0),
    BlockType("Q4_1", 3, 32, 20, _MINIMA_4, _q4_1),
    BlockType("Q5_0", 6, 32, 22, _SYMMETRIC_8, _q5_0),
    BlockType("Q5_1", 7, 32, 24, _MINIMA_8, _q5_1),
    BlockType("Q8_0", 8, 32, 34, _SYMMETRIC_8, _q8_0),
    BlockType("Q2_K", 10, 256, 84, QuantSpec(2, symmetric=False, group_size=16), _q2_k),
    BlockType("Q3_K", 11, 256, 110, _IN_16, _q3_k),
    BlockType("Q4_K", 12, 256, 144, _MINIMA_4, _q4_k),
    BlockType("Q5_K", 13, 256, 176, _MINIMA_8, _q5_k),
    BlockType("Q6_K", 14, 256, 210, _IN_16, _q6_k),
    BlockType("IQ4_NL", 20, 32, 18, _SYMMETRIC_8, _iq4_nl),
    BlockType("IQ4_XS", 23, 256, 136, _SYMMETRIC_8, _iq4_xs),
    BlockType("MXFP4", 39, 32, 17, QuantSpec(4, group_size=32, grid="fp4"), _mxfp4),
)
TYPES: dict[str, BlockType] = {kind.name: kind for kind in _ALL}
BY_NUMBER: dict[int, BlockType] = {kind.number: kind for kind in _ALL}
