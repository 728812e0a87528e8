"""Linears of floats of 8 to 4 bits, of whichever tool. N outputs, K inputs:

    FP8      codes E4M3 (N, K); a float scale of the tensor, of each row, or of each block of rows and columns
    MXFP4    codes E2M1, two in a byte (N, K/2); scale E8M0 (N, K/32)
    NVFP4    the same codes; scale E4M3 (N, K/16), and one float of the whole tensor, which multiplies or divides
    MXFP6    codes E2M3, four in three bytes (N, 3K/4); scale E8M0 (N, K/32)
    MXFP8    codes E4M3 (N, K); scale E8M0 (N, K/32)

FP8 becomes bf16, rounded once: no kernel multiplies it, and its 256 levels are no grid of ours. FP4 is the grid "fp4",
and FP6 are eighths, which 8-bit integers hold: every number of them stays.
"""

from typing import Literal, NamedTuple

import numpy as np

from bitwright.checkpoints.checkpoint import Module, read_bias
from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import LinearForm, PendingFloat, PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.small_floats import e2m1_codes, e2m3_eighths, e4m3_values, e8m0_values, scaled_e4m3
from bitwright.numerics.spec import QuantSpec

# What is said of files that name the arithmetic of inputs.
FP8_INPUTS = "inputs stay floats, where the file asks for FP8 ones"
FP4_INPUTS = "inputs are int8 or floats of 16 bits, where the file asks for FP4 ones"

_FLOATS = ("F32", "BF16", "F16")
_MX = 32  # values that share a power of two
_ZERO = 8  # the code of 0 on the grid "fp4"


class Fp4(NamedTuple):
    """Suffixes of a linear of 4-bit floats. whole: of the scale of the tensor, "" without one. how: what that does.
    words: whether codes lie in words of 32 bits, and scales in plain bytes."""

    kind: Literal["MXFP4", "NVFP4"]
    codes: str
    scale: str
    whole: str = ""
    how: Literal["multiplies", "divides"] = "multiplies"
    words: bool = False

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return 32 if self.kind == "MXFP4" else 16


