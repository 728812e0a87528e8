"""Finds the codes that float weights already are: those of a model trained for a grid, or dequantized from one.

A weight is code · scale, rounded to the dtype of the file. So a value w of code c says that the scale lies in
[(|w| − u) / |c|, (|w| + u) / |c|], with u half a unit in w's last place, and the values of a group share one: in the
middle of what all of them allow, held in as few bits as give the same weights again. The code
of the largest value is not known; it is tried from 8 down. Random weights have no such scale: of 32 values each would
lie by chance next to a whole multiple.
"""

from dataclasses import replace

import torch
from torch import Tensor

from bitwright.numerics.grids import grouped
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

_LARGEST = (7, 6, 5, 4, 8)  # magnitudes of a group's largest code; the others are halves of these
# That weights were rounded to, and that scales are held in: the coarsest first.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_AT_ONCE = 1 << 20  # values


def is_reproducible(spec: QuantSpec) -> bool:
    """Whether weights may be codes of this spec already: integers of 4 bits with a scale for each group."""
    return spec.grid == "uniform" and spec.bits == 4 and spec.group_size is not None


def find_codes(w_NK: Tensor, spec: QuantSpec) -> QTensor | None:
    """The codes of which these weights are the dequantized values, up to the rounding of the dtype that holds them;
    None if there are none.

    A file of llama.cpp (Q4_0) has scales of either sign, and codes −8…7 of them. A positive scale turns those of a
    negative one into −7…8, which only a grid with zero points holds, with the zero point −1.

    Args:
        w_NK: float16, bfloat16, or float32 that may hold values of these. spec: as `is_reproducible` has it.
    """
    parts = []
    for rows in torch.split(w_NK, max(1, _AT_ONCE // w_NK.shape[1])):
        found = _codes_of(rows, spec)
        if found is None:
            return None
        parts.append(found)
    codes, scales, zeros = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return QTensor(codes.reshape(w_NK.shape), scales, None if spec.symmetric else zeros, replace(spec))


def _codes_of(w_NK: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor] | None:
    """int8 codes (N, G, g), float32 scales and int8 zero points (N, G)."""
    wide = w_NK.float()
    if not bool(torch.isfinite(wide).all()):
        return None
    dtype = next(dtype for dtype in _DTYPES if torch.equal(wide.to(dtype).float(), wide))
    w_NGg = grouped(wide, spec).double()
    low_NGg, high_NGg = _rounded_from(w_NGg.abs(), dtype)
    top_NG = w_NGg.abs().amax(-1)
    open_NG = top_NG > 0  # zeros are codes 0
    codes_NGg = torch.zeros_like(w_NGg)
    scale_NG, zero_NG = torch.ones_like(top_NG), torch.zeros_like(top_NG)
    for largest in _LARGEST:
        if not bool(open_NG.any()):
            break
        tried = torch.round(w_NGg / (top_NG / largest).clamp(min=1e-300)[..., None])
        steps, none = tried.abs().clamp(min=1), tried == 0
        low_NG = (low_NGg / steps).masked_fill(none, 0).amax(-1)
        high_NG = (high_NGg / steps).masked_fill(none, float("inf")).amin(-1)
        zero = _zero_points(tried, spec)
        for held in _DTYPES:
            scale = ((low_NG + high_NG) / 2).to(held).double()
            again = (tried * scale[..., None]).float().to(dtype).double()
            fits = open_NG & (zero <= 0) & (again == w_NGg).all(-1)
            codes_NGg = torch.where(fits[..., None], tried + zero[..., None], codes_NGg)
            scale_NG, zero_NG = torch.where(fits, scale, scale_NG), torch.where(fits, zero, zero_NG)
            open_NG &= ~fits
    if bool(open_NG.any()):
        return None
    return codes_NGg.to(torch.int8), scale_NG.float(), zero_NG.to(torch.int8)


def _rounded_from(size: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The ends of what a dtype rounds to each of these magnitudes, which it holds."""
    info = torch.finfo(dtype)
    mantissa, exponent = torch.frexp(size.clamp(min=info.smallest_normal))
    half = torch.ldexp(torch.full_like(size, info.eps / 2), exponent - 1)
    return size - torch.where(
        mantissa == 0.5, half / 2, half
    ), size + half  # neighbours below a power of two are nearer


def _zero_points(codes_NGg: Tensor, spec: QuantSpec) -> Tensor:
    """0, or −1 where codes reach one too far and the spec has zero points; 1 where nothing helps."""
    low, high = codes_NGg.amin(-1), codes_NGg.amax(-1)
    inside = (low >= spec.code_min) & (high <= spec.code_max)
    shifted = (low - 1 >= spec.code_min) & (high - 1 <= spec.code_max) & (not spec.symmetric)
    return torch.where(inside, 0.0, torch.where(shifted, -1.0, 1.0))
