"""GPTQ and AutoRound checkpoints in vLLM that its own methods refuse on a CPU: zero points, 2 and 3 bits, other sizes
of groups, columns in an order of their own (act-order). What they take comes to our kernel through vLLM's list.
"""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig, AutoGPTQLinearMethod
from vllm.model_executor.layers.quantization.inc import INCConfig
from vllm.model_executor.layers.quantization.utils.gptq_utils import get_linear_quant_method
from vllm.model_executor.layers.quantization.utils.marlin_utils import (
    MARLIN_SUPPORTED_GROUP_SIZES,
    get_marlin_input_dtype,
)
from vllm.scalar_type import ScalarType

from bitwright.checkpoints.auto_round import LESS_ONE
from bitwright.checkpoints.gptq import SUFFIXES, zero_points
from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.collected import Collected
from bitwright.integrations.vllm.constants import keep
from bitwright.integrations.vllm.grouped import GroupedLinear, GroupedWeight
from bitwright.kernels import layouts
from bitwright.numerics.bits import unpack_words

_BITS = (2, 3, 4)


class Layout(NamedTuple):
    """How linears are packed. group: inputs that share a scale, −1 for all. less_one: zero points are stored so."""

    bits: int
    group: int
    less_one: bool


class BitwrightGptqLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Linears of this layout, joined in one product unless their columns have an order of their own."""

    def __init__(self, layout: Layout, prefix: str) -> None:
        self._layout, self._prefix = layout, prefix

    def create_weights(
        self, layer: nn.Module, input_size_per_partition: int, output_partition_sizes: list[int], input_size: int,
        output_size: int, params_dtype: torch.dtype, **extra: Any,
    ) -> None:  # fmt: skip
        """Places for the tensors.

        Raises:
            ValueError: a group or inputs that our kernel does not take, or one of several processes.
        """
        if params_dtype not in (torch.bfloat16, torch.float32):
            raise ValueError(
                f"{self._prefix}: inputs in {params_dtype}; Bitwright's kernel takes bfloat16 and float32 (--dtype "
                "bfloat16), and vLLM has none for this checkpoint"
            )
        if input_size_per_partition != input_size or sum(output_partition_sizes) != output_size:
            raise ValueError(f"{self._prefix}: GPTQ with {self._layout} is not split among processes")
        self._k = input_size
        self._group = input_size if self._layout.group == -1 else self._layout.group
        if input_size % self._group or layouts.input_group_w4a8(self._group) is None:
            raise ValueError(
                f"{self._prefix}: groups of {self._group} in K = {input_size}; Bitwright's kernel takes multiples of 8 "
                "that divide K"
            )
        self._collected = Collected(layer, SUFFIXES)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Unpack, and pack for our kernel."""
        weights, orders = zip(*map(self._read, self._collected.take(layer)), strict=True)
        if all(order is None for order in orders):
            weights, orders = (_joined(weights),), (None,)
        self._parts = []
        for i, (weight, order) in enumerate(zip(weights, orders, strict=True)):
            prefix = f"{i}_" * (len(weights) > 1)
            keep(layer, f"{prefix}order", order)
            self._parts.append((f"bitwright_{prefix}order", GroupedLinear(layer, weight, prefix=prefix)))
        tally.add(self)

    def _read(self, tensors: dict[str, Tensor]) -> tuple[GroupedWeight, Tensor | None]:
        """The weight of a linear, and the order in which it reads its inputs; None for the order in which they are."""
        bits, _, less_one = self._layout
        scale_GN = tensors["scales"].float()
        codes_KN = unpack_words(tensors["qweight"].contiguous(), bits, self._k, dim=0)
        stored = tensors["qzeros"].contiguous().numpy()
        zero_GN = torch.from_numpy(zero_points(stored, bits, scale_GN.shape[1], less_one=less_one))
        order = _order(tensors.get("g_idx"), self._k, self._group)
        codes_KN = codes_KN if order is None else codes_KN[order]
        zero_NG = zero_GN.T.contiguous() if zero_GN.any() else None
        return GroupedWeight(
            codes_KN.T.contiguous(), bits, scale_GN.T.contiguous(), zero_NG, self._group, None
        ), order  # fmt: skip

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        whole = len(self._parts) == 1
        parts = []
        for name, linear in self._parts:
            order = getattr(layer, name)
            ordered = x if order is None else x.index_select(-1, order)
            parts.append(linear(layer, ordered, bias if whole else None))
        if whole:
            return parts[0]
        y = torch.cat(parts, dim=-1)
        return y if bias is None else y + bias


