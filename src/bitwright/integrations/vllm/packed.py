"""Weights of 2 to 4 bits in vLLM, 16-bit inputs: compressed-tensors' pack-quantized, GPTQ, AWQ."""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils import replace_parameter

from bitwright.integrations.vllm.constants import bias_of, keep, keep_bias
from bitwright.kernels import layouts
from bitwright.numerics.bits import unpack_words

_BITS = (2, 3, 4)


class BitwrightWNA16LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """`torch.ops.bitwright.linear_wna8`: inputs rounded to int8 by token and group, as Bitwright's engine does."""

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
        if c.act_type not in (torch.bfloat16, torch.float32):
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
        inputs = layouts.input_group_w4a8(group)
        assert inputs is not None  # `can_implement` has seen to it
        held = layouts.bits_wna8(bits, inputs)
        self.n, self.bits, self.groups = n, held, (inputs, group // inputs)
        lowest = -(1 << held - 1)
        replace_parameter(layer, self.w_q_name, layouts.pack_wna8((codes_NK - lowest).view(torch.uint8), held))
        replace_parameter(layer, self.w_s_name, layouts.pack_scales(scale_NG)[0])
        keep_bias(layer, n)
        zero_NG = None if zero is None else (_codes(zero, bits, n, k // group) - lowest).view(torch.uint8)
        keep(layer, "zero", None if zero_NG is None else layouts.pack_groups(zero_NG))
        if self.w_zp_name and hasattr(layer, self.w_zp_name):
            setattr(layer, self.w_zp_name, None)

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        operator = torch.ops.bitwright.linear_wna8
        y: Tensor = operator(
            x.reshape(-1, x.shape[-1]), getattr(layer, self.w_q_name), getattr(layer, self.w_s_name),
            layer.bitwright_zero, None, bias_of(layer, bias), self.n, self.bits, *self.groups,
        )  # fmt: skip
        return y.view(*x.shape[:-1], self.n)


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
