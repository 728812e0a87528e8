"""Tensors of linears as a file has them, collected while vLLM loads. It joins linears that read the same input, and its
own parameters want all of them in one layout."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_QKV = {name: i for i, name in enumerate(("q", "k", "v"))}


class Collected:
    """Places for the tensors `<linear>.<suffix>` of one layer, of any shape."""

    def __init__(self, layer: nn.Module, suffixes: Sequence[str]) -> None:
        self._suffixes = suffixes
        self._found: dict[object, dict[str, Tensor]] = {}
        for suffix in suffixes:
            place = nn.Parameter(torch.empty(0), requires_grad=False)
            place.weight_loader = self._loader(suffix)  # type: ignore[attr-defined]
            layer.register_parameter(suffix, place)

    def _loader(self, suffix: str) -> Callable[..., None]:
        def load(place: nn.Parameter, tensor: Tensor, shard: object = None) -> None:
            self._found.setdefault(shard, {})[suffix] = tensor

        return load

    def take(self, layer: nn.Module) -> list[dict[str, Tensor]]:
        """What was loaded, of each linear in the order in which vLLM joins them; then nothing is held any more."""
        for suffix in self._suffixes:
            layer.register_parameter(suffix, None)
        found, self._found = self._found, {}
        return [found[shard] for shard in sorted(found, key=_place)]


def _place(shard: object) -> int:
    return shard if isinstance(shard, int) else _QKV.get(str(shard), 0)
