"""Checkpoints with `quant_method: bitwright` in vLLM: grids and input transforms that no other format has words for.

vLLM joins linears that read the same input. Here each keeps its own form: the tensors of each are collected as they are
loaded, read by Bitwright's own reader, and computed by themselves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from bitwright.checkpoints.linear_tensors import SUFFIXES, described, read_linear
from bitwright.checkpoints.quantization_config import Group, parse_quantization_config
from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.collected import Collected
from bitwright.integrations.vllm.grouped import GroupedLinear, GroupedWeight
from bitwright.kernels.input_grid import rounded_by_groups
from bitwright.kernels.linear import QuantLinear
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import levels_of

_DTYPES = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}


class BitwrightConfig(QuantizationConfig):  # type: ignore[misc]
    """`quantization_config` of config.json."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        parsed = parse_quantization_config(config, "config.json: quantization_config", portable=False)
        if parsed.embeddings:
            raise ValueError(
                f"{', '.join(parsed.embeddings)}: tables in int8, which only Bitwright's own engine reads; quantize "
                "with --embeddings 16bit for vLLM"
            )
        self._find = parsed.group_finder()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BitwrightConfig":
        """As vLLM asks."""
        return cls(config)

    @staticmethod
    def get_name() -> str:
        """As in config.json."""
        return "bitwright"

    @staticmethod
    def get_supported_act_dtypes() -> list[torch.dtype]:
        """What our kernels read."""
        return [torch.bfloat16, torch.float32]

    @staticmethod
    def get_min_capability() -> int:
        """Of a GPU: none is needed."""
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: it is in config.json."""
        return []

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Ours for linears in a group, alone or joined."""
        if not isinstance(layer, LinearBase):
            return None
        parent, _, name = prefix.rpartition(".")
        joined = self.packed_modules_mapping.get(name, [name])
        groups = [self._find(f"{parent}.{part}" if parent else part) for part in joined]
        if not any(groups):
            return UnquantizedLinearMethod()
        found = [group for group in groups if isinstance(group, Group)]
        if len(found) < len(groups):
            kept = next(part for part, group in zip(joined, groups, strict=True) if not isinstance(group, Group))
            raise ValueError(f"{prefix}: vLLM joins it of parts of which {kept} is not quantized; quantize all or none")
        return BitwrightLinearMethod(prefix, found)


class BitwrightLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Linears side by side, each as its group says."""

    def __init__(self, prefix: str, groups: list[Group]) -> None:
        self._prefix, self._groups = prefix, groups

    def create_weights(
        self, layer: nn.Module, input_size_per_partition: int, output_partition_sizes: list[int], input_size: int,
        output_size: int, params_dtype: torch.dtype, **extra: Any,
    ) -> None:  # fmt: skip
        """Places for tensors of any shape."""
        if input_size_per_partition != input_size or sum(output_partition_sizes) != output_size:
            raise ValueError(f"{self._prefix}: quant_method 'bitwright' does not split a linear among processes")
        self._collected = Collected(layer, SUFFIXES)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Read each part, and pack it."""
        self._parts = []
        for i, (tensors, group) in enumerate(zip(self._collected.take(layer), self._groups, strict=True)):
            self._parts.append(_part(layer, i, self._read(tensors, group)))
        tally.add(self)

    def _read(self, tensors: dict[str, Tensor], group: Group) -> QuantizedLinear:
        arrays = {suffix: tensor.contiguous().numpy() for suffix, tensor in tensors.items()}
        header = {suffix: (_DTYPES.get(tensor.dtype, "?"), tuple(tensor.shape)) for suffix, tensor in tensors.items()}
        shape, _, guarded = described(group, header, arrays.get("weight_shape"))
        return read_linear(arrays, group, shape, None, guarded=guarded).torch()

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        parts = [part(x) for part in self._parts]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return y if bias is None else y + bias


def _part(layer: nn.Module, i: int, linear: QuantizedLinear) -> Callable[[Tensor], Tensor]:
    """Weights of groups without rounded inputs by the packed kernel, all else by the module of the generic path."""
    weight, spec = linear.weight, linear.weight.spec
    group = spec.group_size or weight.shape[1]
    if linear.input_spec is None and linear.transform is None and rounded_by_groups(spec, weight.shape[1]):
        levels = None
        if spec.has_codebook:
            given = levels_of(spec, weight.codebook, like=weight.scale_NG)
            levels = nn.functional.pad(given.float(), (0, 16 - len(given)))
        bits, n = spec.bits if levels is None else 4, weight.shape[0]  # rows, which may share one scale
        zero_NG = None if weight.zero_point_NG is None else weight.zero_point_NG.expand(n, -1)
        held = GroupedWeight(weight.codes_NK, bits, weight.scale_NG.float().expand(n, -1), zero_NG, group, levels)
        grouped = GroupedLinear(layer, held, prefix=f"{i}_")
        return lambda x: grouped(layer, x, None)
    module = QuantLinear(linear)
    layer.add_module(f"bitwright_{i}", module)
    return module


def register() -> None:
    """Under the name that config.json has."""
    register_quantization_config("bitwright")(BitwrightConfig)
