"""The weight and the bias of one module, as tensors."""

from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear, a norm or a table, detached; shares its memory."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear, if it has one, detached; shares its memory."""
    bias = module.bias
    assert bias is None or isinstance(bias, Tensor)
    return None if bias is None else bias.detach()
