"""What our kernels keep in a layer of vLLM: tensors named `bitwright_…`, parameters as torch.compile wants them."""

import torch
from torch import Tensor, nn

from bitwright.kernels import layouts

_PREFIX = "bitwright_"


def keep(layer: nn.Module, name: str, values: Tensor | None) -> None:
    """Give the layer a constant under `bitwright_<name>`; None is kept as None."""
    held = None if values is None else nn.Parameter(values, requires_grad=False)
    layer.register_parameter(_PREFIX + name, held)


def keep_bias(layer: nn.Module, n: int, prefix: str = "") -> None:
    """Both biases that `bias_of` chooses from: float32, N padded to 16."""
    given = getattr(layer, "bias", None)
    keep(layer, prefix + "no_bias", layouts.pad_columns(torch.zeros(n, dtype=torch.float32)))
    keep(layer, prefix + "bias", None if given is None else layouts.pad_columns(given.data.float()))


def bias_of(layer: nn.Module, bias: Tensor | None, prefix: str = "") -> Tensor:
    """As vLLM passes it, or None where it adds the layer's bias later itself."""
    return layer.get_parameter(_PREFIX + prefix + ("no_bias" if bias is None else "bias"))
