"""Tasks in worker processes: what comes back, and what happens when a worker, a task or the caller fails."""

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import BitwrightError, InputError, WorkerError
from bitwright.workers.processes import shares_of
from bitwright.workers.tasks import Died, kept, run
from tests.workers.jobs import facts, failing, squares, unloadable, victims

NAMES = [(f"number {i}", i) for i in range(12)]
# Where workers run: processes; with Ray installed, a cluster of its own as well.
RAY = pytest.param("local", marks=pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"))
PLACES = pytest.mark.parametrize("ray", [None, RAY])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@PLACES
def test_every_task_is_done_once_and_few_are_read_ahead(ray: str | None) -> None:
    read: list[int] = []

    def tasks() -> Iterator[tuple[str, int]]:
        for name, i in NAMES:
            read.append(i)
            yield name, i

    found = []
    with closing(run(tasks(), squares, workers=2, ray=ray)) as results:
        for result in results:
            found.append(result)
            assert len(read) <= len(found) + 2 * 2
    assert sorted(found) == sorted((name, i * i) for name, i in NAMES)


@PLACES
def test_the_task_of_a_worker_that_dies_is_handed_on(ray: str | None, tmp_path: Path) -> None:
    found = dict(run(NAMES, partial(victims, tmp_path, 2), workers=2, ray=ray))
    assert found == {name: i * i for name, i in NAMES}
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(WorkerError, match="number 3: 2 workers died of this task") as error:
        list(run(NAMES, partial(victims, tmp_path, 9), workers=2, ray=ray, tries=2))
    if ray is None:
        assert "SIGKILL" in str(error.value)
        assert "about to die" in str(error.value)


def test_a_run_need_not_end_when_workers_die_of_a_task(tmp_path: Path) -> None:
    found = dict(run(NAMES, partial(victims, tmp_path, 9), workers=2, tries=2, ends_at_deaths=False))
    died = found.pop("number 3")
    assert isinstance(died, Died)
    assert "2 workers died of this task" in died.how
    assert found == {name: i * i for name, i in NAMES if i != 3}


def test_tasks_may_wait_for_results() -> None:
    """Each but the first two needs the results of the two before it."""
    done: set[int] = set()

    def tasks() -> Iterator[tuple[int, int] | None]:
        for i in range(8):
            while not {i - 1, i - 2} - {-1, -2} <= done:
                yield None
            yield i, i

    found = []
    for key, result in run(tasks(), squares, workers=3):
        done.add(key)
        found.append(result)
    assert found == [i * i for i in range(8)]


@PLACES
@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [("input", InputError, "line 3: no"), ("full", OSError, "full"), ("bug", WorkerError, "ZeroDivisionError: x")],
)
def test_an_error_of_a_task_is_raised_here(what: str, kind: type[Exception], message: str, ray: str | None) -> None:
    with pytest.raises(kind, match=message) as error:
        list(run([("a", what)], failing, workers=1, ray=ray))
    assert "_raised" in error.value.__notes__[0]  # where it happened, for --debug


def test_an_error_of_the_start_is_raised_here() -> None:
    with pytest.raises(InputError, match="no such model"):
        list(run(NAMES, unloadable, workers=2))


def test_workers_have_their_own_processors_and_end_with_the_loop() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with closing(run([(i, 0.2 if i < 2 else 60) for i in range(4)], facts, workers=2)) as results:
        first, second = next(results)[1], next(results)[1]
    assert first["pid"] != second["pid"]
    if len(cores) > 1:
        assert sorted([*first["cores"], *second["cores"]]) == cores
    begun = time.monotonic()
    while (is_alive(first["pid"]) or is_alive(second["pid"])) and time.monotonic() < begun + 5:
        time.sleep(0.01)
    assert not is_alive(first["pid"])
    assert not is_alive(second["pid"])


@pytest.mark.parametrize(
    ("cores", "workers", "shares"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([0, 2, 4, 6, 8], 2, [[0, 2], [4, 6, 8]]),
        ([5], 1, [[5]]),
        ([0, 1], 3, [[0], [1], [0]]),
    ],
)
def test_shares(cores: list[int], workers: int, shares: list[list[int]]) -> None:
    assert shares_of(cores, workers) == shares


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'bitwright\[ray\]'"):
        list(run(NAMES, squares, ray="auto"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: there is no Ray cluster"):
        list(run(NAMES, squares, ray="127.0.0.1:1"))


def test_no_tasks_no_results() -> None:
    nothing: list[tuple[Any, Any]] = []
    assert list(run(nothing, squares, workers=1)) == []
    assert issubclass(WorkerError, BitwrightError)


def test_workers_may_stay_for_several_runs() -> None:
    with kept(facts, workers=2) as do:
        first = dict(do([("a", 0.0), ("b", 0.1)]))
        again = dict(do([("c", 0.1), ("d", 0.0), ("e", 0.0)]))
    pids = {found["pid"] for found in (*first.values(), *again.values())}
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
    with pytest.raises(InputError, match="line 3"), kept(failing, workers=1) as do:
        list(do([("a", "input")]))
