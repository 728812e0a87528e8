"""The runtimes of a language model's benchmark, and what is timed of one.

    torch bf16       the float source in bf16, transformers with its own cache
    bitwright bf16   the float source on the engine, all in bf16: the same engine without quantization
    bitwright        the quantized checkpoint; on the engine if that can run it, else in transformers

    prefill  a prompt, up to the logits of its last token
    decode   a step of some answers under way, one token of each, without choosing it

A speed is relative to the faster one of both in bf16: a gain over transformers alone may be the engine's, not the
quantization's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.engine.decoders import DEFAULT, FLOAT, Arithmetic
from bitwright.engine.executor import Step as Batch
from bitwright.errors import EngineError, InputError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory
from bitwright.files.opening import open_path
from bitwright.generate.cache import Held
from bitwright.record import Shape, shape_words
from bitwright.runtime.bench_inputs import ModelShape, random_tokens
from bitwright.runtime.bench_runtimes import OURS, Files, Runtime, Step
from bitwright.runtime.decoder_model import DecoderModel

if TYPE_CHECKING:
    from torch import nn

PREFILL, SHORT, DEEP = 512, 32, 4096  # tokens
# What a report shows, and all that `bitwright bench` times.
REPORTED = (Shape(1, PREFILL, "prefill"), Shape(1, SHORT, "decode"), Shape(8, SHORT, "decode"))
TIMED = (
    Shape(1, PREFILL, "prefill"),
    *(Shape(batch, SHORT, "decode") for batch in (1, 4, 8, 32)),
    Shape(1, DEEP, "decode"),
)
FORWARDS = ((1, 16), (1, 128), (8, 128))  # of an encoder
_GROWTH = 256  # tokens that a text grows by while it is timed, before it is cut back
_CACHE = 1 << 15  # tokens that it has room for; what is not written takes no memory


def shapes_for(task: TaskName, asked: Sequence[tuple[int, int]], tokens: Sequence[Shape]) -> Sequence[Shape]:
    """What is timed of a model for this task. asked: (batch, tokens) that a user names; of a language model, prompts of
    that size, and answers after them. tokens: what is timed of one if there are none."""
    if task != "text-generation":
        return tuple(Shape(*shape) for shape in asked or FORWARDS)
    return tuple(Shape(*shape, work) for shape in asked for work in ("prefill", "decode")) or tokens


def longest(shape: Shape) -> int:
    """Tokens that a text of this shape has at most."""
    return shape.tokens + (_GROWTH if shape.work == "decode" else 0)


@dataclass(slots=True, eq=False)
class OnEngine:
    """A model on the engine, and the texts that are under way in its cache."""

    model: DecoderModel
    held: list[Held] = field(default_factory=list)

    @classmethod
    def open(cls, directory: ModelDirectory, threads: int, arithmetic: Arithmetic = DEFAULT) -> "OnEngine":
        """Raises:
        EngineError: the engine does not run the model.
        """
        return cls(DecoderModel(directory, threads=threads, arithmetic=arithmetic, cache_tokens=_CACHE))

    def step(
        self, ids_BT: np.ndarray, shape: Shape, run: Callable[[Batch], np.ndarray] | None = None
    ) -> Callable[[], np.ndarray]:
        """What is timed, after the texts before it are computed. run: what computes a step.

        Raises:
            InputError: more texts than the cache has room for.
        """
        cache, run = self.model.cache, run or self.model.step
        for one in self.held:
            cache.end(one)
        if not cache.fits(longest(shape), longest(shape), shape.batch):
            raise InputError(f"{shape_words(shape)}: more than the {_CACHE} tokens that are timed at once")
        self.held[:] = [cache.begin([]) for _ in ids_BT]

        def compute(held: Sequence[Held], ids_BT: np.ndarray) -> np.ndarray:
            for one in held:
                cache.grow(one, ids_BT.shape[1])
            logits = run(cache.step([(one, ids.tolist(), 1) for one, ids in zip(held, ids_BT, strict=True)]))
            for one in held:
                cache.advanced(one, ids_BT.shape[1])
            return logits

        def cut_back(length: int) -> None:
            for one, ids in zip(self.held, ids_BT, strict=True):
                cache.roll_back(one, length)
                if one.length < length:  # of a convolution not every state is kept
                    compute([one], ids[None, one.length : length])

        def prefill() -> np.ndarray:
            cut_back(0)
            return compute(self.held, ids_BT)

        def decode() -> np.ndarray:
            if self.held[0].length >= longest(shape):
                cut_back(shape.tokens)
            return compute(self.held, ids_BT[:, :1])

        if shape.work == "prefill":
            return prefill
        for one, ids in zip(self.held, ids_BT, strict=True):
            for begin in range(0, shape.tokens, PREFILL):
                compute([one], ids[None, begin : begin + PREFILL])
        return decode


def _open_engine(files: Files, threads: int, arithmetic: Arithmetic = DEFAULT) -> OnEngine:
    return OnEngine.open(open_path(files.path, files.task), threads, arithmetic)


def _open_result(files: Files, threads: int) -> "OnEngine | nn.Module":
    try:
        return _open_engine(files, threads)
    except EngineError:
        import torch

        from bitwright.runtime.generic import load_generic

        torch.set_num_threads(threads)
        return load_generic(open_path(files.path, files.task)).hf


def _open_torch(files: Files, threads: int) -> "nn.Module":
    import torch

    from bitwright.models.load import load_model

    torch.set_num_threads(threads)
    return load_model(files.path, dtype=torch.bfloat16, task=files.task).model


def _make(opened: Any, model: ModelShape, shape: Shape, seed: int) -> Step:
    ids_BT, _ = random_tokens(model, batch=shape.batch, tokens=shape.tokens, seed=seed)
    return opened.step(ids_BT, shape) if isinstance(opened, OnEngine) else _in_torch(opened, ids_BT, shape)


def _in_torch(model: Any, ids_BT: np.ndarray, shape: Shape) -> Step:
    import torch
    from transformers import DynamicCache

    def compute(ids: "torch.Tensor", cache: Any) -> "torch.Tensor":
        with torch.inference_mode():
            logits: torch.Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            return logits

    ids = torch.from_numpy(ids_BT)
    if shape.work == "prefill":
        return lambda: compute(ids, DynamicCache(config=model.config))
    cache = DynamicCache(config=model.config)
    compute(ids, cache)

    def decode() -> "torch.Tensor":
        if cache.get_seq_length() >= longest(shape):
            cache.crop(shape.tokens - cache.get_seq_length())
        return compute(ids[:, :1], cache)

    return decode


# The order of the rows, and of the blocks within a round.
TOKEN_RUNTIMES: dict[str, Runtime] = {
    "torch bf16": Runtime(_open_torch, make=_make),
    "bitwright bf16": Runtime(partial(_open_engine, arithmetic=FLOAT), make=_make, optional=True),
    OURS: Runtime(_open_result, reads_checkpoint=True, make=_make),
}
