"""`benchmarks/llm_speed.py`: which rounds count, what a ratio is of, and the whole on a tiny model."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bitwright.pipeline import quantize
from bitwright.recipe import make_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def llm_speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("llm_speed")


def row(run: str, number: int, per_s: float, *, bits: int = 4, others: float = 0.0) -> dict[str, Any]:
    return {
        "model": "tiny", "threads": 2, "cell": "decode 1", "round": number, "run": run, "bits": bits, "mb": 1.0,
        "setting": "one", "per_s": per_s, "others": others,
    }  # fmt: skip


def test_a_round_counts_only_if_every_run_of_it_met_a_quiet_machine(llm_speed: Any) -> None:
    rows = [row("bitwright W4", 1, 200), row("llama.cpp Q4_0", 1, 1, others=0.2)]
    rows += [row("bitwright W4", 2, 200), row("llama.cpp Q4_0", 2, 100)]
    assert [one["round"] for one in llm_speed.quiet(rows)] == [2, 2]
    assert llm_speed.short_of(rows, 1) == []
    assert llm_speed.short_of(rows, 2) == ["tiny, 2 threads, decode 1: 1 quiet rounds of 2"]
    assert "| llama.cpp Q4_0 | 1 | – | one | 100.0 | 2.00 | 2.00 | 1 |" in llm_speed.table(rows)


def test_without_a_quiet_round_there_is_no_figure(llm_speed: Any) -> None:
    assert "| no quiet round | | | 0 |" in llm_speed.table([row("bitwright W4", 1, 200, others=1.0)])


def test_a_rival_is_compared_with_ours_of_like_bits_round_by_round(llm_speed: Any) -> None:
    ours4, ours8, theirs = (100.0, 300.0, 200.0), (50.0, 60.0, 70.0), (50.0, 100.0, 100.0)
    rows = []
    for number in range(3):
        rows += [row("bitwright W4", number, ours4[number]), row("bitwright W8A8", number, ours8[number], bits=8)]
        rows += [row("openvino INT4", number, theirs[number]), row("openvino INT8", number, 10.0, bits=8)]
    lines = {line.split("|")[4].strip(): line for line in llm_speed.table(rows).splitlines()}
    assert "| 2.00 | 2.00 | 3 |" in lines["openvino INT4"]  # of 2, 3 and 2
    assert "| 6.00 | 5.50 | 3 |" in lines["openvino INT8"]  # of 5, 6 and 7
    assert "| 1.00 | 1.00 | 3 |" in lines["bitwright W8A8"]


def test_no_cell_is_left_out_by_the_workers_limits(llm_speed: Any) -> None:
    limit = import_module("llm_engines").CACHE_TOKENS
    assert all(cell.sequences * (cell.prompt + cell.steps + 1) <= limit for cell in llm_speed.CELLS.values())
    assert len(llm_speed.MODELS) * len(llm_speed.RUNS) * len(llm_speed.CELLS) <= 120


def test_a_cut_vocabulary_has_no_merge_beyond_it(llm_speed: Any) -> None:
    model = {"vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}, "merges": [["a", "b"], "ab a"]}
    cut = import_module("llm_random").cut({"model": model, "version": "1.0"}, 3)
    assert cut == {"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}, "version": "1.0"}


@pytest.mark.full
def test_a_tiny_model_by_itself(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe({"scheme": "w8a8", "targets": ["bitwright"]})
    model = tiny_model("llama", head_dim=16, max_position_embeddings=128)
    quantize(model, out=tmp_path / "smollm2" / "w8a8", recipe=recipe, judged=False)
    command = [sys.executable, BENCHMARKS / "llm_speed.py", tmp_path, "--json", tmp_path / "rounds.jsonl"]
    command += ["--model", "smollm2", "--cell", "decode 4", "--rounds", "2", "--seconds", "0.01", "--threads", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr  # a busy machine is no failure of the script
    rows = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [(one["run"], one["round"]) for one in rows] == [("bitwright W8A8", 1), ("bitwright W8A8", 2)], run.stderr
    assert all(one["per_s"] > 0 for one in rows)
    assert "llama.cpp Q4_0 is left out: no --python" in run.stderr
