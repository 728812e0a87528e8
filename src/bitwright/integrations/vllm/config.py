"""compressed-tensors' quantization config of vLLM, with our method for the experts that it takes."""

from typing import Any

from torch import nn
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

from bitwright.integrations.vllm import experts


class BitwrightCompressedTensorsConfig(CompressedTensorsConfig):  # type: ignore[misc]
    """As vLLM's, but for layers of experts: those have no list of kernels that could be changed."""

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """Ours for experts whose scheme it takes, else vLLM's."""
        if isinstance(layer, RoutedExperts):
            self._add_fused_moe_to_target_scheme_map()
            names = (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name)
            schemes = [self.get_scheme_dict(layer, f"{prefix}.0.{name}") for name in names]
            if schemes[0] and all(scheme == schemes[0] for scheme in schemes):
                ours = experts.of_scheme(layer, schemes[0].get("weights"), schemes[0].get("input_activations"))
                if ours is not None:
                    return ours
        return super().get_quant_method(layer, prefix)


def register() -> None:
    """In place of vLLM's, under its name."""
    register_quantization_config("compressed-tensors")(BitwrightCompressedTensorsConfig)
