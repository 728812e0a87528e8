"""Carries out a fleet: what changed since last time, in workers, within a bound of memory. The rest goes on, whatever
becomes of one model.

    waiting ▸ unchanged                      its receipt has the same digests, and the result is as it was left
            ▸ running ▸ a verdict | failed   in a worker; a worker that dies costs its model alone
            ▸ skipped                        what it is `after` failed
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import psutil

from bitwright.drift.requests import Request, close_request, read_requests
from bitwright.errors import BitwrightError, InputError
from bitwright.files.opening import open_path
from bitwright.files.yaml_file import nearest
from bitwright.fleet.adding import add_result
from bitwright.fleet.config import Entry, Fleet
from bitwright.fleet.digests import Digests, Parts, key_of, model_path, parts_of, result_digest
from bitwright.fleet.receipts import (
    FAILED,
    FOLDER,
    SKIPPED,
    Outcome,
    Receipt,
    failed,
    now,
    outcome_of,
    read_receipt,
    step_file,
    write_receipt,
)
from bitwright.fleet.rows import Row, alone
from bitwright.fleet.work import Failure, Order, quantizing, read_step
from bitwright.pipeline.resources import memory_needed
from bitwright.record import RECORD_FILE, read_record
from bitwright.workers import tasks

_SHARE_OF_FREE = 0.8  # of the free memory, that a fleet takes unless told otherwise
STALE_REQUEST = "stale request"  # in `Row.why`: a new calibration is asked for, but there are no new texts
_TRIES = 2  # workers that may die of one model


class Where(NamedTuple):
    """workers, ray: as `tasks.run` takes them. memory: bytes for all workers; None for most of what is free."""

    workers: int | None = None
    ray: str | None = None
    memory: int | None = None


HERE = Where()


class FleetRun:
    """One run of a fleet. `rows` may be asked by another thread while `go` works."""

    def __init__(
        self, fleet: Fleet, where: Where = HERE, *, only: Sequence[str] = (), queue: Path | None = None,
        told: Callable[[Row], None] | None = None,
    ) -> None:  # fmt: skip
        """only: names of models; by default all. queue: a folder of requests for new calibrations, to be followed.
        told: is called with the row of each model that is settled.

        Raises:
            InputError: `only` names a model that the fleet does not have; the queue cannot be read.
        """
        names = [entry.name for entry in fleet.entries]
        for name in only:
            if name not in names:
                raise InputError(f"{fleet.file}: there is no model {name!r}{nearest(name, names)}")
        self._fleet, self._where, self._told = fleet, where, told
        self._entries = [entry for entry in fleet.entries if not only or entry.name in only]
        self._folder = fleet.out / FOLDER
        requests = [] if queue is None else read_requests(queue)
        self._requests = {request.model: request for request in requests}
        self.strangers = [request for request in requests if request.model not in names]  # whom nobody here can follow
        self._rows = {entry.name: Row(entry.name, "waiting", entry.out) for entry in self._entries}
        self._orders: dict[str, Order] = {}
        self._receipts: dict[str, Receipt] = {}
        self._needed: dict[str, int] = {}  # bytes of memory, by name
        self._running: dict[str, int] = {}
        self._unwritten: list[Receipt] = []

    def rows(self) -> list[Row]:
        """What is known of each model now."""
        found = list(self._rows.values())
        steps = {row.name: read_step(step_file(self._folder, row.name)) for row in found if row.state == "running"}
        return [row if row.state != "running" else _with_step(row, steps[row.name]) for row in found]

    def go(self) -> list[Row]:
        """Do what is to be done, and return what became of each model.

        Raises:
            InputError: another run is at work in the same folder, or it cannot be written.
            WorkerError: a Ray cluster is gone.
        """
        with alone(self._folder):
            self._limit = self._where.memory or self._fleet.memory or _most_of_free()
            self._digests = Digests(self._folder / "digests.json")
            for left in self._folder.glob("*.step"):
                left.unlink()
            try:
                todo = self._tasks()
                first = next(todo, None)
                if first is not None:
                    results = tasks.run(
                        chain([first], todo), quantizing, workers=self._where.workers, ray=self._where.ray,
                        tries=_TRIES, ends_at_deaths=False,
                    )  # fmt: skip
                    with closing(results):
                        for name, result in results:
                            self._settle(name, result)
            finally:
                self._save()
        return list(self._rows.values())

    def _tasks(self) -> Iterator[tuple[str, Order] | None]:
        """Models that can be begun; None where there is none before another one is done."""
        waiting = list(self._entries)
        while waiting:
            entry = next((entry for entry in waiting if self._is_ready(entry)), None)
            if entry is None:
                yield None
                continue
            waiting.remove(entry)
            if entry.name in self._orders:
                yield entry.name, self._begin(entry)

    def _is_ready(self, entry: Entry) -> bool:
        """Whether a model can be begun now, or is settled without a worker."""
        before = [self._rows[name] for name in entry.after if name in self._rows]
        if any(row.outcome is None for row in before):
            return False
        if entry.name not in self._orders:
            bad = [row.name for row in before if row.outcome and row.outcome.verdict in (FAILED, SKIPPED)]
            if bad:
                self._close(entry.name, Outcome(SKIPPED, 1, f"it comes after {bad[0]}, which has no result"))
                return True
            self._prepare(entry)
        if entry.name not in self._orders:
            return True
        return not self._running or sum(self._running.values()) + self._needed[entry.name] <= self._limit

    def _prepare(self, entry: Entry) -> None:
        """Settle a model that is unchanged, or cannot be begun; else there is an order for it."""
        last = read_receipt(self._folder, entry.name)
        before = last.outcome if last else None
        self._rows[entry.name] = replace(self._rows[entry.name], before=before)
        request = self._requests.get(entry.name)
        try:
            plain = parts_of(entry, self._digests)
            if request is not None and entry.fresh:
                entry = replace(entry, texts=replace(entry.texts, data=entry.fresh))
            parts = plain if request is None else parts_of(entry, self._digests)
            if entry.out.exists() and not (last and last.out == str(entry.out)):
                raise InputError(
                    f"{entry.out}: this directory exists already, and this fleet did not write it; choose another `out`"
                )
        except (BitwrightError, OSError) as error:
            outcome = failed(str(error), int(getattr(error, "exit_code", 1)))
            # Its `out` says whose the directory is, and that has not changed.
            known = last or Receipt(entry.name, "failed", "", {}, {})
            self._write(replace(known, state="failed", outcome=outcome, result="", at=now()))
            self._close(entry.name, outcome)
            return
        command = f"{self._command(entry.name)}  # {key_of(parts)[:16]}"
        same = last is not None and last.state == "done" and dict(last.plain) == plain
        if request is not None and last is not None:
            same = same and dict(last.parts) == parts
        if same and last is not None and self._is_whole(entry, last):
            if request is not None:
                self._rows[entry.name] = replace(self._rows[entry.name], why=(STALE_REQUEST,))
            self._close(entry.name, last.outcome, unchanged=True)
            return
        self._rows[entry.name] = replace(self._rows[entry.name], why=_why(last, plain, request))
        named = request.file.name if request else ""
        receipt = Receipt(entry.name, "begun", str(entry.out), parts, plain, before, request=named, at=now())
        if (
            last is not None and last.state == "begun" and _made_by(entry.out, command)
        ):  # the run was killed before it could say so
            self._receipts[entry.name] = receipt
            self._settle(entry.name, None)
            return
        stale = last is not None and last.state != "done" and dict(last.parts) != parts
        self._needed[entry.name] = _memory(entry)
        self._receipts[entry.name] = receipt
        self._orders[entry.name] = Order(entry, step_file(self._folder, entry.name), command, stale)

    def _begin(self, entry: Entry) -> Order:
        self._write(self._receipts[entry.name])
        self._running[entry.name] = self._needed[entry.name]
        self._rows[entry.name] = replace(self._rows[entry.name], state="running")
        return self._orders[entry.name]

    def _settle(self, name: str, result: object) -> None:
        """What a worker gave for a model: None, a Failure, or how the last of them died."""
        self._running.pop(name, None)
        step_file(self._folder, name).unlink(missing_ok=True)
        receipt, out = self._receipts[name], self._rows[name].out
        try:
            if isinstance(result, Failure):
                if result.trace:
                    (self._folder / f"{name}.log").write_text(result.trace, encoding="utf-8")
                outcome = failed(result.text, result.exit_code)
            elif isinstance(result, tasks.Died):
                outcome = failed(result.how)
            else:
                outcome = outcome_of(out)
                receipt = replace(receipt, result=result_digest(out, self._digests))
        except (BitwrightError, OSError) as error:
            outcome = failed(str(error))
        state = "failed" if outcome.verdict == FAILED else "done"
        if state == "done" and outcome.exit_code == 0 and self._fleet.registry is not None:
            try:
                add_result(self._fleet.registry, name, out)
            except (BitwrightError, OSError) as error:  # still begun: the next run adds it, and does nothing else
                state, outcome = "begun", failed(f"the result is there, but was not added to the registry: {error}")
        self._write(replace(receipt, state=state, outcome=outcome, at=now()))
        if state == "done" and name in self._requests:
            with suppress(OSError):  # it stays open, and is found followed next time
                close_request(self._requests[name])
        self._close(name, outcome)

    def _close(self, name: str, outcome: Outcome | None, *, unchanged: bool = False) -> None:
        assert outcome is not None
        state = "unchanged" if unchanged else outcome.verdict
        self._rows[name] = replace(self._rows[name], state=state, outcome=outcome, step="")
        if self._told is not None:
            self._told(self._rows[name])

    def _is_whole(self, entry: Entry, last: Receipt) -> bool:
        """Whether a result is still as it was left."""
        try:
            return last.outcome is not None and result_digest(entry.out, self._digests) == last.result
        except OSError:
            return False

    def _write(self, receipt: Receipt) -> None:
        """Keep a receipt. On a full disk it waits: a model that failed for that may have left room for it."""
        self._unwritten.append(receipt)
        self._save()

    def _save(self) -> None:
        try:
            while self._unwritten:
                write_receipt(self._folder, self._unwritten[0])
                del self._unwritten[0]
            self._digests.save()
        except OSError:
            return

    def _command(self, name: str) -> str:
        return shlex.join(["bitwright", "fleet", "run", str(self._fleet.file), "--only", name])


def _with_step(row: Row, step: str | None) -> Row:
    """A model that no worker has taken yet is waiting."""
    return replace(row, state="waiting") if step is None else replace(row, step=step)


def _why(last: Receipt | None, parts: Parts, request: Request | None) -> tuple[str, ...]:
    """What is no longer as when the last result was made."""
    if request is not None:
        return ("request",)
    if last is None:
        return ("new",)
    changed = tuple(name for name, digest in parts.items() if last.plain.get(name) != digest)
    return changed or ({"done": "result", "failed": "failed"}.get(last.state, "interrupted"),)


def _made_by(out: Path, command: str) -> bool:
    try:
        return (out / RECORD_FILE).is_file() and read_record(out).command == command
    except BitwrightError:
        return False


def _memory(entry: Entry) -> int:
    """What a model takes, at its peak, in bytes; of one that cannot be read nothing: its worker will say why."""
    try:
        return memory_needed(open_path(model_path(entry)), judged=entry.judged, timed=entry.speed)
    except (BitwrightError, OSError):
        return 0


def _most_of_free() -> int:
    return int(_SHARE_OF_FREE * psutil.virtual_memory().available)