def _order(index: Tensor | None, k: int, group: int) -> Tensor | None:
    """The columns, those of a group side by side; None where they lie so.

    Raises:
        ValueError: groups that are not equally large.
    """
    if index is None or torch.equal(index.long(), torch.arange(k) // group):
        return None
    order = index.long().argsort(stable=True)
    if not torch.equal(index.long()[order], torch.arange(k) // group):
        raise ValueError(f"g_idx does not name each group for {group} of {k} inputs")
    return order


def _joined(weights: tuple[GroupedWeight, ...]) -> GroupedWeight:
    """Linears of the same inputs, one below the other."""
    zeros = [weight.zero_NG for weight in weights]
    if any(zero is not None for zero in zeros):
        zeros = [torch.zeros_like(w.scale_NG, dtype=torch.int8) if w.zero_NG is None else w.zero_NG for w in weights]
    zero_NG = None if zeros[0] is None else torch.cat([zero for zero in zeros if zero is not None])
    codes_NK, scale_NG = (torch.cat(parts) for parts in zip(*((w.codes_NK, w.scale_NG) for w in weights), strict=True))
    return weights[0]._replace(codes_NK=codes_NK, scale_NG=scale_NG, zero_NG=zero_NG)


class BitwrightGptqConfig(AutoGPTQConfig):  # type: ignore[misc]
    """As vLLM's, but for linears that it would refuse."""

    TYPE_MAP: ClassVar[dict[tuple[int, bool], ScalarType]] = {
        **{(bits, False): ScalarType.uint(bits, None) for bits in _BITS},
        **{(bits, True): ScalarType.uint(bits, 1 << bits - 1) for bits in _BITS},
        **AutoGPTQConfig.TYPE_MAP,
    }

    def __init__(self, weight_bits: int, group_size: int, desc_act: bool, *more: Any, **named: Any) -> None:
        super().__init__(weight_bits, group_size, False, *more, **named)  # act-order: vLLM raises
        self.desc_act = desc_act

    def get_checkpoint_weight_mapper(self) -> Any:
        """vLLM drops each `g_idx`; here they are needed where columns have an order of their own."""
        from vllm.model_executor.models.utils import WeightsMapper

        return WeightsMapper() if self.desc_act else super().get_checkpoint_weight_mapper()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """vLLM's where it runs on a CPU, else ours."""
        if not isinstance(layer, LinearBase):
            return super().get_quant_method(layer, prefix)
        return get_linear_quant_method(self, layer, prefix, partial(_method, prefix))


def _vllm_has_it(bits: int, group: object, *, symmetric: bool) -> bool:
    """Whether vLLM's own method takes such codes on a CPU, or says itself that it does not."""
    return bits not in _BITS or (bits == 4 and symmetric and group in MARLIN_SUPPORTED_GROUP_SIZES)


def _method(prefix: str, config: AutoGPTQConfig) -> LinearMethodBase:
    """Of a linear, with the settings that hold for it."""
    plain = _vllm_has_it(config.weight_bits, config.group_size, symmetric=config.is_sym)
    if plain and not (config.desc_act and config.weight_bits in _BITS):
        method = AutoGPTQLinearMethod(config)
        method.input_dtype = get_marlin_input_dtype(prefix)
        return method
    less_one = config.full_config.get("checkpoint_format", "gptq") != "gptq_v2"
    return BitwrightGptqLinearMethod(Layout(config.weight_bits, config.group_size, less_one), prefix)


class BitwrightIncConfig(INCConfig):  # type: ignore[misc]
    """AutoRound's, likewise."""

    SUPPORTED_FORMATS: ClassVar[set[str]] = INCConfig.SUPPORTED_FORMATS | LESS_ONE.keys()

    def _validate_int_quantization(self) -> None:
        if self.packing_format not in LESS_ONE:
            super()._validate_int_quantization()

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """vLLM's where it takes them, else ours for codes packed as GPTQ's."""
        packing = self.packing_format
        if isinstance(layer, LinearBase) and packing in LESS_ONE:
            config = self.config_parser.resolve(layer, prefix)
            plain = _vllm_has_it(config.bits, config.group_size, symmetric=config.sym)
            plain = plain and packing in INCConfig.SUPPORTED_FORMATS
            if config.is_wna16_int and config.bits in _BITS and not plain:
                layout = Layout(config.bits, config.group_size, less_one=LESS_ONE[packing])
                return BitwrightGptqLinearMethod(layout, prefix)
        return super().get_quant_method(layer, prefix)


def register() -> None:
    """In place of vLLM's, under their names."""
    for name in ("auto_gptq", "gptq", "gptq_marlin"):
        register_quantization_config(name)(BitwrightGptqConfig)
    register_quantization_config("inc")(BitwrightIncConfig)
