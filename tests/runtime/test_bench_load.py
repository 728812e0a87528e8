"""Rounds that other programs disturb do not count, and a busy machine gets no figure."""

import subprocess
import sys

import psutil
import pytest

from bitwright.files.directory import ModelDirectory
from bitwright.record import Shape
from bitwright.runtime import bench
from bitwright.runtime.bench import Schedule, run_bench
from bitwright.runtime.bench_load import LoadLimit, machine_cpu_s, own_cpu_s, quiet_rounds, short_of, wait_until_quiet
from bitwright.runtime.bench_summary import Block

LIMIT = LoadLimit(cores=0.15, rounds=2, retry_s=0.0)


def block(runtime: str, round_: int, load: float, tokens: int = 4) -> Block:
    return Block(runtime, 1, tokens, round_, 0.0, 1.0, 1.0, load, 0.0)


BLOCKS = [block("a", 0, 0.1), block("b", 0, 0.2), block("a", 1, 0.15), block("b", 1, 0.0), block("a", 2, 0.9, 8)]


def test_a_round_counts_if_every_runtime_in_it_had_the_machine() -> None:
    assert quiet_rounds(BLOCKS, LIMIT) == {Shape(1, 4): [1], Shape(1, 8): []}
    assert quiet_rounds(BLOCKS, None) == {Shape(1, 4): [0, 1], Shape(1, 8): [2]}
    shapes = [Shape(1, 4), Shape(1, 8), Shape(2, 2)]
    assert short_of([*BLOCKS, block("a", 3, 0.0)], shapes, LIMIT) == shapes[1:]


def test_waiting_ends_with_the_load_or_with_the_time() -> None:
    now, busy = [0.0], [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        busy[0] += seconds * (0.5 if now[0] < 3.0 else 0.1)

    def waited(deadline: float) -> float:
        now[0], busy[0] = 0.0, 0.0
        wait_until_quiet(LIMIT, deadline, busy_s=lambda: busy[0], clock=lambda: now[0], sleep=sleep)
        return now[0]

    assert 3.0 <= waited(20.0) <= 3.5
    assert 1.0 <= waited(1.0) <= 1.25


def test_own_work_is_seen_and_a_dead_process_is_no_error() -> None:
    before, machine = own_cpu_s([psutil.Process()]), machine_cpu_s()
    sum(range(10_000_000))
    own = own_cpu_s([psutil.Process()]) - before
    assert own >= 0.05
    assert machine_cpu_s() - machine >= own - 0.03  # both count ticks of 10 ms
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    child.wait()
    assert own_cpu_s([process]) == 0.0


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize(("load", "rows"), [(0.9, 0), (0.0, 6)])
def test_a_busy_machine_gets_no_rows_and_is_told(tiny_model, monkeypatch, load, rows) -> None:
    """The other programs are made up, the runtimes are real."""
    model, spent = tiny_model("bert"), [0.0]

    def machine() -> float:
        spent[0] += load
        return spent[0]

    monkeypatch.setattr(bench, "machine_cpu_s", machine)
    monkeypatch.setattr(bench, "own_cpu_s", lambda processes: 0.0)
    monkeypatch.setattr(bench.time, "monotonic", iter(range(10_000)).__next__)
    limit = LoadLimit(rounds=2, retry_s=30.0)
    schedule = Schedule([(1, 4), (2, 8)], 1, 2, 0.01, limit)
    found = run_bench(model, schedule, source=ModelDirectory(model), rivals=False)
    assert len(found["rows"]) == rows
    assert found["too_busy"] == (rows == 0)
    assert [entry["runtime"] for entry in found["skipped"]] == ["all", "all"] * (rows == 0)
    tried = len({b["round"] for b in found["blocks"]})
    if load:
        assert tried > 2  # it tried again
        assert f"kept 0.90 cores busy, and 0 of {tried} rounds were quiet" in found["skipped"][0]["reason"]
    else:
        assert tried == 2
