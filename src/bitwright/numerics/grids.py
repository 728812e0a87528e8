"""From values to codes: the rounding rule of every grid, and the scales that cover a range.

Pure functions, the definition for weights and for static activations:

    uniform     code = clip(round(x / scale) + zero_point, code_min, code_max)        ties to even
    ternary     the same, between −1 and 1
    the others  code = index of the level nearest to x / scale                        ties to the higher level

The way back is `qtensor.code_values`.

The *division* makes codes bit-exact with ONNX QuantizeLinear. Kernels that quantize rows at run time multiply by the
float32 reciprocal of the scale instead, and may differ by one code where x / scale lies next to a tie.
"""

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.codebooks import fit_codebook
from bitwright.numerics.qtensor import QTensor, levels_of, scale_shape
from bitwright.numerics.spec import QuantSpec


def quantize(
    w_NK: Tensor, scale_NG: Tensor, zero_point_NG: Tensor | None, spec: QuantSpec, codebook: Tensor | None = None
) -> QTensor:
    """Round every value to the nearest code; values beyond the grid's ends take its end codes.

    Args:
        w_NK: floating (N, K). Arithmetic is in float32, in float64 if w_NK is.
        scale_NG: floating, positive, of the shape that `scale_shape` gives.
        zero_point_NG: int8, shaped like the scale; None if the spec is symmetric.
        codebook: the levels of the kmeans grid; None fits them to the values (`fit_codebook`).

    Raises:
        NumericsError: NaN or infinite values, or shapes that do not fit the spec.
    """
    check_finite(w_NK, "the values to quantize")
    want = scale_shape(*_matrix_shape(w_NK), spec)
    if tuple(scale_NG.shape) != want:
        raise NumericsError(
            f"a tensor of shape {tuple(w_NK.shape)} needs scales of shape {want}, got {tuple(scale_NG.shape)}"
        )
    if spec.grid == "kmeans" and codebook is None:
        codebook = fit_codebook(w_NK, scale_NG, spec)
    zero_NG1 = None if zero_point_NG is None else zero_point_NG[..., None]
    codes = nearest_codes(grouped(w_NK, spec), scale_NG[..., None], zero_NG1, spec, codebook)
    return QTensor(codes.to(torch.int8).reshape(w_NK.shape), scale_NG, zero_point_NG, spec, codebook)


def fake_quantize(
    w_NK: Tensor, scale_NG: Tensor, zero_point_NG: Tensor | None, spec: QuantSpec, codebook: Tensor | None = None
) -> Tensor:
    """What is left of the values after quantization: float32 (N, K). Arguments and errors as for `quantize`."""
    values: Tensor = quantize(w_NK, scale_NG, zero_point_NG, spec, codebook).dequantize()
    return values


def nearest_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, spec: QuantSpec, codebook: Tensor | None = None
) -> Tensor:
    """The rounding rule alone: codes as whole floats, float64 if x is, else float32.

    Scale and zero point broadcast against x. Nothing is checked, but that a kmeans grid comes with its codebook.
    """
    x = _at_least_float32(x)
    steps = x / scale.to(x.dtype)
    if spec.has_codebook:
        levels = levels_of(spec, codebook, like=steps)
        middles = (levels[1:] + levels[:-1]) / 2
        return torch.bucketize(steps, middles, out_int32=True, right=True).to(steps.dtype)
    codes = steps.round_()
    if zero_point is not None:
        codes += zero_point.to(x.dtype)
    return codes.clamp_(spec.code_min, spec.code_max)


