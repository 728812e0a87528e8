"""Small registries, and processes that are killed in the middle."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bitwright.registry.add import add
from bitwright.registry.store import Registry, make_registry
from tests.integrations.conftest import quantized

__all__ = ["quantized"]

Made = Callable[..., Registry]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A directory that passes for a model's, with weights of a few bytes."""
    path = tmp_path / "plain"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (path / "modules.json").write_text("[]")
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    return path


@pytest.fixture
def made(tmp_path: Path, plain: Path) -> Made:
    """`made(versions=2, name="m")`: a registry with versions of a model, none of them served; without MLflow."""

    def make(versions: int = 2, name: str = "m") -> Registry:
        registry = make_registry(tmp_path / "registry", mlflow=None)
        for _ in range(versions):
            add(registry, plain, name, sign=False)
        return registry

    return make


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Registry], Registry]:
    """`copied(registry)`: a copy of it in a folder of its own, links as links."""

    def copy(registry: Registry) -> Registry:
        place = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(registry.root, place, symlinks=True)
        return Registry(place, registry.mlflow, registry.limits)

    return copy


def killed_after(lines: int, do: Callable[[], Any]) -> bool:
    """Do something in a fork that is killed after so many lines of our code; whether it was killed, and not done."""
    child = os.fork()
    if child == 0:
        left = lines

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if event == "call" and "bitwright" not in frame.f_code.co_filename:
                return None
            left -= event == "line"
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            do()
            sys.settrace(None)
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def lines_of(do: Callable[[], object]) -> int:
    """The lines of our code that something takes, about."""
    low, high = 0, 20_000
    while high - low > 10:
        middle = (low + high) // 2
        low, high = (middle, high) if killed_after(middle, do) else (low, middle)
    return low
