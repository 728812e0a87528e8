"""Runs a language model in transformers with one block in memory, for models that do not fit whole.

Used in the library's process alone (`library_server.py`). The model is the class that transformers takes, loaded by its
own `from_pretrained`: that decides which tensor of the files is which weight. Only, the other blocks lose their modules
before the weights come, so that these have no place to go to; what calls the blocks (embeddings, masks, positions,
norms, head) is whole, and is run as it is.
"""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch


class Blocks:
    """One block at a time of a model. path: the model's. blocks: the path of its list of blocks, such as
    "model.layers".
    """

    def __init__(self, path: str, blocks: str, trust: bool) -> None:
        import transformers

        self.path, self.blocks, self.trust = path, blocks, {"trust_remote_code": trust}
        self.auto: Any = transformers.AutoModelForCausalLM
        config = transformers.AutoConfig.from_pretrained(path, **self.trust)
        with torch.device("meta"):
            whole: Any = self.auto.from_config(config, **self.trust)
        self.kind: type[Any] = type(whole)
        self.count = len(whole.get_submodule(blocks))
        self.library = f"transformers {transformers.__version__}"

    def block(self, items: list[Any], before_TD: np.ndarray | None = None) -> list[np.ndarray]:
        """The output (T, D) of a block for one window; for the last block also the logits (R, V) of the last R tokens.

        items: index of the block; the T ids of the window; R. before_TD: what enters the block; the embeddings of the
        library without it.
        """
        index, ids, rows = items
        gc.collect()  # the model of the call before this one
        with _others_empty(self.kind, self.blocks, index):
            model = self.auto.from_pretrained(self.path, dtype=torch.float32, **self.trust)
        model.eval()
        given = None if before_TD is None else torch.from_numpy(before_TD)[None]
        listed = model.get_submodule(self.blocks)
        for block in listed[:index]:
            block.forward = lambda *args, **kwargs: given
        outputs: list[np.ndarray] = []

        def note(module: Any, args: Any, output: Any) -> None:
            outputs.append(output[0].numpy().copy())
            if index + 1 < self.count:
                raise _Done

        listed[index].register_forward_hook(note)
        kept = torch.arange(len(ids) - rows, len(ids))
        with suppress(_Done):
            outputs.append(model(torch.tensor([ids]), use_cache=False, logits_to_keep=kept).logits[0].numpy())
        return outputs


class _Done(Exception):
    """Not an error: it ends a forward once the output that it is run for is there."""


@contextmanager
def _others_empty(kind: type[Any], blocks: str, index: int) -> Iterator[None]:
    """Let models of this class be built with modules and weights in only one of their blocks."""
    made: Callable[..., None] = kind.__init__

    @functools.wraps(made)
    def emptied(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        for number, block in enumerate(self.get_submodule(blocks)):
            if number != index:
                for held in (block._modules, block._parameters, block._buffers):
                    held.clear()

    kind.__init__ = emptied
    try:
        yield
    finally:
        kind.__init__ = made
