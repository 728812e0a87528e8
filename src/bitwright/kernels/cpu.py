"""The CPU kernels on torch's tensors: one call per operator. What cannot run raises KernelError."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bitwright.errors import KernelError
from bitwright.kernels import layouts, native
from bitwright.kernels.dispatch import active_isa, available, isa_index
from bitwright.numerics.spec import QuantSpec

_MAX_K = 65793  # 255 · 128 · K must stay below 2^31
_ALIGNMENT = 64
_ASYMMETRIC, _SYMMETRIC, _STATIC = 0, 1, 2  # as in quantize_rows/contract.h


@functools.cache
def has_gram() -> bool:
    """Whether `add_gram` runs: the module loads, and the active instruction set, on this machine, multiplies bf16."""
    return available() and bool(native.load().has_gram(isa_index()))


@dataclass(frozen=True, slots=True)
class InputGrid:
    """How a kernel turns float rows into codes: a dynamic grid per row, or one static scale and zero point."""

    mode: int
    scale: float = 1.0
    zero_point: int = 0
    code_min: int = -128

    @classmethod
    def of(cls, spec: QuantSpec, scale: Tensor | None = None, zero_point: Tensor | None = None) -> "InputGrid":
        """The grid of an input spec.

        Raises:
            KernelError: `runs_natively` says no; or a static scale is missing, or not a normal positive float32.
        """
        if not input_runs_natively(spec):
            raise KernelError(
                f"no int8 kernel for the input spec {spec}: it takes 8 bits, dynamic per row or static per tensor"
            )
        if spec.dynamic:
            return cls(_SYMMETRIC if spec.symmetric else _ASYMMETRIC, code_min=spec.code_min)
        if scale is None or scale.numel() != 1 or (zero_point is not None and zero_point.numel() != 1):
            raise KernelError("a static input spec needs one scale and at most one zero point for the whole tensor")
        value = float(scale.float())
        zero = 0 if zero_point is None else int(zero_point)
        if not torch.finfo(torch.float32).tiny <= value <= torch.finfo(torch.float32).max or not -128 <= zero <= 127:
            raise KernelError(
                f"a static input grid with scale {value}, zero_point {zero}: the scale must be a normal positive "
                "float32, the zero point within [-128, 127]"
            )
        return cls(_STATIC, value, zero, spec.code_min)


def input_runs_natively(spec: QuantSpec) -> bool:
    """Whether the kernels quantize to this spec: 8 bits, static per tensor or, on a narrow grid, dynamic per row."""
    narrow = not (spec.symmetric and spec.uses_full_range)
    return (
        spec.bits == 8 and spec.group_size is None and spec.dynamic != spec.per_tensor and (narrow or not spec.dynamic)
    )


def weight_runs_natively(spec: QuantSpec) -> bool:
    """Whether the int8 kernels multiply by such a weight: symmetric, with one scale per row or per tensor, of which its
    values are whole multiples. Codes of fewer bits are int8 numbers too.
    """
    return spec.symmetric and spec.group_size is None and not spec.has_codebook


def linear_w8a8(
    x_MK: Tensor,
    weight: Tensor,
    colsum: Tensor,
    scale_n: Tensor,
    bias: Tensor,
    n: int,
    grid: InputGrid,
    gelu: bool = False,
    shift: Tensor | None = None,
    multiplier: Tensor | None = None,
) -> Tensor:
    """Quantize the rows of x, multiply by a packed int8 weight: (M, N) of x's dtype. See `reference.linear_w8a8`.

    Args:
        x_MK: float32, or bfloat16 (then only input and output are rounded to it), on the CPU. Rows may be strided.
        weight: `layouts.pack` of the codes; colsum: their `layouts.column_sums`.
        scale_n, bias: float32, `layouts.pad_columns`.
        n: output features, before padding.
        shift, multiplier: both or neither, float32, `layouts.pad_inputs`; (x − shift) · multiplier is quantized then.

    Raises:
        KernelError: shapes, dtypes or strides are not these; K is so large that an int32 sum could overflow.
    """
    arguments = (x_MK, weight, colsum, scale_n, bias, n, grid.mode, grid.scale, grid.zero_point, grid.code_min, gelu)
    if torch.compiler.is_compiling():
        y: Tensor = torch.ops.bitwright.linear_w8a8(*arguments, shift, multiplier)
        return y
    return _linear_w8a8(*arguments, shift, multiplier)


def _linear_w8a8(
    x: Tensor,
    weight: Tensor,
    colsum: Tensor,
    scale_n: Tensor,
    bias: Tensor,
    n: int,
    mode: int,
    static_scale: float,
    static_zero_point: int,
    code_min: int,
    gelu: bool,
    shift: Tensor | None,
    multiplier: Tensor | None,
) -> Tensor:
    _check_float_rows(x)
    m, k = x.shape
    _check_weight(weight, colsum, scale_n, bias, n, k)
    _check_input_transform(shift, multiplier, k)
    if x.stride(1) != 1 and k > 1:
        x = x.contiguous()
    y = torch.empty((m, n), dtype=x.dtype)
    if m == 0:
        return y
    module = native.load()
    scratch = torch.empty(module.scratch_bytes(m, k), dtype=torch.uint8)
    module.linear_w8a8(
        isa_index(),
        torch.get_num_threads(),  # in a thread where torch has not yet run, OpenMP alone would not know torch's setting
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        x.stride(0),
        m,
        k,
        0 if shift is None else shift.data_ptr(),
        0 if multiplier is None else multiplier.data_ptr(),
        mode,
        static_scale,
        static_zero_point,
        code_min,
        scratch.data_ptr(),
        weight.data_ptr(),
        colsum.data_ptr(),
        scale_n.data_ptr(),
        bias.data_ptr(),
        y.data_ptr(),
        n,
        gelu,
    )
    return y


class FeatureStats(NamedTuple):
    """What rows showed of each of their K features.

    min_K, max_K: float32, NaN for a feature that holds a NaN or an infinity. sum_K, sum_abs_K: float64, Σx and Σ|x|.
    """

    min_K: Tensor
    max_K: Tensor
    sum_K: Tensor
    sum_abs_K: Tensor


def add_gram(x_MK: Tensor, gram_KK: Tensor) -> FeatureStats:
    """Add Σ x xᵀ to a Gram matrix in place, x rounded to bf16 and summed in float32, and look at x as it is. See
    `reference.gram`.

    Args:
        x_MK: float32 or bfloat16, on the CPU, at least one row. Rows may be strided.
        gram_KK: float32, contiguous, symmetric; of zeros at first. Lost if x holds a NaN or an infinity.

    Raises:
        KernelError: shapes, dtypes or strides are not these; `has_gram` says no.
    """
    _check_float_rows(x_MK)
    m, k = x_MK.shape
    if not (m and k and gram_KK.shape == (k, k) and gram_KK.dtype == torch.float32 and gram_KK.is_contiguous()):
        raise KernelError(
            f"rows {tuple(x_MK.shape)} are added to a contiguous float32 Gram matrix ({k}, {k}), "
            f"got {gram_KK.dtype} {tuple(gram_KK.shape)}"
        )
    if not has_gram():
        raise KernelError(f"{active_isa()} on this machine does not multiply bf16; multiply in float32 by torch")
    if x_MK.stride(1) != 1 and k > 1:
        x_MK = x_MK.contiguous()
    seen = FeatureStats(
        torch.full((k,), torch.inf),
        torch.full((k,), -torch.inf),
        torch.zeros(k, dtype=torch.float64),
        torch.zeros(k, dtype=torch.float64),
    )
    module = native.load()
    scratch = torch.empty(module.gram_scratch_bytes(m, k), dtype=torch.uint8)
    module.add_gram(
        isa_index(),
        torch.get_num_threads(),
        x_MK.data_ptr(),
        x_MK.dtype == torch.bfloat16,
        x_MK.stride(0),
        m,
        k,
        scratch.data_ptr(),
        *(values.data_ptr() for values in seen),
        gram_KK.data_ptr(),
    )
    return seen


def _check_float_rows(x: Tensor) -> None:
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.bfloat16) or not x.is_cpu:
        raise KernelError(
            f"x must be float32 or bfloat16 (M, K) on the CPU, got {x.dtype} {tuple(x.shape)} on {x.device}"
        )


def _check_weight(weight: Tensor, colsum: Tensor, scale_n: Tensor, bias: Tensor, n: int, k: int) -> None:
    if not 1 <= k <= _MAX_K:
        raise KernelError(f"K = {k}: int8 sums are exact in int32 for K from 1 to {_MAX_K}; keep this layer in 16 bit")
    if n < 1:
        raise KernelError(f"N = {n}: a linear has at least one output")
    blocks = -(-n // layouts.BLOCK)
    columns = (blocks * layouts.BLOCK,)
    packed = (blocks, -(-k // layouts.PAD_K) * layouts.PAD_K // layouts.GROUP, layouts.BLOCK, layouts.GROUP)
    for name, tensor, dtype, shape in (
        ("weight", weight, torch.int8, packed),
        ("colsum", colsum, torch.int32, columns),
        ("scale", scale_n, torch.float32, columns),
        ("bias", bias, torch.float32, columns),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
            raise KernelError(
                f"N = {n}, K = {k}: {name} must be a contiguous {dtype} {shape} on the CPU, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.data_ptr() % _ALIGNMENT:
            raise KernelError(f"{name} must begin at a multiple of {_ALIGNMENT} bytes; copy it with .clone()")


def _check_input_transform(shift: Tensor | None, multiplier: Tensor | None, k: int) -> None:
    if (shift is None) != (multiplier is None):
        raise KernelError("an input transform needs both a shift and a multiplier; pass zeros or ones for the other")
    columns = (-(-k // layouts.PAD_K) * layouts.PAD_K,)
    for name, tensor in (("shift", shift), ("multiplier", multiplier)):
        if tensor is not None and (
            tensor.shape != columns or tensor.dtype != torch.float32 or not tensor.is_contiguous() or not tensor.is_cpu
        ):
            raise KernelError(
                f"K = {k}: the input's {name} must be a contiguous torch.float32 {columns} on the CPU, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )


_operator = torch.library.custom_op("bitwright::linear_w8a8", _linear_w8a8, mutates_args=(), device_types="cpu")


@_operator.register_fake
def _shape_of_linear_w8a8(
    x: Tensor,
    weight: Tensor,
    colsum: Tensor,
    scale_n: Tensor,
    bias: Tensor,
    n: int,
    mode: int,
    static_scale: float,
    static_zero_point: int,
    code_min: int,
    gelu: bool,
    shift: Tensor | None,
    multiplier: Tensor | None,
) -> Tensor:
    return x.new_empty((x.shape[0], n))
