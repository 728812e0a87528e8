"""`Row`: one model of a fleet, as the table, the page and the exit code see it; and who has the fleet's folder."""

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bitwright.errors import ExitCode, InputError
from bitwright.fleet.config import Fleet
from bitwright.fleet.receipts import FAILED, FOLDER, SKIPPED, Outcome, read_receipt, step_file
from bitwright.fleet.work import read_step

_LOCK = "lock"
_PATIENCE_S = 0.5  # somebody may look whether a run is at work, at this very moment


@dataclass(frozen=True, slots=True)
class Row:
    """One model of a run under way, or of a finished one.

    state: "waiting", "running", "unchanged", or the verdict of its outcome. step: what its worker does now. why: what
    changed since its result was made, so that it is made again. before: the outcome of the last time.
    """

    name: str
    state: str
    out: Path
    step: str = ""
    outcome: Outcome | None = None
    why: tuple[str, ...] = ()
    before: Outcome | None = None


def exit_code(rows: Sequence[Row]) -> ExitCode:
    """0: every model is inside its budget; 1: one has no result, or none to be used; 3: one is not shown to be."""
    codes = [row.outcome.exit_code if row.outcome else ExitCode.FAILED for row in rows]
    bad = [row for row in rows if row.outcome is None or row.outcome.verdict in (FAILED, SKIPPED)]
    if bad or ExitCode.FAILED in codes:
        return ExitCode.FAILED
    return ExitCode.NOT_SHOWN if any(codes) else ExitCode.DONE


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have a fleet's hidden folder to oneself.

    Raises:
        InputError: another run has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another `out`") from None
    with lock:
        if not _locked(lock):
            time.sleep(_PATIENCE_S)
            if not _locked(lock):
                raise InputError(f"{folder.parent}: another run of this fleet is at work; wait for it")
        yield


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at_work(folder: Path) -> bool:
    """Whether a run has a fleet's hidden folder now."""
    try:
        with (folder / _LOCK).open() as lock:
            return not _locked(lock)
    except OSError:
        return False


def status_rows(fleet: Fleet) -> list[Row]:
    """What the receipts of a fleet say of each model, for somebody who does not run it."""
    folder, rows = fleet.out / FOLDER, []
    for entry in fleet.entries:
        receipt, step = read_receipt(folder, entry.name), read_step(step_file(folder, entry.name))
        outcome = receipt.outcome if receipt else None
        state = "waiting" if receipt is None else "running" if step is not None else receipt.state
        state = outcome.verdict if outcome is not None and state in ("done", "failed") else state
        rows.append(Row(entry.name, state, entry.out, step or "", outcome))
    return rows
