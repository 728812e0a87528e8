"""Weights of 2 to 4 bits in vLLM, 16-bit inputs: compressed-tensors' pack-quantized, GPTQ, AWQ."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig

from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.grouped import GroupedLinear, GroupedWeight
from bitwright.kernels import layouts
from bitwright.numerics.bits import unpack_words

_BITS = (2, 3, 4)


class BitwrightWNA16LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """`torch.ops.bitwright.linear_wna16`; or, if VLLM_CPU_INT4_W4A8=1 asks for that, `linear_wna8`: inputs are rounded
    to int8 by token and group, as Bitwright's own engine does.
    """

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU: none is needed."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Groups that divide K and are whole words of the packed layout."""
        k, group, bits = c.partition_weight_shape[0], _group(c), c.weight_type.size_bits
        if bits not in _BITS:
            return False, f"weights of {bits} bits; Bitwright's kernel takes {', '.join(map(str, _BITS))}"
        if c.act_type not in (torch.bfloat16, torch.float32, torch.int8):
            return False, f"inputs in {c.act_type}; Bitwright's kernels take bfloat16 and float32 (--dtype bfloat16)"
        if k % group or layouts.input_group_w4a8(group) is None:
            return False, f"groups of {group} in K = {k}; Bitwright's kernel takes multiples of 8 that divide K"
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Pack the codes, scales and zero points in place of what vLLM loaded."""
        bits, group = self.config.weight_type.size_bits, _group(self.config)
        k, n = self.config.partition_weight_shape
        codes_NK = _codes(getattr(layer, self.w_q_name), bits, n, k)
        scale = getattr(layer, self.w_s_name)
        scale_NG = scale.data.float() if scale.output_dim == 0 else scale.data.float().T
        zero = getattr(layer, self.w_zp_name or "", None) if self.config.zero_points else None
        zero_NG = None if zero is None else _codes(zero, bits, n, k // group)
        rounds = self.config.act_type == torch.int8  # that is what the file says
        weight = GroupedWeight(codes_NK, bits, scale_NG, zero_NG, group, None)
        self.linear = GroupedLinear(layer, weight, rounds=rounds)
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            if name and hasattr(layer, name):
                setattr(layer, name, None)
        tally.add(self)

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        return self.linear(layer, x, bias)


def _group(c: MPLinearLayerConfig) -> int:
    k: int = c.partition_weight_shape[0]
    return k if c.group_size == -1 else c.group_size


def _codes(packed: Any, bits: int, n: int, columns: int) -> Tensor:
    """Codes of a signed grid, int8 (N, columns), of words packed along either axis, lying either way.

    packed: a parameter of vLLM, which says where its axes are: input_dim, output_dim and packed_dim.
    """
    words, dim = packed.data, packed.packed_dim
    codes: Tensor = unpack_words(words, bits, n if dim == packed.output_dim else columns, dim=dim)
    return codes if packed.output_dim == 0 else codes.T.contiguous()
