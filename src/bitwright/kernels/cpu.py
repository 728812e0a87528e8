"""The CPU kernels on torch's tensors: one call per operator. What cannot run raises KernelError."""

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bitwright.errors import KernelError
from bitwright.kernels import layouts, native
from bitwright.kernels.dispatch import active_isa, available, chosen, native_isa
from bitwright.kernels.input_grid import InputGrid, QuantizeMode
from bitwright.kernels.torch_ops import ACTIVATIONS, QUANTIZE_MODES
from bitwright.numerics.spec import QuantSpec

if TYPE_CHECKING:
    from bitwright.kernels import _native

_ALIGNMENT = 64


@functools.cache
def has_gram() -> bool:
    """Whether `add_gram` runs: the module loads, and the active instruction set, on this machine, multiplies bf16."""
    return available() and chosen("gram") is not None


def weight_runs_natively(spec: QuantSpec) -> bool:
    """Whether the int8 kernels multiply by such a weight: symmetric, with one scale per row or per tensor, of which its
    values are whole multiples. Codes of fewer bits are int8 numbers too.
    """
    return spec.symmetric and spec.group_size is None and not spec.has_codebook


class PackedLinear(NamedTuple):
    """The constants of an int8 linear.

    weight: `layouts.pack` of the codes; colsum: their `layouts.column_sums`. scale_n, bias: float32,
    `layouts.pad_columns`. shift, multiplier: both or neither, float32, `layouts.pad_inputs`; what is quantized then is
    (x − shift) · multiplier.
    """

    weight: Tensor
    colsum: Tensor
    scale_n: Tensor
    bias: Tensor
    shift: Tensor | None = None
    multiplier: Tensor | None = None


def linear_w8a8(x_MK: Tensor, linear: PackedLinear, n: int, grid: InputGrid, activation: str = "none") -> Tensor:
    """Quantize the rows of x, multiply by a packed int8 weight: (M, N) of x's dtype. See `reference.linear_w8a8`.

    Args:
        x_MK: float32, or bfloat16 (then only input and output are rounded to it), on the CPU. Rows may be strided.
        n: output features, before padding.
        activation: of the output, by name (`Activation` of the native module).

    Raises:
        KernelError: shapes, dtypes or strides are not these; K is so large that an int32 sum could overflow; no such
            activation.
    """
    if (linear.shift is None) != (linear.multiplier is None):
        raise KernelError("an input transform needs both a shift and a multiplier; pass zeros or ones for the other")
    if torch.compiler.is_compiling():
        mode, function = QUANTIZE_MODES.index(grid.mode), ACTIVATIONS.index(activation)
        y: Tensor = torch.ops.bitwright.linear_w8a8(
            x_MK, *linear, n, mode, grid.scale, grid.zero_point, grid.code_min, function
        )
        return y
    return _linear_w8a8(x_MK, linear, n, grid, activation)


def _linear_w8a8(x: Tensor, linear: PackedLinear, n: int, grid: InputGrid, activation: str) -> Tensor:
    _check_float_rows(x)
    m, k = x.shape
    weight, colsum, scale_n, bias = _checked_weight(linear, n, k)
    shift, multiplier = (0, 0) if linear.shift is None else _checked_input_transform(linear, k)
    if x.stride(1) != 1 and k > 1:
        x = x.contiguous()
    y = torch.empty((m, n), dtype=x.dtype)
    if m == 0:
        return y
    module = native.load()
    scratch = torch.empty(module.scratch_bytes(m, k), dtype=torch.uint8)
    operator = module.QuantizeLinearW8A8(
        x=x.data_ptr(),
        bf16=x.dtype == torch.bfloat16,
        x_stride=x.stride(0),
        m=m,
        k=k,
        shift=shift,
        multiplier=multiplier,
        mode=_mode(grid.mode),
        static_scale=grid.scale,
        static_zero_point=grid.zero_point,
        code_min=grid.code_min,
        weight=weight,
        colsum=colsum,
        scale_n=scale_n,
        bias=bias,
        y=y.data_ptr(),
        n=n,
        activation=_activation(activation),
        scratch=scratch.data_ptr(),
    )
    # In a thread where torch has not yet run, OpenMP alone would not know torch's setting.
    module.quantize_linear_w8a8(native_isa(), torch.get_num_threads(), operator)
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
        raise KernelError(f"{active_isa()} on this machine does not multiply bf16; multiply in float32 with torch")
    if x_MK.stride(1) != 1 and k > 1:
        x_MK = x_MK.contiguous()
    seen = FeatureStats(
        torch.full((k,), torch.inf, dtype=torch.float32),
        torch.full((k,), -torch.inf, dtype=torch.float32),
        torch.zeros(k, dtype=torch.float64),
        torch.zeros(k, dtype=torch.float64),
    )
    module = native.load()
    scratch = torch.empty(module.gram_scratch_bytes(m, k), dtype=torch.uint8)
    operator = module.Gram(
        x=x_MK.data_ptr(),
        bf16=x_MK.dtype == torch.bfloat16,
        x_stride=x_MK.stride(0),
        m=m,
        k=k,
        packed=scratch.data_ptr(),
        low=seen.min_K.data_ptr(),
        high=seen.max_K.data_ptr(),
        sum=seen.sum_K.data_ptr(),
        sum_abs=seen.sum_abs_K.data_ptr(),
        gram=gram_KK.data_ptr(),
    )
    module.add_gram(native_isa(), torch.get_num_threads(), operator)
    return seen


