"""`benchmarks/soak.py` and `soak_requests.py`: a short one passes; one with wrong results, or that leaks, does not."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.recipe import make_recipe

TinyModel = Callable[..., Path]


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    return benchmark("soak")


@pytest.fixture(scope="module")
def quantized(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("soak") / "int8"
    recipe = make_recipe({"scheme": "w8a8", "targets": ["bitwright"]})
    bitwright.quantize(tiny_model("bert"), out=out, recipe=recipe, samples=40, judged=False)
    return out


def test_a_short_soak(soak: ModuleType, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main([str(quantized), "--calls", "400", "--threads", "3", "--json", str(tmp_path / "soak.json")]) == 0
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["calls"] == 400
    assert found["wrong"] == 0
    assert "400 calls" in capsys.readouterr().out


def test_it_ends_in_time(soak: ModuleType, quantized: Path) -> None:
    assert soak.main([str(quantized), "--calls", "1000000", "--minutes", "0.01"]) == 0


def test_wrong_results_and_leaks_fail(soak: ModuleType, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = ["--calls", "200"]
    with monkeypatch.context() as patch:
        held = iter(np.arange(100.0, 10_000.0, 20.0))
        patch.setattr(soak, "rss_mib", lambda: next(held))
        assert soak.main([str(quantized), *calls, "--threads", "1"]) == 1
    run = soak.Executor.run
    number = iter(range(10**9))

    def wrong_once(*arguments: Any, **named: Any) -> np.ndarray:
        out: np.ndarray = run(*arguments, **named)
        return out + np.float32(1e-6) if next(number) == 400 else out

    monkeypatch.setattr(soak.Executor, "run", wrong_once)
    assert soak.main([str(quantized), *calls]) == 1


def test_requests_that_come_and_go(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Then one whose model answers with other tokens than alone."""
    soak = benchmark("soak_requests")
    model, options = tiny_model("llama", head_dim=16), {"minutes": 0.02, "callers": 3, "seed": 0, "count": 9}
    found = soak.soak(model, **options)
    assert (found["wrong"], found["kept_blocks"]) == (0, 0)
    assert found["answers"] > 9
    real, alone = soak.DecoderModel, iter([True])

    def loaded(directory: Any, **how: Any) -> Any:
        other = real(directory, **how)
        if not next(alone, False):
            step = other.scheduler._run
            other.scheduler._run = lambda batch: -step(batch)
        return other

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soak, "DecoderModel", loaded)
        assert soak.soak(model, **options)["wrong"] > 0