def open_fp8(module: Module, scale: str, blocks: tuple[int, int] | None, codes: str = "weight") -> PendingFloat:
    """A linear of FP8. scale: its suffix. blocks: rows and columns that share one, where it has two axes.

    Raises:
        CheckpointError: a tensor is missing, or of another dtype or shape.
    """
    n, k = module.shape(codes, ("F8_E4M3",), 2)
    found = module.shape(scale, _FLOATS)
    sizes = tuple(size for size in found if size != 1)
    if not sizes:
        per, shape = "tensor", (1, 1)
    elif blocks is not None and found == (-(-n // blocks[0]), -(-k // blocks[1])):
        per, shape = f"{blocks[0]}×{blocks[1]} block", found
    elif sizes == (n,):
        per, shape = "row", (n, 1)
    else:
        of = f"one for the tensor, for each of {n} rows" + ("" if blocks is None else f", or blocks of {list(blocks)}")
        raise module.fault(scale, f"has the shape {list(found)}, but scales are {of}")
    load = module.loads(_load_fp8, module, codes, scale, shape, blocks if "block" in per else None)
    return PendingFloat((n, k), "bfloat16", f"FP8 linears with a scale per {per}", load, fp8=True)


def open_fp4(module: Module, names: Fp4) -> PendingLinear:
    """A linear of 4-bit floats.

    Raises:
        CheckpointError: a tensor is missing, or of another dtype or shape.
    """
    n, width = module.shape(names.codes, ("U32" if names.words else "U8",), 2)
    k, group = (8 if names.words else 2) * width, names.group
    if k % group:
        raise module.fault(
            names.codes, f"holds {k} codes a row, which is no multiple of {names.kind}'s groups of {group}"
        )
    dtypes = ("U8",) if names.words else ("U8", "F8_E8M0") if names.kind == "MXFP4" else ("F8_E4M3",)
    module.expect(names.scale, dtypes, (n, k // group), f"{names.kind} codes of N, K = {[n, k]}")
    if names.whole and int(np.prod(module.shape(names.whole, ("F32",)))) != 1:
        raise module.fault(names.whole, "must be one number")
    spec = QuantSpec(bits=4, grid="fp4", group_size=group if group < k else None)
    return PendingLinear((n, k), LinearForm(spec), module.loads(_load_fp4, module, names, spec, (n, k)))


def open_mxfp8(
    module: Module, codes: str = "weight", scale: str = "weight_scale", *, words: bool = False
) -> PendingFloat:
    """A linear of FP8 with a power of two for each 32 inputs. words: whether codes lie in words of 32 bits.

    Raises:
        CheckpointError: a tensor is missing, or of another dtype or shape.
    """
    n, width = module.shape(codes, ("U32" if words else "F8_E4M3",), 2)
    shape = (n, 4 * width if words else width)
    _expect_powers(module, codes, scale, shape)
    load = module.loads(_load_mxfp8, module, codes, scale, words)
    return PendingFloat(shape, "bfloat16", "MXFP8 linears", load, fp8=True)


def open_mxfp6(module: Module) -> PendingLinear:
    """A linear of 6-bit floats with a power of two for each 32 inputs, as 8-bit integers.

    Raises:
        CheckpointError: a tensor is missing, or of another dtype or shape.
    """
    n, width = module.shape("weight_packed", ("U8",), 2)
    if width % (_MX * 3 // 4):
        raise module.fault("weight_packed", f"has {width} bytes a row, which are no whole groups of {_MX} 6-bit codes")
    shape = (n, width * 4 // 3)
    _expect_powers(module, "weight_packed", "weight_scale", shape)
    spec = QuantSpec(bits=8, group_size=_MX if shape[1] > _MX else None)
    return PendingLinear(shape, LinearForm(spec), module.loads(_load_mxfp6, module, spec, shape))


def _expect_powers(module: Module, codes: str, scale: str, shape: tuple[int, int]) -> None:
    n, k = shape
    if k % _MX:
        raise module.fault(codes, f"holds {k} codes a row, which is no multiple of MX's groups of {_MX}")
    module.expect(scale, ("U8", "F8_E8M0"), (n, k // _MX), f"MX codes of N, K = {[n, k]}")


def _powers(module: Module, scale: str) -> np.ndarray:
    """E8M0 scales: float32 (N, G)."""
    found: np.ndarray = e8m0_values()[module.bytes(scale)]
    if np.isnan(found).any():
        raise NumericsError(f"{scale}: every scale must be a number")
    return found


def _load_mxfp8(module: Module, codes: str, scale: str, words: bool) -> Bf16:
    bytes_NK = module.ints(codes).view(np.uint8) if words else module.bytes(codes)
    return scaled_e4m3(_numbers(module, codes, bytes_NK), _powers(module, scale))


def _load_mxfp6(module: Module, spec: QuantSpec, shape: tuple[int, int]) -> QuantizedLinear:
    codes_NK = e2m3_eighths(module.bytes("weight_packed"), shape[1])
    scale_NG = _powers(module, "weight_scale") / np.float32(8)
    if not (scale_NG > 0).all():
        raise NumericsError("weight_scale: a scale is so small that an eighth of it is 0")
    weight = QTensor(codes_NK, scale_NG, None, spec)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, shape[0]))


def _numbers(module: Module, codes: str, bytes_NK: np.ndarray) -> np.ndarray:
    """The same bytes of E4M3, none of which is NaN."""
    if (bytes_NK & 0x7F == 0x7F).any():
        raise module.fault(codes, "holds NaN")
    return bytes_NK


def _load_fp8(module: Module, codes: str, scale: str, shape: tuple[int, int], blocks: tuple[int, int] | None) -> Bf16:
    values, bytes_NK = module.floats(scale).reshape(shape), _numbers(module, codes, module.bytes(codes))
    if blocks is not None:
        values = np.repeat(values, blocks[1], axis=1)[:, : bytes_NK.shape[1]]
        parts = [
            scaled_e4m3(bytes_NK[i * blocks[0] : (i + 1) * blocks[0]], row[None]).bits for i, row in enumerate(values)
        ]
        return Bf16(np.concatenate(parts))
    return scaled_e4m3(bytes_NK, values)


def _load_fp4(module: Module, names: Fp4, spec: QuantSpec, shape: tuple[int, int]) -> QuantizedLinear:
    n, k = shape
    stored = module.ints(names.codes).view(np.uint8) if names.words else module.bytes(names.codes)
    codes_NK = e2m1_codes(stored, k)
    table = e8m0_values() if names.kind == "MXFP4" else e4m3_values()
    scale_NG = table[module.bytes(names.scale)]
    if names.whole:
        whole = np.float32(module.floats(names.whole).reshape(()))
        if not whole > 0:
            raise module.fault(names.whole, f"is {whole}, but must be positive")
        with np.errstate(over="ignore"):
            scale_NG = scale_NG / whole if names.how == "divides" else scale_NG * whole
    if not (scale_NG >= 0).all():
        raise NumericsError(f"{names.scale}: every scale must be a number and not negative")
    if (empty := scale_NG == 0).any():  # a group of zeros
        codes_NK = np.where(np.repeat(empty, k // empty.shape[1], axis=1), np.int8(_ZERO), codes_NK)
        scale_NG = np.where(empty, np.float32(1), scale_NG)
    weight = QTensor(codes_NK, scale_NG.astype(np.float32), None, spec)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, n))
