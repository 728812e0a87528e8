"""Workers with vLLM and small checkpoints, each made once."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import quantized

__all__ = ["quantized"]


@pytest.fixture(scope="session")
def float_model(tiny_model: Callable[..., Path]) -> Path:
    """A small llama in bfloat16."""
    import torch

    from tests.vllm.engines import SIZES

    return tiny_model("llama", dtype=torch.bfloat16, **SIZES)


@pytest.fixture(scope="session")
def checkpoint(float_model: Path, once: Callable[..., Path]) -> Callable[[str], Path]:
    """The directory of one of `CHECKPOINTS`."""
    from tests.vllm.engines import CHECKPOINTS, write_checkpoint

    def make(name: str) -> Path:
        row = CHECKPOINTS[name]
        return once(("vllm", str(float_model), repr(row)), lambda out: write_checkpoint(float_model, out, row))

    return make


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """`worker(OURS)`, `worker(OWN)`: a process with vLLM, with the plug-in or with BITWRIGHT_VLLM=0; `.ask` runs one of
    the functions in worker.py there."""
    from tests.vllm.engines import TIMEOUT_S, start_worker

    running: dict[str, Any] = {}
    logs = tmp_path_factory.mktemp("vllm")

    def ask(plugin: str, do: str, **arguments: Any) -> dict[str, Any]:
        if plugin not in running:
            running[plugin] = stack.enter_context(start_worker(plugin, logs / f"{plugin}.log"))
        answer: dict[str, Any] = running[plugin].ask({"do": do, **arguments}, TIMEOUT_S)
        return answer

    with ExitStack() as stack:
        yield ask


@pytest.fixture(scope="session")
def record() -> Callable[..., None]:
    """Adds a line to the file that BITWRIGHT_VLLM_RECORD names: benchmarks/vllm_kernels.py makes a table of it."""

    def add(**row: Any) -> None:
        if path := os.environ.get("BITWRIGHT_VLLM_RECORD"):
            with Path(path).open("a", encoding="utf-8") as file:
                print(json.dumps(row), file=file)

    return add


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a directory, to be spoilt."""
    return lambda source: Path(shutil.copytree(source, tmp_path / "copy"))