def _check_float_rows(x: Tensor) -> None:
    if x.ndim != 2 or x.dtype not in (torch.float32, torch.bfloat16) or not x.is_cpu:
        raise KernelError(
            f"x must be float32 or bfloat16 (M, K) on the CPU, got {x.dtype} {tuple(x.shape)} on {x.device}"
        )


@functools.cache
def _mode(name: QuantizeMode) -> "_native.QuantizeMode":
    mode: _native.QuantizeMode = native.load().QuantizeMode[name]
    return mode


@functools.cache
def _activation(name: str) -> "_native.Activation":
    activation: _native.Activation | None = native.load().Activation.__members__.get(name)
    if activation is None:
        raise KernelError(
            f"the kernels have no activation {name!r}; they have {', '.join(native.load().Activation.__members__)}"
        )
    return activation


def _checked_weight(linear: PackedLinear, n: int, k: int) -> list[int]:
    """Addresses of weight, colsum, scale_n, bias."""
    if not 1 <= k <= layouts.MAX_K:
        raise KernelError(
            f"K = {k}: int8 sums are exact in int32 only for K from 1 to {layouts.MAX_K}; keep this layer in 16 bit"
        )
    if n < 1:
        raise KernelError(f"N = {n}: a linear has at least one output")
    blocks = -(-n // layouts.BLOCK)
    columns = (blocks * layouts.BLOCK,)
    packed = (blocks, -(-k // layouts.PAD_K) * layouts.PAD_K // layouts.GROUP, layouts.BLOCK, layouts.GROUP)
    addresses = []
    for name, tensor, dtype, shape in (
        ("weight", linear.weight, torch.int8, packed),
        ("colsum", linear.colsum, torch.int32, columns),
        ("scale", linear.scale_n, torch.float32, columns),
        ("bias", linear.bias, torch.float32, columns),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
            raise KernelError(
                f"N = {n}, K = {k}: {name} must be a contiguous {dtype} {shape} on the CPU, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        addresses.append(tensor.data_ptr())
        if addresses[-1] % _ALIGNMENT:
            raise KernelError(f"{name} must begin at a multiple of {_ALIGNMENT} bytes; copy it with .clone()")
    return addresses


def _checked_input_transform(linear: PackedLinear, k: int) -> tuple[int, int]:
    """Addresses of shift and multiplier."""
    assert linear.shift is not None
    assert linear.multiplier is not None
    columns = (-(-k // layouts.PAD_K) * layouts.PAD_K,)
    for name, tensor in (("shift", linear.shift), ("multiplier", linear.multiplier)):
        if tensor.shape != columns or tensor.dtype != torch.float32 or not tensor.is_contiguous() or not tensor.is_cpu:
            raise KernelError(
                f"K = {k}: the input's {name} must be a contiguous torch.float32 {columns} on the CPU, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
    return linear.shift.data_ptr(), linear.multiplier.data_ptr()
