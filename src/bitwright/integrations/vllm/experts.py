"""Layers of experts in vLLM: int8 weights and inputs, or 4-bit weights in groups.

vLLM has no public place for these. Its two methods of compressed-tensors know how such weights are loaded; here they
are asked for that alone, and the rest is ours.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import CompressedTensorsMoEMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w8a8_int8 import (  # noqa: E501
    CompressedTensorsW8A8Int8MoEMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_wna16 import (  # noqa: E501
    CompressedTensorsWNA16MoEMethod,
)

from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.constants import keep
from bitwright.kernels import layouts
from bitwright.numerics.bits import unpack_words

_LINEARS = ("w13", "w2")  # gate and up side by side, and down


def of_scheme(layer: Any, weights: Any, inputs: Any) -> "CompressedTensorsMoEMethod | None":
    """Our method for a layer of experts of such a scheme (compressed-tensors' QuantizationArgs); None: vLLM's own."""
    moe = layer.moe_config
    if moe.has_bias or moe.activation.value != "silu" or not moe.is_act_and_mul or moe.in_dtype != torch.bfloat16:
        return None
    if moe.moe_parallel_config.tp_size > 1 or moe.moe_parallel_config.use_ep:
        return None
    if getattr(moe, "swiglu_limit", None) is not None:  # silu alone, without a clamp
        return None
    if weights is None or weights.type != "int" or weights.dynamic:
        return None
    if inputs is None:
        fits = weights.num_bits == 4 and weights.strategy == "group" and not weights.actorder
        return BitwrightGroupedExpertsMethod(weights, moe) if fits and _groups_fit(weights.group_size) else None
    fits = weights.num_bits == inputs.num_bits == 8 and weights.strategy == "channel" and weights.symmetric
    return BitwrightInt8ExpertsMethod(weights, inputs, moe) if fits and inputs.dynamic and inputs.symmetric else None


def _groups_fit(group: int) -> bool:
    return layouts.input_group_w4a8(group) == group


class _Method(CompressedTensorsMoEMethod):  # type: ignore[misc]
    """What both have in common: no kernel of vLLM's, the router outside."""

    def get_fused_moe_quant_config(self, layer: Any) -> None:
        """Of vLLM's kernels."""
        return

    @property
    def is_monolithic(self) -> bool:
        """False: vLLM's router chooses the experts."""
        return False

    def _run(self, layer: Any, operator: Any, x: Tensor, weights: Tensor, ids: Tensor, *numbers: int) -> Tensor:
        constants = [getattr(layer, f"bitwright_{linear}_{name}") for linear in _LINEARS for name in self.constants]
        if layer.apply_router_weight_on_input:
            x, weights = x * weights.to(x.dtype), torch.ones_like(weights)
        y: Tensor = operator(x, weights.float(), ids.int(), *constants, *numbers)
        return y


class BitwrightInt8ExpertsMethod(_Method, CompressedTensorsW8A8Int8MoEMethod):  # type: ignore[misc]
    """`torch.ops.bitwright.experts_w8a8`."""

    constants = ("weight", "colsum", "scale", "bias")

    def __init__(self, weights: Any, inputs: Any, moe: Any) -> None:
        CompressedTensorsMoEMethod.__init__(self, moe)
        self.weight_quant, self.input_quant, self.static_input_scales = weights, inputs, False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack expert by expert in place of what vLLM loaded."""
        for linear in _LINEARS:
            codes = getattr(layer, f"{linear}_weight").data
            scale = getattr(layer, f"{linear}_weight_scale").data
            n = codes.shape[1]
            keep(layer, f"{linear}_weight", torch.stack([layouts.pack(codes_NK) for codes_NK in codes]))
            keep(layer, f"{linear}_colsum", torch.stack([layouts.column_sums(codes_NK) for codes_NK in codes]))
            keep(layer, f"{linear}_scale", torch.stack([layouts.pad_columns(s.float().flatten()) for s in scale]))
            keep(layer, f"{linear}_bias", torch.zeros(len(codes), n + -n % layouts.BLOCK, dtype=torch.float32))
            for name in (f"{linear}_weight", f"{linear}_weight_scale"):
                setattr(layer, name, None)
        tally.add(self)

    def apply(self, layer: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, shared_experts: Any,
              shared_experts_input: Tensor | None) -> Tensor:  # fmt: skip
        """x (M, K) -> (M, K); shared experts are vLLM's affair."""
        inner = layer.intermediate_size_per_partition
        return self._run(layer, torch.ops.bitwright.experts_w8a8, x, topk_weights, topk_ids, inner)


class BitwrightGroupedExpertsMethod(_Method, CompressedTensorsWNA16MoEMethod):  # type: ignore[misc]
    """`torch.ops.bitwright.experts_wna8`: inputs are rounded to int8 by token and group."""

    constants = ("codes", "scale", "zero", "bias")

    def __init__(self, weights: Any, moe: Any) -> None:
        CompressedTensorsMoEMethod.__init__(self, moe)
        self.weight_quant, self.input_quant, self.symmetric = weights, None, weights.symmetric
        self.num_bits, self.strategy, self.group_size = weights.num_bits, weights.strategy, weights.group_size
        self.packed_factor, self.is_marlin, self.is_transposed = 8, False, False

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack expert by expert in place of what vLLM loaded."""
        for linear in _LINEARS:
            words, scale = (getattr(layer, f"{linear}_weight_{name}").data for name in ("packed", "scale"))
            zero = None if self.symmetric else getattr(layer, f"{linear}_weight_zero_point").data
            n, k = words.shape[1], words.shape[2] * 8
            codes = [(unpack_words(w, 4, k) + 8).view(torch.uint8) for w in words]
            keep(layer, f"{linear}_codes", torch.stack([layouts.pack_wna8(c, 4) for c in codes]))
            keep(layer, f"{linear}_scale", torch.stack([layouts.pack_groups(s.float()) for s in scale]))
            zeros = [] if zero is None else [(unpack_words(z, 4, n, dim=0) + 8).view(torch.uint8) for z in zero]
            keep(layer, f"{linear}_zero", torch.stack([layouts.pack_groups(z) for z in zeros]) if zeros else None)
            keep(layer, f"{linear}_bias", torch.zeros(len(codes), n + -n % layouts.BLOCK, dtype=torch.float32))
            for name in ("packed", "scale", "zero_point", "g_idx", "shape"):
                if hasattr(layer, f"{linear}_weight_{name}"):
                    setattr(layer, f"{linear}_weight_{name}", None)
        tally.add(self)

    def apply(self, layer: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, shared_experts: Any,
              shared_experts_input: Tensor | None) -> Tensor:  # fmt: skip
        """x (M, K) -> (M, K); shared experts are vLLM's affair."""
        numbers = (layer.intermediate_size_per_partition, 4, *(self.group_size, 1) * 2)
        return self._run(layer, torch.ops.bitwright.experts_wna8, x, topk_weights, topk_ids, *numbers)