def scale_and_zero_point(
    lo: Tensor, hi: Tensor, spec: QuantSpec, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor | None]:
    """The grid that covers [lo, hi].

        symmetric     scale = max(|lo|, |hi|) / half_steps                (half_steps is 1 but on the uniform grid)
        asymmetric    scale = (hi − lo) / (2^b − 1),   zero_point = clip(round(code_min − lo / scale))

    An asymmetric range is first widened to include 0, so that zero (padding, ReLU, pruned weights) is exact; the zero
    point is chosen for the scale as stored. A range of zeros alone gets scale 1, but where 0 is no level the smallest,
    so that next to nothing is left of it. A scale too small to be stored, or whose float32 reciprocal would overflow,
    becomes the smallest that is neither. On uniform grids of at most 4 bits it is raised to what bfloat16 holds, by at
    most 1/128, and float16 too from 2^-17 on: other formats store such scales in 16 bits, and kernels read fewer bytes.

    Args:
        lo, hi: ends of the ranges, floating, equal shapes, lo ≤ hi; usually (N, G).
        dtype: how the scale will be stored. It is rounded to that dtype here, before anybody chooses codes.

    Returns:
        scale (dtype), zero point (int8, or None if symmetric), both shaped like lo.

    Raises:
        NumericsError: an end is NaN or infinite, lo > hi, or a scale overflows dtype.
    """
    check_finite(lo, "lower ends of the ranges")
    check_finite(hi, "upper ends of the ranges")
    lo, hi = lo.double(), hi.double()  # hi − lo of two large float32 would overflow float32
    if bool((lo > hi).any()):
        raise NumericsError(f"{int((lo > hi).sum())} of {lo.numel()} ranges have their lower end above their upper end")
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)
    ideal = torch.maximum(-lo, hi) / spec.half_steps if spec.symmetric else (hi - lo) / (2**spec.bits - 1)
    scale = _stored(torch.where(ideal == 0, 1.0, ideal) if spec.has_zero else ideal, dtype)
    if spec.scale_in_16_bits:
        scale = _in_16_bits(scale)
    if spec.symmetric:
        return scale, None
    zero = torch.round(spec.code_min - lo / scale.double()).clamp(spec.code_min, spec.code_max)
    return scale, zero.to(torch.int8)


def grouped(w_NK: Tensor, spec: QuantSpec) -> Tensor:
    """View (N, K) with the values that share a scale along the last axis: (N, G, K/G), or (1, 1, N·K) per tensor.

    Raises:
        NumericsError: not two-dimensional, empty, or K is not a multiple of the group size.
    """
    n, groups = scale_shape(*_matrix_shape(w_NK), spec)
    return w_NK.reshape(n, groups, -1)


def check_finite(values: Tensor, what: str) -> None:
    """Raise NumericsError, with how many of how many, if any value is NaN or infinite."""
    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        raise NumericsError(
            f"{what}: {bad} of {values.numel()} are NaN or infinite; "
            "check the checkpoint, or run the model in a wider dtype (float32 or bfloat16)"
        )


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 scales to their storage dtype, keeping them positive, finite and invertible in float32."""
    info = torch.finfo(dtype)
    if bool((scale > info.max).any()):
        raise NumericsError(
            f"scale {float(scale.max()):.4g} exceeds the largest {dtype} ({info.max:.4g}); store scales in float32"
        )
    # Subnormal float16 scales are kept: at the smallest normal, 6e-5, a row of small weights would lose most codes.
    smallest = max(info.smallest_normal * info.eps, torch.finfo(torch.float32).smallest_normal)
    return scale.clamp(min=smallest).to(dtype)


def _in_16_bits(scale: Tensor) -> Tensor:
    """The next values from these on up that bfloat16 holds, in the same dtype: rounded down, they would cut the ends of
    a range."""
    bits = scale.float().view(torch.int32)
    raised = (bits + 0xFFFF) & -0x10000
    return raised.view(torch.float32).to(scale.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _matrix_shape(w_NK: Tensor) -> tuple[int, int]:
    if w_NK.ndim != 2 or w_NK.numel() == 0 or not w_NK.is_floating_point():
        raise NumericsError(f"need a non-empty floating matrix (N, K), got {w_NK.dtype} {tuple(w_NK.shape)}")
    return w_NK.shape[0], w_NK.shape[1]
