"""The weight and the bias of one module, as tensors."""

from torch import Tensor, nn


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear, a norm or a table, detached; shares its memory."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
