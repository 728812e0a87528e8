"""Tiny language models on the engine, and the settings that several tests give them."""

from pathlib import Path
from typing import Any

import numpy as np

from bitwright.engine.cache_layout import CacheKind
from bitwright.engine.decoders import lower_decoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.generate.cache import Cache
from bitwright.kernels import dispatch

# Heads of 16 values, which the engine takes; one head of keys for two of queries.
HEADS = {"head_dim": 16, "max_position_embeddings": 256}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64, "rope_theta": 10000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
MINISTRAL3 = YARN | {"original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.7, "mscale": 1.0,
                       "mscale_all_dim": 1.0}  # fmt: skip
WIDE = HEADS | {"hidden_size": 64}  # as wide as its heads
KINDS = ["sliding_attention", "full_attention"]
EACH_KIND = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 2000.0}}


class Running:
    """A tiny model on the engine: the logits at tokens, which follow those before."""

    def __init__(self, directory: Path, *, kind: CacheKind = "bf16", tokens: int = 512, **how: Any) -> None:
        program = lower_decoder(open_weights(ModelDirectory(directory)), **how)
        self.executor = Executor(program, dispatch.native_isa(), cache_kind=kind)
        assert self.executor.cache is not None
        self.cache = Cache(self.executor.cache, tokens)

    def logits(self, ids: list[int], cuts: list[int], threads: int = 1) -> np.ndarray:
        """At every token of a text that comes in parts, cut at `cuts`."""
        held, rows = self.cache.begin([]), []
        for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            self.cache.grow(held, end - begin)
            rows.append(self.executor.step(self.cache.step([(held, ids[begin:end], end - begin)]), threads))
            self.cache.appended(held, ids[:end])
        self.cache.end(held)
        return np.concatenate(rows)
