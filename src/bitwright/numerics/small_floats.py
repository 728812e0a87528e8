"""Floats of a byte and less, which numpy lacks: what their bits stand for, as tables.

E4M3    1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, NaN is 0x7f and 0xff       (OCP FP8, 2023)
E8M0    2^(byte − 127), 0xff is NaN: the scale of a block of MXFP4, MXFP6 and MXFP8           (OCP MX, 2023)
E2M1    1 sign, 2 exponent, 1 mantissa bit; two in a byte, the lower half first: the grid "fp4"
E2M3    1 sign, 2 exponent, 3 mantissa bits: eighths, up to 60 of them; four in three bytes         (OCP MX, 2023)
"""

from functools import cache

import numpy as np

from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Bf16, narrow
from bitwright.numerics.bits import unpack_bytes, unpack_words
from bitwright.numerics.spec import QuantSpec

FP4 = QuantSpec(bits=4, grid="fp4")
_LARGEST_BF16 = float(np.float32(2.0**127 * (2 - 2**-7)))
_AT_ONCE = 1 << 20  # values in float32 at a time


@cache
def e4m3_values() -> np.ndarray:
    """What each byte stands for: float32 (256,)."""
    byte = np.arange(256)
    exponent, mantissa = byte // 8 % 16, byte % 8
    normal = np.ldexp(1.0 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[byte % 128 == 127] = np.nan
    return (np.where(byte < 128, 1.0, -1.0) * values).astype(np.float32)


@cache
def e8m0_values() -> np.ndarray:
    """What each byte stands for: float32 (256,)."""
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[255] = np.nan
    return values.astype(np.float32)


def scaled_e4m3(bytes_NK: np.ndarray, scale_NG: np.ndarray) -> Bf16:
    """E4M3 values times their scales, rounded once, to bf16.

    bytes_NK: uint8 (N, K), no NaN. scale_NG: float32, each for K / G neighbours of a row; or one row of them for all.
    The rows are taken part by part.

    Raises:
        NumericsError: what comes out is not finite.
    """
    n, k = bytes_NK.shape
    scale_NG = np.broadcast_to(scale_NG, (n, scale_NG.shape[1]))
    bits = np.empty((n, k), np.uint16)
    step = max(1, _AT_ONCE // max(1, k))
    for begin in range(0, n, step):
        part = slice(begin, begin + step)
        values = e4m3_values()[bytes_NK[part]].reshape(-1, scale_NG.shape[1], k // scale_NG.shape[1])
        with np.errstate(over="ignore"):
            values *= scale_NG[part, :, None]
        if not (np.abs(values) <= _LARGEST_BF16).all():
            raise NumericsError("a scale is so large that weights are not finite")
        bits[part] = narrow(values.reshape(-1, k)).bits
    return Bf16(bits)


def e2m1_codes(bytes_: np.ndarray, k: int) -> np.ndarray:
    """Codes of the grid "fp4", int8 (N, K), of E2M1 values, uint8 (N, K / 2). The file's are a sign and a magnitude,
    the grid's count the levels from −6 up.

    Raises:
        NumericsError: another number of bytes.
    """
    stored = unpack_bytes(bytes_, FP4, k)
    codes: np.ndarray = np.where(stored < 8, stored + np.int8(8), np.int8(15) - stored)
    return codes


def e2m3_eighths(bytes_: np.ndarray, k: int) -> np.ndarray:
    """E2M3 values in eighths, int8 (N, K) in [−60, 60], of uint8 (N, K · 3 / 4), the lowest bits first; K is a multiple
    of 16.

    Raises:
        NumericsError: another number of bytes.
    """
    signed = unpack_words(np.ascontiguousarray(bytes_).view(np.int32), 6, k)
    eighths: np.ndarray = _eighths()[signed.view(np.uint8) + np.uint8(32)]  # wraps to the code as it is stored
    return eighths


@cache
def _eighths() -> np.ndarray:
    """What each code of E2M3 stands for, in eighths: int8 (64,)."""
    code = np.arange(64)
    exponent, mantissa = code // 8 % 4, code % 8
    size = np.where(exponent == 0, mantissa, np.ldexp(mantissa + 8, exponent - 1))
    return np.where(code < 32, size, -size).astype(np.int8)
