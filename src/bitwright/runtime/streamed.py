"""A language model that runs in the memory of one block: what `Model` does for one that is loaded whole.

Every call opens the model anew, takes all windows through one block after another, and lets go of it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitwright.calibration.stream import stream_outputs
from bitwright.evaluate.kinds import Window
from bitwright.evaluate.logits import token_outputs
from bitwright.models.build import LoadedModel
from bitwright.models.load import materialise, open_lazily, release
from bitwright.numerics.linear import QuantizedLinear
from bitwright.runtime.swap import swap_linears

Load = Callable[[], Tensor]
Track = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Changes:
    """How a variant differs from the source.

    layers: quantized linears. half: linears in 16 bit. changed: other float parameters, by name. in_16_bit: parameters
    outside the blocks that are rounded to `dtype`.
    """

    layers: Mapping[str, Callable[[], QuantizedLinear]] = field(default_factory=dict)
    half: frozenset[str] = frozenset()
    changed: Mapping[str, Load] = field(default_factory=dict)
    in_16_bit: tuple[str, ...] = ()
    dtype: torch.dtype = torch.bfloat16


_NOTHING = Changes()


@dataclass(frozen=True, slots=True)
class StreamedModel:
    """A float language model, or a variant of it. loaded: where it lies, and its tokenizer."""

    loaded: LoadedModel
    max_tokens: int
    changes: Changes = _NOTHING
    trust_remote_code: bool = False
    task: str = "text-generation"

    @property
    def tokenizer(self) -> Any:
        """The source's."""
        return self.loaded.tokenizer

    def encode(self, items: Sequence[str] | Sequence[Window], *, track: Track = iter) -> list[np.ndarray]:
        """Per window of token ids: float32 (2, T − 1), the negative log-likelihood (nats) of each next token, and the
        token held most likely in its place. Texts are not taken: a language model is judged on windows.
        """
        windows = [[int(token) for token in item] for item in items]
        every = track(self._logits([torch.tensor([window]) for window in windows]))
        return [token_outputs(logits[0], window) for logits, window in zip(every, windows, strict=True)]

    def logits(self, ids_BT: Tensor) -> Tensor:
        """The logits (B, T, V) of one batch."""
        return next(iter(self._logits([ids_BT])))

    def _logits(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The logits of each batch, one at a time."""
        opened = open_lazily(
            self.loaded.path, trust_remote_code=self.trust_remote_code, task=self.loaded.task, tokenizes=False
        )
        _change(opened, self.changes, "")
        enter, leave = partial(_enter, opened, self.changes), partial(_leave, opened)
        for output in stream_outputs(opened, [{"input_ids": ids} for ids in batches], enter=enter, leave=leave):
            yield output.logits


def _enter(opened: LoadedModel, changes: Changes, paths: Sequence[str]) -> None:
    for path in paths:
        materialise(opened, path)
        _change(opened, changes, path + ".")


def _leave(opened: LoadedModel, paths: Sequence[str]) -> None:
    for path in paths:
        release(opened, path)


def _change(opened: LoadedModel, changes: Changes, prefix: str) -> None:
    """Carry out what concerns a block; with the prefix "", what concerns no block."""
    model = opened.model
    real = {name for name, value in model.named_parameters() if not value.is_meta and name.startswith(prefix)}
    with torch.no_grad():
        for name in real & changes.changed.keys():
            model.get_parameter(name).copy_(changes.changed[name]())
        for name in real & set(changes.in_16_bit):
            value = model.get_parameter(name)
            value.copy_(value.to(changes.dtype))
    modules = {name.rpartition(".")[0] for name in real}
    layers = {name: load() for name, load in changes.layers.items() if name in modules}
    swap_linears(model, layers, changes.half & modules, opened.architecture)
