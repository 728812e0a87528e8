"""The modules that replace a model's linears and embeddings: `QuantLinear`, `HalfLinear`, `QuantEmbedding`.

All are for inference: `QuantLinear` detaches its input, no gradient flows through codes. All return the dtype they were given
(`QuantEmbedding`: float32).
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import KernelError
from bitwright.kernels import cpu, layouts, reference
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec


class _Buffers(nn.Module):
    """A module whose buffers are its numbers' exact representation: they follow `.to(device)`, never `.to(dtype)`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._buffers = {name: None if b is None else b.to(fn(b).device) for name, b in self._buffers.items()}
        return self


class QuantLinear(_Buffers):
    """y = x Wᵀ + b with a quantized weight, and quantized inputs if the input spec says so; then GELU if asked.

    W8A8 (`runs_natively`) is packed for the int8 CPU kernels, and on a CPU only they run it: a missing library is an error.
    Everything else, and other devices, take the reference path: inputs rounded to their grid, weight dequantized, float matmul.

    Attributes:
        in_features, out_features: K, N. name: for messages. gelu: whether the output goes through exact GELU.
        input_spec: None for float inputs. input_scale, input_zero_point: of a static input spec, tensors of one value.
    """

    def __init__(
        self,
        qtensor: QTensor,
        bias: Tensor | None,
        input_spec: QuantSpec | None,
        *,
        input_scale: Tensor | None = None,
        input_zero_point: Tensor | None = None,
        gelu: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        n, k = qtensor.shape
        where = f"{name}: " if name else ""
        if bias is not None and bias.shape != (n,):
            raise KernelError(f"{where}the bias must have shape ({n},), got {tuple(bias.shape)}")
        self.in_features, self.out_features, self.gelu, self.name = k, n, gelu, name
        self.weight_spec, self.input_spec = qtensor.spec, input_spec
        self.runs_natively = runs_natively(qtensor.spec, input_spec)
        self._grid = None
        if self.runs_natively and input_spec is not None:
            self._grid = cpu.InputGrid.of(input_spec, input_scale, input_zero_point)
            scale_N = qtensor.scale_NG.float().flatten().expand(n)
            self._keep("codes", layouts.pack(qtensor.codes_NK))
            self._keep("colsum", layouts.column_sums(qtensor.codes_NK))
            self._keep("scale_n", layouts.pad_columns(scale_N))
            self._keep("bias_n", layouts.pad_columns(torch.zeros(n) if bias is None else bias.detach().float()))
        else:
            self._keep("codes", qtensor.codes_NK)
        self._keep("weight_scale", qtensor.scale_NG)
        self._keep("weight_zero_point", qtensor.zero_point_NG)
        self._keep("bias", None if bias is None else bias.detach())
        self._keep("input_scale", input_scale)
        self._keep("input_zero_point", input_zero_point)

    @classmethod
    def from_qtensor(
        cls,
        qtensor: QTensor,
        bias: Tensor | None,
        input_spec: QuantSpec | None,
        input_scale: Tensor | None = None,
        input_zero_point: Tensor | None = None,
        gelu: bool = False,
        name: str = "",
    ) -> Self:
        """The module of a quantized weight.

        Raises:
            KernelError: the bias has another length than the weight has rows; a static input spec lacks its scale.
        """
        return cls(
            qtensor,
            bias,
            input_spec,
            input_scale=input_scale,
            input_zero_point=input_zero_point,
            gelu=gelu,
            name=name,
        )

    def _keep(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    def qtensor(self) -> QTensor:
        """The quantized weight, unpacked."""
        codes = self.codes
        if self.runs_natively:
            codes = layouts.unpack(codes, self.out_features, self.in_features)
        return QTensor(codes, self.weight_scale, self.weight_zero_point, self.weight_spec)

    def forward(self, x: Tensor) -> Tensor:
        """x float (..., K) -> (..., N) of the same dtype.

        Raises:
            KernelError: the last dimension of x is not K; or the kernels are needed and not available.
        """
        if x.shape[-1] != self.in_features:
            raise KernelError(f"{self.name or 'QuantLinear'}: K = {self.in_features}, got an input {tuple(x.shape)}")
        x_MK = x.detach().reshape(-1, self.in_features)
        if self._grid is not None and x.device.type == "cpu":
            y_MN = cpu.linear_w8a8(
                x_MK.float(),
                self.codes,
                self.colsum,
                self.scale_n,
                self.bias_n,
                self.out_features,
                self._grid,
                self.gelu,
            )
        else:
            y_MN = self._forward_by_definition(x_MK.float())
        return y_MN.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _forward_by_definition(self, x_MK: Tensor) -> Tensor:
        if self.input_spec is not None:
            codes, scale, zero = reference.quantize_rows(x_MK, self.input_spec, self.input_scale, self.input_zero_point)
            x_MK = (codes - zero).float() * scale
        y_MN = functional.linear(x_MK, self.qtensor().dequantize(), None if self.bias is None else self.bias.float())
        return functional.gelu(y_MN) if self.gelu else y_MN

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        inputs = "float" if self.input_spec is None else f"{self.input_spec.bits} bit"
        path = f"int8 kernel {cpu.active_isa()}" if self.runs_natively and cpu.available() else "reference"
        return f"{self.in_features} -> {self.out_features}, weight {self.weight_spec.bits} bit, input {inputs}, {path}"


def runs_natively(weight: QuantSpec, input_spec: QuantSpec | None) -> bool:
    """Whether the int8 CPU kernels run a linear with these specs."""
    return input_spec is not None and cpu.weight_runs_natively(weight) and cpu.input_runs_natively(input_spec)


class HalfLinear(_Buffers):
    """A linear kept in 16 bit: bf16 or fp16 weight and bias, the input's dtype in and out.

    On a CPU that multiplies bf16 (AVX512-BF16, AMX) a bf16 layer rounds its input to bf16 and sums in float32; elsewhere, and for
    fp16 on any CPU, weight and input are raised to float32: bf16 emulation in torch is slower than that, and fp16 -> bf16 would lose three
    bits of the weight. On other devices the layer computes in its own dtype.
    """

    def __init__(self, weight_NK: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if weight_NK.dtype not in (torch.bfloat16, torch.float16):
            raise KernelError(f"HalfLinear holds bfloat16 or float16, got {weight_NK.dtype}")
        self.out_features, self.in_features = weight_NK.shape
        self.register_buffer("weight", weight_NK.detach())
        self.register_buffer("bias", None if bias is None else bias.detach().to(weight_NK.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x float (..., K) -> (..., N) of the same dtype."""
        dtype = self.weight.dtype
        if x.device.type == "cpu" and not (dtype == torch.bfloat16 and _multiplies_bf16()):
            dtype = torch.float32
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.in_features} -> {self.out_features}, {self.weight.dtype}"


def _multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class QuantEmbedding(_Buffers):
    """Rows of an int8 table: codes[ids] · scale[ids], float32."""

    def __init__(self, qtensor: QTensor, padding_idx: int | None = None) -> None:
        super().__init__()
        if qtensor.spec.group_size is not None or qtensor.spec.per_tensor or not qtensor.spec.symmetric:
            raise KernelError(f"an embedding takes a symmetric spec with one scale per row, got {qtensor.spec}")
        self.num_embeddings, self.embedding_dim = qtensor.shape
        self.padding_idx, self.spec = padding_idx, qtensor.spec
        self.register_buffer("weight", qtensor.codes_NK)
        self.register_buffer("scale", qtensor.scale_NG)

    def qtensor(self) -> QTensor:
        """The quantized table."""
        return QTensor(self.weight, self.scale, None, self.spec)

    def forward(self, ids: Tensor) -> Tensor:
        """ids integer (...) -> float32 (..., D)."""
        return functional.embedding(ids, self.weight).float() * functional.embedding(ids, self.scale.float())

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.num_embeddings} x {self.embedding_dim}, {self.spec.bits} bit"
