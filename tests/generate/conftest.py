"""What tests of generation share: a tiny language model's steps, and schedulers over them."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.engine.cache_layout import CacheKind
from bitwright.engine.decoders import lower_decoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.generate.cache import Cache
from bitwright.generate.sampling import Sampling
from bitwright.generate.scheduler import Scheduler
from bitwright.generate.sequence import Sequence
from bitwright.kernels import dispatch

VOCABULARY = 200
Schedulers = Callable[..., Scheduler]


@pytest.fixture(scope="session")
def executors(tiny_model: Callable[..., Path]) -> Callable[[CacheKind], Executor]:
    directory = tiny_model("llama", head_dim=16, max_position_embeddings=1024)
    program = lower_decoder(open_weights(ModelDirectory(directory)))
    return functools.cache(lambda kind: Executor(program, dispatch.native_isa(), cache_kind=kind))


@pytest.fixture(scope="session")
def hybrid(tiny_model: Callable[..., Path]) -> Executor:
    """A model most of whose blocks have convolutions in place of attention."""
    directory = tiny_model("lfm2", head_dim=16, max_position_embeddings=1024, num_hidden_layers=3)
    return Executor(lower_decoder(open_weights(ModelDirectory(directory))), dispatch.native_isa())


@pytest.fixture(scope="session")
def schedulers(executors: Callable[[CacheKind], Executor]) -> Schedulers:
    """`schedulers(tokens=…, kind=…, chunk=…, speculate=…)`: a scheduler with a cache of so many tokens."""
    return schedulers_of(executors)


@pytest.fixture(scope="session")
def hybrid_schedulers(hybrid: Executor) -> Schedulers:
    return schedulers_of(lambda kind: hybrid)


def schedulers_of(executors: Callable[[CacheKind], Executor]) -> Schedulers:
    def make(tokens: int = 4096, kind: CacheKind = "int8", **how: Any) -> Scheduler:
        executor = executors(kind)
        assert executor.cache is not None
        return Scheduler(lambda step: executor.step(step, 2), Cache(executor.cache, tokens), **how)

    return make


def request(prompt: list[int], context: int = 1024, **asked: Any) -> Sequence:
    return Sequence(
        prompt, Sampling(**asked), eos_ids=(), detokenizer=None, context=context, vocabulary=VOCABULARY
    )  # fmt: skip


def finished(scheduler: Scheduler, most: int = 2000) -> None:
    """Run steps until no request is under way."""
    for _ in range(most):
        if scheduler.idle:
            return
        scheduler.step()
    raise AssertionError(f"requests are still under way after {most} steps")
