"""W8A8 in vLLM: int8 weights by row or tensor, int8 inputs, static or dynamic, symmetric or not."""

import torch
from torch import Tensor, nn
from vllm.model_executor.kernels.linear import Int8ScaledMMLinearKernel, Int8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.quantization.utils import replace_parameter

from bitwright.integrations.vllm import tally
from bitwright.integrations.vllm.constants import bias_of, keep, keep_bias
from bitwright.kernels import layouts
from bitwright.kernels.torch_ops import QUANTIZE_MODES


class BitwrightInt8LinearKernel(Int8ScaledMMLinearKernel):  # type: ignore[misc]
    """`torch.ops.bitwright.linear_w8a8`: rows are quantized and multiplied in one call."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Wherever the plug-in registers it."""
        return True, None

    @classmethod
    def can_implement(cls, c: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        """Every scheme; of shapes vLLM says nothing here, and every one that fits into int32 sums runs."""
        return True, None

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Pack the weight in place of what vLLM loaded."""
        weight, scale, input_scale, input_zero, _ = self._get_layer_params(layer)
        codes_NK = weight.data
        n = codes_NK.shape[0]
        if scale.numel() != n:  # one for each of the linears that were joined
            scale = torch.repeat_interleave(scale.data.flatten(), torch.tensor(layer.logical_widths))
        self.n, self.grid = n, self._grid(input_scale, input_zero)
        keep(layer, "colsum", layouts.column_sums(codes_NK))
        keep(layer, "scale", layouts.pad_columns(scale.data.float().flatten()))
        keep_bias(layer, n)
        replace_parameter(layer, self.layer_param_names[0], layouts.pack(codes_NK))
        tally.add(self)

    def _grid(self, scale: Tensor | None, zero_point: Tensor | None) -> tuple[int, float, int, int]:
        """Mode, scale, zero point and smallest code of the input, as the operator takes them."""
        lowest = -127 if self.config.input_symmetric else -128
        if not self.config.is_static_input_scheme or scale is None:
            return QUANTIZE_MODES.index("symmetric" if self.config.input_symmetric else "asymmetric"), 1.0, 0, lowest
        zero = 0 if zero_point is None or self.config.input_symmetric else int(zero_point.max())
        return QUANTIZE_MODES.index("static"), float(scale.max()), zero, lowest

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (..., K) -> (..., N)."""
        y: Tensor = torch.ops.bitwright.linear_w8a8(
            x.reshape(-1, x.shape[-1]), layer.weight, layer.bitwright_colsum, layer.bitwright_scale,
            bias_of(layer, bias), None, None, self.n, *self.grid, 0,
        )  # fmt: skip
        return y.view(*x.shape[:-1], self.n)
