"""compressed-tensors' quantization config of vLLM, with ours where no list of kernels could be changed."""

from typing import Any

from torch import nn
from vllm.model_executor.kernels.linear import NvFp4LinearLayerConfig
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsW4A4Fp4

from bitwright.integrations.vllm import experts
from bitwright.integrations.vllm.fp4 import BitwrightNvFp4LinearKernel


class BitwrightCompressedTensorsConfig(CompressedTensorsConfig):  # type: ignore[misc]
    """As vLLM's, but for layers of experts and for NVFP4 with 16-bit inputs."""

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

    def _get_scheme_from_parts(self, weight_quant: Any, input_quant: Any, *more: Any, **named: Any) -> Any:
        """NVFP4 with 16-bit inputs never comes to the list of kernels: vLLM wants one of its GPU's."""
        if self._is_nvfp4_format(weight_quant) and input_quant is None:
            scheme = CompressedTensorsW4A4Fp4.__new__(CompressedTensorsW4A4Fp4)
            scheme.use_a16, scheme.group_size = True, 16
            scheme.kernel = BitwrightNvFp4LinearKernel(NvFp4LinearLayerConfig())
            return scheme
        return super()._get_scheme_from_parts(weight_quant, input_quant, *more, **named)


def register() -> None:
    """In place of vLLM's, under its name."""
    register_quantization_config("compressed-tensors")(BitwrightCompressedTensorsConfig)
