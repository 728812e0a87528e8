"""What tests of the engine share: executors of a model directory, and sequences of token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.recipe import make_recipe

Open = Callable[..., Executor]
TinyModel = Callable[..., Path]
Written = Callable[..., Path]


@pytest.fixture(scope="session")
def opened() -> Open:
    """`opened(directory, isa=None, group_tokens=None, **of lower_encoder)`: the directory on the engine."""

    def open_(directory: Path, isa: str | None = None, group_tokens: int | None = None, **how: Any) -> Executor:
        program = lower_encoder(open_weights(ModelDirectory(directory)), **how)
        return Executor(program, dispatch.native_isa(isa), group_tokens=group_tokens)

    return open_


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Token ids of the tiny models, of every length from 1 to 40 that matters to a kernel."""
    generator = np.random.default_rng(0)
    return [generator.integers(5, 200, length).tolist() for length in (7, 1, 16, 40, 2, 17, 31, 15, 33, 16, 3)]


@pytest.fixture(scope="session")
def written(tiny_model: TinyModel, once: Callable[..., Path]) -> Written:
    """`written(family, config=…, **recipe)`: a quantized checkpoint of a tiny model, written once."""

    def write(family: str, *, config: dict[str, Any] | None = None, **recipe: Any) -> Path:
        if str(recipe.get("scheme", "w8a8")).startswith("w8a8"):
            recipe = {"attention": "int8"} | recipe  # nothing is measured, so it would be float
        wanted, source = make_recipe(recipe | {"targets": ["bitwright"]}), tiny_model(family, **(config or {}))
        key = ("quantized", family, sorted(recipe.items()), sorted((config or {}).items()))
        return once(key, lambda out: bitwright.quantize(source, out=out, recipe=wanted, samples=40, judged=False))

    return write


@pytest.fixture(scope="session")
def ids() -> list[int]:
    return np.random.default_rng(3).integers(4, 200, 90).tolist()
