"""`run`: tasks in worker processes of this machine, or of a Ray cluster, with results as they come.

    tasks      an iterable of (key, payload). It is read as workers become free, so it may be longer than memory holds
    start      is called once in each worker, and gives the function that does a task there: payload -> result
    a worker   that dies is started again and its task is handed on, at most `tries` times
    an error   that a task raises ends the run: the same payload would raise it again
    None       in place of a task: there is none now, but there may be one after the next result

Workers only compute. Who calls `run` reads and writes files, so workers need no disk in common, and no two of them
ever write the same file.
"""

import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from bitwright.errors import BitwrightError, WorkerError

Key = TypeVar("Key")
Start = Callable[[], Callable[[Any], Any]]  # can be pickled: a function of a module, or a `functools.partial` of one

TRIES = 3


class Done(NamedTuple):
    """A task was done."""

    result: Any


class Failed(NamedTuple):
    """A task raised an error."""

    error: Exception


class Died(NamedTuple):
    """The worker is gone, and its task is not done. how: for people, how it ended and what it said last."""

    how: str


Outcome = Done | Failed | Died


class Workers(Protocol):
    """Workers, numbered from 0. Each has one task at a time."""

    count: int

    def give(self, worker: int, payload: Any) -> None:
        """Hand a task to a worker that has none. One that died is started again."""

    def wait(self) -> list[tuple[int, Outcome]]:
        """What became of the tasks of one or more workers, as soon as there is anything."""

    def close(self) -> None:
        """End all workers at once, whatever they do."""


class _Task:
    """A task and how often a worker has died of it."""

    __slots__ = ("deaths", "key", "payload")

    def __init__(self, key: Any, payload: Any) -> None:
        self.key, self.payload, self.deaths = key, payload, 0


def run(
    tasks: Iterable[tuple[Key, Any] | None], start: Start, *, workers: int | None = None, ray: str | None = None,
    tries: int = TRIES, ends_at_deaths: bool = True,
) -> Generator[tuple[Key, Any], None, None]:  # fmt: skip
    """Do tasks in workers, and yield (key, result) in the order of completion.

    At most two payloads for each worker are in memory: the one that is being worked on, and the next one. Closing the
    generator, or an exception in its loop, ends all workers; so does the death of this process.

    Args:
        tasks: (key, payload). The key stays here; it is shown in messages. The payload is pickled.
        start: see above; it is pickled, too.
        workers: how many; by default one for each processor that may be used, of this machine or of the cluster.
        ray: the address of a Ray cluster, as `ray.init` takes it; None for processes of this machine.
        tries: how many workers may die of one task.
        ends_at_deaths: whether that ends the run; if not, the result of such a task is `Died`.

    Raises:
        WorkerError: as many died of one task, and that ends the run; an error of a task that nobody foresaw; the
            cluster is gone.
        InputError: Ray is not installed, or gives no cluster at that address.
        BitwrightError, OSError, MemoryError: as a task raised it.
    """
    pool = _open(start, workers, ray)
    try:
        yield from _results(iter(tasks), pool, tries, ends_at_deaths=ends_at_deaths)
    finally:
        pool.close()


@contextmanager
def kept(
    start: Start, *, workers: int | None = None, ray: str | None = None, tries: int = TRIES
) -> Iterator[Callable[[Iterable[tuple[Key, Any]]], Iterator[tuple[Key, Any]]]]:
    """`run` several times with the same workers: a function from tasks to their results. All results of one call must
    be taken before the next call. The arguments and errors are those of `run`.
    """
    pool = _open(start, workers, ray)
    try:
        yield lambda tasks: _results(iter(tasks), pool, tries, ends_at_deaths=True)
    finally:
        pool.close()


def _open(start: Start, workers: int | None, ray: str | None) -> Workers:
    if ray is None:
        from bitwright.workers.processes import Processes

        return Processes(start, workers)
    from bitwright.workers.on_ray import OnRay

    return OnRay(start, workers, ray)


def _results(
    tasks: Iterator[tuple[Any, Any] | None], pool: Workers, tries: int, *, ends_at_deaths: bool
) -> Iterator[tuple[Any, Any]]:
    idle, busy = list(reversed(range(pool.count))), dict[int, _Task]()
    done: list[tuple[Any, Any]] = []
    waiting = deque[_Task]()

    def hand_out() -> None:
        while idle and waiting:
            worker = idle.pop()
            busy[worker] = waiting.popleft()
            pool.give(worker, busy[worker].payload)

    waiting.extend(_ready(tasks, pool.count))
    while waiting or busy:
        hand_out()
        # Every worker has work again: now there is time for what the caller does with results, and for reading on.
        yield from done
        waiting.extend(_ready(tasks, pool.count - len(waiting)))
        hand_out()  # what is ready only since then
        done = []
        for worker, outcome in pool.wait():
            task = busy.pop(worker)
            idle.append(worker)
            match outcome:
                case Failed(error):
                    raise error
                case Died(how):
                    task.deaths += 1
                    if task.deaths < tries:
                        waiting.appendleft(task)
                        continue
                    how = f"{task.deaths} workers died of this task, in turn; {how}"
                    if ends_at_deaths:
                        raise WorkerError(f"{task.key}: {how}")
                    done.append((task.key, Died(how)))
                case Done(result):
                    done.append((task.key, result))
        if not waiting and not busy:  # what waited for these results
            yield from done
            done = []
            waiting.extend(_ready(tasks, pool.count))
    yield from done


def _ready(tasks: Iterator[tuple[Any, Any] | None], most: int) -> Iterator[_Task]:
    """The next tasks, at most so many, up to the first None."""
    for task in islice(tasks, max(0, most)):
        if task is None:
            return
        yield _Task(*task)


class Work:
    """What a worker does: `start` at its first task, then each task."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._do: Callable[[Any], Any] | None = None

    def __call__(self, payload: Any) -> Outcome:
        """Done, or Failed with an error that another process can raise: one that no one foresaw as a WorkerError."""
        try:
            self._do = self._do or self._start()
            return Done(self._do(payload))
        except Exception as error:  # the boundary of the process: who gave the task decides what a failure means
            told = error if _travels(error) else WorkerError(f"a worker failed: {type(error).__name__}: {error}")
            told.add_note(traceback.format_exc())  # --debug shows it
            return Failed(told)


def _travels(error: Exception) -> bool:
    """Whether an error means the same in another process."""
    return isinstance(error, BitwrightError | OSError | MemoryError)
