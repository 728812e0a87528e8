"""The modules that replace a model's linears and embeddings: `QuantLinear`, `HalfLinear`, `QuantEmbedding`.

All are for inference: inputs are detached, since no gradient flows through codes. `QuantLinear` and `HalfLinear` return
the dtype they were given, `QuantEmbedding` float32. Codes, scales and 16-bit weights keep their dtypes under `.half()`
and `.to(dtype)`: those would change what the numbers mean.
"""

import functools
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import KernelError
from bitwright.kernels import cpu, dispatch, layouts, reference, torch_ops
from bitwright.kernels.input_grid import InputGrid, input_runs_natively, rounded_by_groups
from bitwright.numerics.linear import InputTransform, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec


class _ExactModule(nn.Module):
    """A module whose buffers follow `.to(device)`, never `.to(dtype)`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self


class QuantLinear(_ExactModule):
    """y = x̂ Wᵀ + b with a quantized weight; then exact GELU if asked.

    x̂ is x, or (x − input_shift_K) / input_scale_K where these are given (computed as a product with the float32
    reciprocal), rounded to the grid of the input spec if there is one.

    A linear that `runs_natively` is packed for the int8 kernels, and nothing else runs it on a CPU: if they are not
    available, forward raises. Any other linear, and any other device, takes the reference path: the weight is
    dequantized at each call, and multiplied in bfloat16 if x is that and the device multiplies it, else in float32.
    Codes of inputs are multiplied as whole numbers, which both hold exactly; their scale comes after the sum. The
    kernels read and write float32 and bfloat16; in a bfloat16 model what lies between the linears (attention, norms) is
    cheaper too.

    Attributes:
        in_features, out_features: K, N. gelu: whether the output goes through GELU. name: for messages.
        weight: the codes, int8, packed if `native`. weight_spec: their spec.
        input_spec: None for float inputs. input_scale, input_zero_point: of a static one, tensors of one value.
        input_shift, input_multiplier: `layouts.pad_inputs`, or None.
        rounds_groups: round float inputs to int8 by token and group, and levels of a codebook to whole ones, as the
            engine's 4-bit kernel does, where that takes the weight: the same numbers, but for the order of sums. For
            comparisons; it takes more time.
    """

    rounds_groups = False

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    weight_minimum: Tensor | None
    codebook: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    input_shift: Tensor | None
    input_multiplier: Tensor | None
    colsum: Tensor
    scale_n: Tensor
    bias_n: Tensor

    def __init__(self, linear: QuantizedLinear, *, gelu: bool = False, name: str = "") -> None:
        """The module of a quantized linear, of numpy or of torch.

        Raises:
            KernelError: the kernels have no grid for its input spec.
        """
        super().__init__()
        linear = linear.torch()
        qtensor, bias, input_spec, (n, k) = linear.weight, linear.bias_N, linear.input_spec, linear.shape
        input_scale, input_zero_point = _static_tensors(linear)
        self.in_features, self.out_features, self.gelu, self.name = k, n, gelu, name
        self.weight_spec, self.input_spec = qtensor.spec, input_spec
        self.native = runs_natively(qtensor.spec, input_spec)
        self._grid = None
        if self.native and input_spec is not None:
            torch_ops.load()  # for torch.compile
            self._grid = InputGrid.of(input_spec, linear.static)
            self._keep("colsum", layouts.column_sums(qtensor.codes_NK))
            self._keep("scale_n", layouts.pad_columns(qtensor.scale_NG.float().flatten().expand(n)))
            self._keep(
                "bias_n", layouts.pad_columns(torch.zeros(n, dtype=torch.float32) if bias is None else bias.float())
            )
        self._keep("weight", layouts.pack(qtensor.codes_NK) if self.native else qtensor.codes_NK)
        self._keep("weight_scale", qtensor.scale_NG)
        self._keep("weight_zero_point", qtensor.zero_point_NG)
        self._keep("weight_minimum", qtensor.minimum_NG)
        self._keep("codebook", qtensor.codebook)
        self._keep("bias", bias)
        self._keep("input_scale", input_scale)
        self._keep("input_zero_point", input_zero_point)
        shift, multiplier = _padded_transform(linear.transform)
        self._keep("input_shift", shift)
        self._keep("input_multiplier", multiplier)

    def qtensor(self) -> QTensor:
        """The quantized weight, unpacked."""
        return QTensor(
            self._codes(), self.weight_scale, self.weight_zero_point, self.weight_spec, self.codebook,
            self.weight_minimum,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """x float (..., K) -> (..., N) of the same dtype.

        Raises:
            KernelError: the last dimension of x is not K; the int8 kernels are needed and not available.
        """
        if x.shape[-1] != self.in_features:
            raise KernelError(
                f"{self.name or 'QuantLinear'}: the input has the shape {tuple(x.shape)}, but K = {self.in_features}"
            )
        x_MK = x.detach().reshape(-1, self.in_features)
        if x.dtype != torch.bfloat16:  # which the kernels read and write themselves
            x_MK = x_MK.float()
        if self._grid is not None and x.device.type == "cpu":
            constants = cpu.PackedLinear(
                self.weight, self.colsum, self.scale_n, self.bias_n, self.input_shift, self.input_multiplier
            )
            activation = "gelu" if self.gelu else "none"
            y_MN = cpu.linear_w8a8(x_MK, constants, self.out_features, self._grid, activation)
        else:
            y_MN = self._forward_by_reference(x_MK)
        return y_MN.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _forward_by_reference(self, x_MK: Tensor) -> Tensor:
        """x_MK float32 or bfloat16 -> (M, N) of either."""
        k, dtype = self.in_features, _matmul_dtype(x_MK)
        group = rounded_by_groups(self.weight_spec, k) if self.rounds_groups and self.input_spec is None else 0
        weight_NK = self._dequantized(dtype, whole_levels=group > 0)
        shift_K = None if self.input_shift is None else self.input_shift[:k]
        multiplier_K = None if self.input_multiplier is None else self.input_multiplier[:k]
        if self.input_spec is None:
            if multiplier_K is not None:
                x_MK = reference.transform_inputs(x_MK, shift_K, multiplier_K)
            if group:
                x_MK = reference.rounded_groups(x_MK, group)
            bias_N = None if self.bias is None else self.bias.to(dtype)
            y_MN = functional.linear(x_MK.to(dtype), weight_NK, bias_N)
        else:
            codes_MK, scale_M1, zero_M1 = reference.quantize_rows(
                x_MK,
                self.input_spec,
                self.input_scale,
                self.input_zero_point,
                shift_K=shift_K,
                multiplier_K=multiplier_K,
            )
            steps_MK = codes_MK.to(dtype) - zero_M1.to(dtype)
            y_MN = functional.linear(steps_MK, weight_NK) * scale_M1
            y_MN = y_MN if self.bias is None else y_MN + self.bias
        return functional.gelu(y_MN) if self.gelu else y_MN

    def _dequantized(self, dtype: torch.dtype, *, whole_levels: bool) -> Tensor:
        """whole_levels: those of a codebook as integer kernels take them."""
        if whole_levels and self.weight_spec.has_codebook:
            weight_NK: Tensor = reference.in_whole_levels(self.qtensor()).dequantize().to(dtype)
            return weight_NK
        return reference.dequantize(
            self._codes(), self.weight_scale, self.weight_zero_point, self.weight_spec, self.codebook, dtype,
            self.weight_minimum,
        )  # fmt: skip

    def _codes(self) -> Tensor:
        return layouts.unpack(self.weight, self.out_features, self.in_features) if self.native else self.weight

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)  # a checkpoint is written from `qtensor()`

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        inputs = "float" if self.input_spec is None else f"{self.input_spec.bits} bit"
        path = "int8 kernel" if self.native else "reference"
        fused = ", GELU" if self.gelu else ""
        return f"{self.in_features} -> {self.out_features}, {self.weight_spec.bits} bit, input {inputs}, {path}{fused}"


def runs_natively(weight: QuantSpec, input_spec: QuantSpec | None) -> bool:
    """Whether the int8 CPU kernels run a linear with these specs."""
    return input_spec is not None and cpu.weight_runs_natively(weight) and input_runs_natively(input_spec)


def _static_tensors(linear: QuantizedLinear) -> tuple[Tensor | None, Tensor | None]:
    """Scale, float32 (1,), and zero point, int8 (1,) or None, of a static input."""
    spec, static = linear.input_spec, linear.static
    if spec is None or static is None:
        return None, None
    zero = None if spec.symmetric else torch.tensor([static.zero_point], dtype=torch.int8)
    return torch.tensor([static.scale], dtype=torch.float32), zero


def _padded_transform(transform: InputTransform | None) -> tuple[Tensor | None, Tensor | None]:
    """(shift, multiplier) as the kernels take them: both, or neither if the input is taken as it is."""
    if transform is None:
        return None, None
    scale_K, shift_K = transform.scale_K, transform.shift_K
    shift = torch.zeros(transform.width, dtype=torch.float32) if shift_K is None else shift_K
    multiplier = torch.ones(transform.width, dtype=torch.float32) if scale_K is None else 1.0 / scale_K
    return layouts.pad_inputs(shift), layouts.pad_inputs(multiplier)


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """bfloat16 for a bfloat16 x where the device multiplies it; else float32."""
    fast = x.device.type != "cpu" or cpu_multiplies_bf16()
    return torch.bfloat16 if x.dtype == torch.bfloat16 and fast else torch.float32


class HalfLinear(_ExactModule):
    """A linear kept in 16 bit: bf16 or fp16 weight (N, K), the input's dtype in and out. A bias (N,) that 16 bits
    cannot hold stays float32, as files and other readers have it, and is added to the product.

    On a CPU that multiplies bf16 (AVX512-BF16, AMX) a bf16 layer rounds its input to bf16 and sums in float32. On other
    CPUs, and for fp16 on any, weight and input are raised to float32: torch's bf16 emulation is slower than that, and
    fp16 -> bf16 would lose three bits of the weight. On other devices a layer computes in its own dtype.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight_NK: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if weight_NK.dtype not in (torch.bfloat16, torch.float16):
            raise KernelError(f"HalfLinear holds bfloat16 or float16, got {weight_NK.dtype}")
        self.out_features, self.in_features = weight_NK.shape
        self.register_buffer("weight", weight_NK.detach())
        self.register_buffer("bias", None if bias is None else _held_bias(bias.detach(), weight_NK.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x float (..., K) -> (..., N) of the same dtype."""
        dtype = self.weight.dtype
        if x.device.type == "cpu" and not (dtype == torch.bfloat16 and cpu_multiplies_bf16()):
            dtype = torch.float32
        x_MK, weight_NK, bias = x.detach().to(dtype), self.weight.to(dtype), self.bias
        if bias is None or bias.dtype == self.weight.dtype or dtype == torch.float32:
            return functional.linear(x_MK, weight_NK, None if bias is None else bias.to(dtype)).to(x.dtype)
        return (functional.linear(x_MK, weight_NK) + bias).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.in_features} -> {self.out_features}, {self.weight.dtype}"


def _held_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """In 16 bits, if those hold it."""
    rounded = bias.to(dtype)
    return rounded if torch.equal(rounded.float(), bias.float()) else bias.float()


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions that multiply bf16 (AVX512-BF16 or AMX)."""
    features = dispatch.cpu_features()
    return features.get("avx512_bf16", False) or features.get("amx_bf16", False)


class RoundedEmbedding(_ExactModule):
    """Rows of a float table (V, D), rounded to 16 bits as they are looked up: no second table is in memory.

    half: bf16 or fp16, to which rows are rounded first; then to the attribute `dtype`.
    """

    dtype = torch.float32
    weight: Tensor

    def __init__(self, embedding: nn.Embedding, half: torch.dtype) -> None:
        super().__init__()
        self.half_dtype, self.padding_idx = half, embedding.padding_idx
        self.register_buffer("weight", embedding.weight.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """ids integer (...) -> `dtype` (..., D)."""
        return functional.embedding(ids, self.weight).to(self.half_dtype).to(self.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{len(self.weight)} x {self.weight.shape[1]}, as {self.half_dtype}"


class QuantEmbedding(_ExactModule):
    """Rows of an int8 table (V, D): codes[ids] · scale[ids], in float32, then rounded to the attribute `dtype`."""

    dtype = torch.float32
    weight: Tensor
    scale: Tensor

    def __init__(self, qtensor: QTensor, padding_idx: int | None = None) -> None:
        super().__init__()
        spec = qtensor.spec
        if spec.group_size is not None or spec.per_tensor or not spec.symmetric:
            raise KernelError(f"an embedding takes a symmetric spec with one scale per row, got {spec}")
        self.num_embeddings, self.embedding_dim = qtensor.shape
        self.padding_idx, self.spec = padding_idx, spec
        self.register_buffer("weight", qtensor.codes_NK)
        self.register_buffer("scale", qtensor.scale_NG)

    def qtensor(self) -> QTensor:
        """The quantized table."""
        return QTensor(self.weight, self.scale, None, self.spec)

    def forward(self, ids: Tensor) -> Tensor:
        """ids integer (...) -> `dtype` (..., D)."""
        rows = functional.embedding(ids, self.weight).float() * functional.embedding(ids, self.scale).float()
        return rows.to(self.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.num_embeddings} x {self.embedding_dim}, {self.spec.bits} bit"
