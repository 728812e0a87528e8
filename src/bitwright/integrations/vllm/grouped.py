"""Weights of 4 bits and fewer with a scale for each group of inputs, as `torch.ops.bitwright` takes them."""

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bitwright.integrations.vllm.constants import bias_of, keep, keep_bias
from bitwright.kernels import layouts
from bitwright.numerics.bits import check_fit
from bitwright.numerics.levels import whole_levels

_CONSTANTS = ("codes", "scale", "zero", "minimum", "levels")


class GroupedWeight(NamedTuple):
    """codes_NK: int8 of a signed grid, or uint8 indices of `levels`, float32 (16,). zero_NG: int8 of that grid, or
    None. group: inputs that share a scale, one that `layouts.input_group_w4a8` takes."""

    codes_NK: Tensor
    bits: int
    scale_NG: Tensor
    zero_NG: Tensor | None
    group: int
    levels: Tensor | None


class GroupedLinear:
    """Packs a weight into a layer of vLLM, and multiplies by it.

    Inputs stay in 16 bits (`linear_wna16`). Where the user sets VLLM_CPU_INT4_W4A8=1, vLLM's own switch (which is on
    unless it is set, but only for its kernels with AMX), they are rounded to int8 by token and group (`linear_wna8`),
    as Bitwright's engine has them; levels that are no whole numbers are then rounded to 127ths of the largest.
    """

    def __init__(self, layer: nn.Module, weight: GroupedWeight, *, rounds: bool = False, prefix: str = "") -> None:
        """rounds: inputs to int8, whatever the switch says. prefix: of the names of what the layer keeps, where it has
        several weights.
        """
        codes_NK, bits, scale_NG, zero_NG, group, levels = weight
        n = codes_NK.shape[0]
        inputs = layouts.input_group_w4a8(group)
        assert inputs is not None
        held = layouts.bits_wna8(bits, inputs)
        self.n, self.numbers, self.rounds = (
            n,
            (n, held, inputs, group // inputs),
            rounds or os.environ.get("VLLM_CPU_INT4_W4A8") == "1",
        )
        lowest = 0 if levels is not None else -(1 << held - 1)
        if levels is not None and self.rounds:
            whole, step = whole_levels(levels.tolist())
            scale_NG, levels = scale_NG * step, torch.tensor(whole, dtype=torch.int8)
        if zero_NG is not None:
            check_fit(zero_NG, lowest, lowest + layouts.MAX_ZERO_WNA8, "the kernels", "zero points")
        self._prefix = prefix
        keep(layer, prefix + "codes", layouts.pack_wna8((codes_NK - lowest).view(torch.uint8), held))
        keep(layer, prefix + "scale", layouts.pack_scales(scale_NG)[0])
        keep(
            layer,
            prefix + "zero",
            None if zero_NG is None else layouts.pack_groups((zero_NG - lowest).view(torch.uint8)),
        )
        keep(layer, prefix + "minimum", None)
        keep(layer, prefix + "levels", levels if levels is None or self.rounds else levels.bfloat16())
        keep_bias(layer, n, prefix)

    def __call__(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) -> (..., N)."""
        x_MK = x.reshape(-1, x.shape[-1])
        constants = [getattr(layer, f"bitwright_{self._prefix}{name}") for name in _CONSTANTS]
        if self.rounds:
            y: Tensor = torch.ops.bitwright.linear_wna8(
                x_MK, *constants, bias_of(layer, bias, self._prefix), None, None, *self.numbers
            )
        else:
            y = torch.ops.bitwright.linear_wna16(x_MK, *constants, bias_of(layer, bias, self._prefix), *self.numbers)
        return y.view(*x.shape[:-1], self.n)
