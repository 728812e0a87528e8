"""The benchmark of a language model: every runtime computes the same step, as long as it is timed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitwright.engine.decoders import FLOAT
from bitwright.errors import InputError
from bitwright.files.directory import ModelDirectory
from bitwright.record import Shape
from bitwright.runtime import bench_tokens
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_inputs import model_shape, random_tokens
from bitwright.runtime.bench_runtimes import Files
from bitwright.runtime.bench_tokens import TOKEN_RUNTIMES, OnEngine, shapes_for

SHAPES = (Shape(1, 40, "prefill"), Shape(3, 20, "decode"))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", head_dim=16, max_position_embeddings=512)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_runtimes_compute_the_same_step(
    model: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The reference is transformers; texts grow, are cut back, and grow again."""
    monkeypatch.setattr(bench_tokens, "_GROWTH", 3)
    facts, steps = model_shape(ModelDirectory(model)), {}
    for name, runtime in TOKEN_RUNTIMES.items():
        opened = runtime.open(Files(model, "text-generation"), 1)
        runtime.make(opened, facts, Shape(2, 7, "decode"), 5)()  # texts under way give way to the next ones
        steps[name] = runtime.make(opened, facts, shape, 0)
    for _ in range(5):
        outputs = {name: step() for name, step in steps.items()}
        wanted = outputs.pop("torch bf16").float().numpy().reshape(shape.batch, -1)
        for logits in outputs.values():
            assert logits.shape == wanted.shape
            assert np.corrcoef(logits.ravel(), wanted.ravel())[0, 1] > 0.999


@pytest.mark.usefixtures("forked_workers")
def test_a_report_s_rows(model: Path) -> None:
    """In real workers; the result is the float model itself."""
    schedule = Schedule([*SHAPES, Shape(1, 300, "decode")], 1, rounds=2, block_s=0.01)
    found = run_bench(model, schedule, source=ModelDirectory(model), rivals=False)
    rows = [(row["runtime"], row["batch"], row["tokens"], row["work"]) for row in found["rows"]]
    assert sorted(rows) == sorted((name, *shape) for name in TOKEN_RUNTIMES for shape in SHAPES)
    for row in found["rows"]:
        tokens = 40 if row["work"] == "prefill" else 3
        assert row["per_second"] == pytest.approx(1e3 * tokens / row["median_ms"])
        assert row["ratio_to_fp32"] is None
        others = [other["median_ms"] for other in found["blocks"] if other["work"] == row["work"]
                  and other["runtime"] != "bitwright"]  # fmt: skip
        if row["runtime"] == "bitwright":
            assert min(others) / max(others) / 2 < row["ratio_to_bf16"] * row["median_ms"] / min(others) < 100
    (told,) = found["skipped"]
    assert told["reason"] == "writing an answer, after 300 tokens: more tokens than the model's 512"


def test_what_is_timed_by_default_and_on_request() -> None:
    assert shapes_for("text-generation", (), bench_tokens.REPORTED) == bench_tokens.REPORTED
    assert shapes_for("text-generation", [(2, 9)], ()) == (Shape(2, 9, "prefill"), Shape(2, 9, "decode"))
    assert shapes_for("embedding", [(2, 9)], ()) == (Shape(2, 9, "forward"),)


def test_more_than_the_cache_holds_is_said(model: Path) -> None:
    opened, shape = OnEngine.open(ModelDirectory(model), 1, FLOAT), Shape(1 << 8, 200, "decode")
    ids_BT, _ = random_tokens(model_shape(ModelDirectory(model)), batch=1, tokens=8, seed=0)
    with pytest.raises(InputError, match="256 answers at once, after 200 tokens: more than the 32768 tokens"):
        opened.step(ids_BT, shape)


def test_a_float_model_larger_than_memory_is_left_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.runtime.bench.available_bytes", lambda: 1000)
    found = run_bench(model, Schedule(SHAPES[:1], 1, 1, 0.01), source=ModelDirectory(model), rivals=False)
    assert {row["runtime"] for row in found["rows"]} == {"bitwright"}
    assert [row["runtime"] for row in found["skipped"]] == ["torch bf16", "bitwright bf16"]
    assert "of memory are free" in found["skipped"][0]["reason"]
