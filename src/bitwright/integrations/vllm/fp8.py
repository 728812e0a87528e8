"""FP8 in vLLM on processors without AMX, where vLLM has torch's scaled product alone: 43 times slower than bf16 for one
row of 2048 x 2048, 6 times for 512 rows (Zen 5, one thread).

No processor multiplies FP8. The weight becomes bf16 when it is loaded, in twice the bytes, and inputs stay in 16 bits.
BITWRIGHT_VLLM_FP8=int8 asks for int8 by row instead, in the same bytes, with inputs in int8 by token: weights are
rounded once more.
"""

import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from vllm.model_executor.kernels import linear as kernels

from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.constants import bias_of, keep, keep_bias
from bitwright.kernels import layouts
from bitwright.kernels.torch_ops import QUANTIZE_MODES


class _Fp8:
    """What both have in common: scales per tensor, row or block make no difference once the weight is unpacked."""

    in_int8: bool

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Where vLLM has no kernels of its own."""
        if torch.cpu._is_amx_tile_supported():
            return False, "on processors with AMX vLLM's own kernels are better"
        return True, None

    @classmethod
    def can_implement(cls, config: Any) -> tuple[bool, str | None]:
        """Every scheme."""
        return True, None

    def _pack(self, layer: Any, weight_NK: Tensor, scale_NK: Tensor) -> None:
        """weight_NK float8 (N, K); scale_NK broadcasts to it."""
        wide_NK = weight_NK.float() * scale_NK.float()
        n = len(wide_NK)
        self.in_int8 = os.environ.get("BITWRIGHT_VLLM_FP8") == "int8"
        if self.in_int8:
            scale_N = wide_NK.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            codes_NK = (wide_NK / scale_N[:, None]).round().to(torch.int8)
            keep(layer, "weight", layouts.pack(codes_NK))
            keep(layer, "colsum", layouts.column_sums(codes_NK))
            keep(layer, "scale", layouts.pad_columns(scale_N))
            keep_bias(layer, n)
        else:
            keep(layer, "weight", wide_NK.bfloat16())
        self.n = n
        for name in ("weight", "weight_scale", "weight_scale_inv", "input_scale"):
            if hasattr(layer, name):
                setattr(layer, name, None)
        tally.add(self)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        if not self.in_int8:
            return functional.linear(x, layer.bitwright_weight.to(x.dtype), bias)
        y: Tensor = torch.ops.bitwright.linear_w8a8(
            x.reshape(-1, x.shape[-1]), layer.bitwright_weight, layer.bitwright_colsum, layer.bitwright_scale,
            bias_of(layer, bias), None, None, self.n, QUANTIZE_MODES.index("symmetric"), 1.0, 0, -127, 0,
        )  # fmt: skip
        return y.view(*x.shape[:-1], self.n)


class BitwrightFp8LinearKernel(_Fp8, kernels.FP8ScaledMMLinearKernel):  # type: ignore[misc]
    """A scale for the tensor or for each row."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Unpack; vLLM passes the weight as (K, N), and as many scales as rows or one."""
        self._pack(layer, layer.weight.data.T, layer.weight_scale.data.reshape(-1, 1))

    def apply_scaled_mm(self, **arguments: Any) -> Tensor:
        """Of vLLM's own kernels."""
        raise NotImplementedError


class BitwrightFp8BlockLinearKernel(_Fp8, kernels.Fp8BlockScaledMMLinearKernel):  # type: ignore[misc]
    """A scale for each block of rows and columns."""

    apply_input_quant = False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Unpack; a block at the edge may be cut."""
        weight_NK = layer.weight.data
        n, k = weight_NK.shape
        scale = getattr(layer, "weight_scale_inv", None)
        scale = layer.weight_scale if scale is None else scale
        rows, columns = self.weight_group_shape
        spread = scale.data.float().repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
        self._pack(layer, weight_NK, spread)

    def apply_block_scaled_mm(self, **arguments: Any) -> Tensor:
        """Of vLLM's own kernels."""
        raise NotImplementedError
