"""benchmarks/vllm_engine.py, the worker of the two benchmarks, on a small model."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.runtime.bench_process import Worker
from tests.vllm.engines import LINEARS, OURS, ROOT, TIMEOUT_S, environment

pytestmark = pytest.mark.full
WINDOWS = [[5, 9, 20, 33, 70, 8, 100], [12, 13, 14, 9, 8]]


def test_worker_times_and_chooses(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "vllm_engine.py"), str(checkpoint("w8a8"))]
    command += ["--threads", "1", "--eager", "--model-tokens", "64"]
    with Worker("vllm", command, environment(OURS), tmp_path / "log") as worker:
        assert worker.answer(TIMEOUT_S)["kernels"] == {"BitwrightInt8LinearKernel": LINEARS}
        said = worker.ask({"windows": WINDOWS}, TIMEOUT_S)
        cell = {"sequences": 3, "prompt": 32, "new": 8, "vocabulary": 200}
        timed = worker.ask(cell, TIMEOUT_S)
    assert [len(row) for row in said["likeliest"]] == [len(row) for row in said["logprobs"]] == [6, 4]
    assert all(logprob < 0 for row in said["logprobs"] for logprob in row)
    assert timed["decode_per_s"] > timed["per_s"] > 0
