"""MXFP4 and NVFP4 in vLLM: 4-bit floats as levels of Bitwright's grouped weights.

Inputs that a file wants in FP4 stay in 16 bits, or become int8 if VLLM_CPU_INT4_W4A8=1: no processor multiplies FP4.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.kernels import linear as kernels

from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.grouped import GroupedLinear, GroupedWeight

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LEVELS = torch.tensor([*_E2M1, *(-level for level in _E2M1)], dtype=torch.float32)


class _Fp4:
    """What both have in common."""

    group: int

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Wherever the plug-in registers it."""
        return True, None

    def _pack(self, layer: Any, scale_NG: Tensor) -> None:
        packed = layer.weight.data
        codes_NK = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)  # the lower half first
        self.linear = GroupedLinear(layer, GroupedWeight(codes_NK, 4, scale_NG, None, self.group, _LEVELS))
        layer.weight = layer.weight_scale = None
        tally.add(self)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        return self.linear(layer, x, bias)


class BitwrightMxFp4LinearKernel(_Fp4, kernels.MxFp4LinearKernel):  # type: ignore[misc]
    """Groups of 32, scales that are powers of two (E8M0)."""

    group = 32

    @classmethod
    def can_implement(cls, config: kernels.MxFp4LinearLayerConfig) -> tuple[bool, str | None]:
        """Every shape: vLLM lets only whole groups in."""
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack in place of what vLLM loaded."""
        self._pack(layer, torch.exp2(layer.weight_scale.data.float() - 127))


class BitwrightNvFp4LinearKernel(_Fp4, kernels.NvFp4LinearKernel):  # type: ignore[misc]
    """Groups of 16, scales in E4M3 times one float."""

    group = 16

    @classmethod
    def can_implement(cls, config: kernels.NvFp4LinearLayerConfig) -> tuple[bool, str | None]:
        """Every shape: vLLM lets only whole groups in."""
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack in place of what vLLM loaded; it has made a factor of the global scale."""
        self._pack(layer, layer.weight_scale.data.float() * layer.weight_global_scale.data.float())
