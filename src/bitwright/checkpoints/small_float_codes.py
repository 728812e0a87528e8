"""Linears of 8-bit and 4-bit floats, of whichever tool. N outputs, K inputs:

    FP8      codes E4M3 (N, K); a float scale of the tensor, of each row, or of each block of rows and columns
    MXFP4    codes E2M1, two in a byte (N, K/2); scale E8M0 (N, K/32)
    NVFP4    the same codes; scale E4M3 (N, K/16), and one float of the whole tensor, which multiplies or divides

FP8 becomes bf16, rounded once: no kernel multiplies it, and its 256 levels are no grid of ours. FP4 is the grid "fp4",
of which every number stays.
"""

from typing import Literal, NamedTuple

import numpy as np

from bitwright.checkpoints.checkpoint import Module, read_bias
from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import LinearForm, PendingFloat, PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.small_floats import e2m1_codes, e4m3_values, e8m0_values, scaled_e4m3
from bitwright.numerics.spec import QuantSpec

# What is said of files that name the arithmetic of inputs.
FP8_INPUTS = "inputs stay floats, where the file asks for FP8 ones"
FP4_INPUTS = "inputs are int8 or floats of 16 bits, where the file asks for FP4 ones"

_FLOATS = ("F32", "BF16", "F16")
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


def _load_fp8(module: Module, codes: str, scale: str, shape: tuple[int, int], blocks: tuple[int, int] | None) -> Bf16:
    values, bytes_NK = module.floats(scale).reshape(shape), module.bytes(codes)
    if (bytes_NK & 0x7F == 0x7F).any():
        raise module.fault(codes, "holds NaN")
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
