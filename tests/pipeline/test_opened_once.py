"""In one run of `quantize` our code opens each configuration once, maps each weight file as a whole once, and resolves
the hub's name once; a process that loads a result and encodes imports no torch."""

import json
import mmap
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.models import build, hub
from bitwright.models import load as load_file
from bitwright.pipeline import quantize

DYNAMIC = "budget: {max_loss: 0.9}"  # nothing has to fall back, for which it would be loaded whole
STATIC = f"scheme: w8a8_static\n{DYNAMIC}"
_OURS = Path(bitwright.__file__).parent
_watched: list[Callable[[str], None]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str | bytes | Path):
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(str(_OURS)):
            if "/transformers/" in frame.f_code.co_filename or "/tokenizers/" in frame.f_code.co_filename:
                return  # the user's own library reads for itself
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            _watched[-1](str(arguments[0]))


@contextmanager
def opened_files() -> Iterator[Counter[str]]:
    """How often our code opened each file, by its absolute path."""
    if not getattr(sys, "_bitwright_hook", False):
        sys.addaudithook(_hook)  # there is no way to take one off
        sys._bitwright_hook = True  # type: ignore[attr-defined]
    found: Counter[str] = Counter()
    _watched.append(lambda path: found.update([str(Path(path).absolute())]))
    try:
        yield found
    finally:
        _watched.pop()


@pytest.mark.parametrize(("recipe", "task"), [(DYNAMIC, "embedding"), (STATIC, "sequence-classification")])
def test_each_file_of_the_source_is_opened_once(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, task: str
) -> None:
    source = tiny_model("bert", task)
    (tmp_path / "recipe.yaml").write_text(recipe)
    maps: Counter[str] = Counter()
    built: Counter[str] = Counter()
    fetched: list[Any] = []
    map_file, fetch, build_empty = mmap.mmap, hub.fetch, build.build_empty

    def counted(fileno: int, *args: Any, **kwargs: Any) -> Any:
        if args[0] == 0:  # the whole file; tables that are looked up are mapped again, where they may be written to
            maps.update([os.path.realpath(f"/proc/self/fd/{fileno}")])
        return map_file(fileno, *args, **kwargs)

    monkeypatch.setattr(mmap, "mmap", counted)
    monkeypatch.setattr(load_file, "fetch", lambda name: fetched.append(name) or fetch(name))
    monkeypatch.setattr(load_file, "build_empty", lambda *a, **k: built.update(["model"]) or build_empty(*a, **k))
    with opened_files() as found:
        result = quantize(
            source, out=tmp_path / "out", recipe=tmp_path / "recipe.yaml", samples=60, speed=False, sensitivity=False
        )
    assert json.loads((result.directory / "config.json").read_text())["quantization_config"]
    assert found[str(source / "config.json")] == 1
    assert len(fetched) == 1
    weights = str(source / "model.safetensors")
    assert maps[weights] == 1
    # Streaming runs a second model of its own over the same open files.
    assert built["model"] == (2 if "static" in recipe else 1)


def test_loading_and_encoding_leaves_torch_out(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    quantize(tiny_model("bert"), out=tmp_path / "out", judged=False, samples=8)
    code = (
        "import sys, bitwright\n"
        f"model = bitwright.load({str(tmp_path / 'out')!r})\n"
        "model.encode(['one text', 'and another'])\n"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
