"""`--min-speedup`: variants are written, timed and judged, and what is taken is what was measured to be best."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import CheckpointError, InputError
from bitwright.models.load import open_directory
from bitwright.models.tensor_files import TensorFiles
from bitwright.pipeline import quantize
from bitwright.recipe import make_recipe
from bitwright.runtime.bench_summary import Block, summarize

pytestmark = pytest.mark.usefixtures("timed")

RECIPE = {"targets": ["bitwright"], "budget": {"max_loss": 0.5, "min_speedup": 1.3}}


@pytest.fixture
def load() -> list[float]:
    """The one number in it: cores that other programs keep busy meanwhile."""
    return [0.0]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, load: list[float]) -> list[int]:
    """Speeds that depend on how many linears a checkpoint holds in int8, in place of a clock; returns those counts."""
    counts: list[int] = []

    def bench(directory: Path, *, others: dict[str, Path], **options: Any) -> dict[str, Any]:
        ms = {"torch fp32": 8.0, "torch bf16": 1.0}
        for name, place in {"bitwright": directory, **others}.items():
            quantized = sum(tensor.endswith("weight_scale") for tensor in TensorFiles(open_directory(place)))
            counts.append(quantized)
            ms[name] = 1.0 / (1.0 + quantized / 12)
        blocks = [
            Block(name, batch, 16, round_, 0.0, 1.0, each, load[0], 0.0)
            for batch in (1, 8) for round_ in range(3) for name, each in ms.items()
        ]  # fmt: skip
        rows = summarize([(block, [block.median_ms]) for block in blocks], dict.fromkeys(ms))
        per_runtime = dict.fromkeys(("peak_rss_mib", "load_s", "cosine_to_fp32"), dict.fromkeys(ms, 1.0))
        busy = load[0] > options["schedule"].limit.cores
        told = {"rows": [] if busy else rows, "too_busy": busy, "other_load_cores": load[0]}
        return told | {"blocks": [asdict(block) for block in blocks]} | per_runtime

    monkeypatch.setattr("bitwright.pipeline.speed_front.run_bench", bench)
    monkeypatch.setattr("bitwright.pipeline.facts.verify", lambda *args, **kwargs: [])
    return counts


def test_the_front_is_measured_and_the_result_is_its_chosen_point(
    tiny_model: Callable[..., Path], tmp_path: Path, timed: list[int]
) -> None:
    (tmp_path / ".out.bitwright" / ".front" / "0").mkdir(parents=True)  # as a run leaves it that was killed here
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), samples=60)
    front, rows = result.record["front"], result.record["front"]["rows"]
    assert (result.exit_code, front["met"], front["n_units"]) == (0, True, 8)
    assert [row["n_fallback"] for row in rows] == [0, 1, 2, 4, 8]
    assert timed == [12 - sum(3 if "qkv" in unit or "query" in unit else 1 for unit in row["units"]) for row in rows]
    assert [row["speedup"] for row in rows] == [pytest.approx(1.0 + n / 12) for n in timed]
    for row in rows:
        assert row["held_out"]["lower"] <= row["held_out"]["loss"] <= row["held_out"]["upper"]
    assert abs(rows[-1]["held_out"]["loss"]) < 1e-3  # nothing is quantized there
    (chosen,) = [row for row in rows if row["chosen"]]
    kept = {row["name"] for row in result.record["plan"] if row["scheme"] == "16bit" and row["block"] is not None}
    assert len(kept) == 12 - timed[rows.index(chosen)]
    assert {row["runtime"] for row in result.record["speed"]["rows"]} == {"torch fp32", "torch bf16", "bitwright"}
    ours = [row for row in result.record["speed"]["rows"] if row["runtime"] == "bitwright"]
    assert [row["ratio_to_bf16"] for row in ours] == [pytest.approx(chosen["speedup"])] * 2
    assert result.record["evaluation"]["loss"] == pytest.approx(chosen["held_out"]["loss"])
    assert "Accuracy against speed" in (tmp_path / "out" / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_speeds_of_a_busy_machine_meet_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path, load: list[float]
) -> None:
    load[0] = 0.9
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), samples=60)
    front = result.record["front"]
    assert (result.exit_code, front["met"], front["busy"]) == (3, False, True)
    assert next(row["speedup"] for row in front["rows"]) == pytest.approx(2.0)
    assert result.record["speed"]["rows"] == []


def test_a_result_that_is_not_fast_enough_is_written_and_said_to_be_slow(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), min_speedup=9.0, samples=60)
    assert (result.exit_code, result.record["front"]["met"]) == (3, False)
    assert result.record["evaluation"]["verdict"] == "met"
    assert "no variant reaches it" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_fails_while_it_times_keeps_its_measurements(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise CheckpointError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("bitwright.pipeline.speed_front.write_variant", full)
        with pytest.raises(CheckpointError, match="no space left"):
            quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), samples=60)
    work = tmp_path / ".out.bitwright"
    assert {path.name for path in work.iterdir()} == {"context.json", "journal.jsonl", "lock"}
    result = quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), samples=60)
    assert result.record["front"]["met"]
    assert any("were taken by an earlier run" in warning for warning in result.record["warnings"])


def test_a_speed_that_nothing_would_measure_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    for options in ({"speed": False}, {"judged": False}):
        with pytest.raises(InputError, match=r"min_speedup = 1\.3: this run measures no speed"):
            quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(RECIPE), **options)


def test_a_language_model_has_variants_too(trained_decoder: Path, tmp_path: Path, timed: list[int]) -> None:
    result = quantize(trained_decoder, out=tmp_path / "out", recipe=make_recipe(RECIPE), samples=32)
    front = result.record["front"]
    assert len(front["rows"]) == len(timed) > 2
    assert sum(row["chosen"] for row in front["rows"]) == 1
    assert front["met"]
    assert {row["runtime"] for row in result.record["speed"]["rows"]} == {"torch fp32", "torch bf16", "bitwright"}
