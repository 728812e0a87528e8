"""What a worker of a fleet does: one model at a time, whose failure is a result like another."""

import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bitwright.errors import BitwrightError, ExitCode
from bitwright.fleet.config import Entry

T = TypeVar("T")

_TOLD_EVERY_S = 0.5


class Failure(NamedTuple):
    """Why a model has no result. trace: of an error that nobody foresaw."""

    text: str
    exit_code: int
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """One model for a worker.

    steps: the file in which it says what it does. command: what the record says of how the result was made. stale:
    whether an interrupted run for other content is in the way.
    """

    entry: Entry
    steps: Path
    command: str
    stale: bool


def quantizing() -> Callable[[Order], Failure | None]:
    """What a worker does with an order: None, and the result lies in its place, or why there is none."""
    return _carry_out


def _carry_out(order: Order) -> Failure | None:
    try:
        _quantize(order)
    except BitwrightError as error:
        return Failure(str(error), int(error.exit_code))
    except MemoryError:
        return Failure("not enough memory; free some, or give this model fewer neighbours", int(ExitCode.FAILED))
    except OSError as error:
        return Failure(f"{error.filename or 'the system'}: {error.strerror or error}", int(ExitCode.FAILED))
    except Exception as error:  # one bad model fails alone, whatever is wrong with it
        return Failure(f"{type(error).__name__}: {error}", int(ExitCode.FAILED), traceback.format_exc())
    return None


def _quantize(order: Order) -> None:
    from bitwright.calibration.data import BUILTIN
    from bitwright.drift.check import make_from_files, reference_texts
    from bitwright.pipeline import quantize
    from bitwright.pipeline.workspace import work_path

    entry, texts, steps = order.entry, order.entry.texts, Steps(order.steps)
    if order.stale:
        shutil.rmtree(work_path(entry.out), ignore_errors=True)
    sources = texts.data or (BUILTIN,)
    if entry.drift:
        reference_texts(sources)  # too few are told before the work
    steps.say("loading")
    quantize(
        entry.model, out=entry.out, recipe=entry.recipe, data=texts.data, evaluation=texts.evaluation, kind=texts.kind,
        metric=texts.metric, samples=texts.samples, task=entry.task, overwrite=True, judged=entry.judged,
        speed=entry.speed and entry.judged, command=order.command, progress=steps,
    )  # fmt: skip
    if entry.drift:
        make_from_files(entry.out, sources, progress=steps)


class Steps:
    """A `Progress` that leaves what is being done now in a file, for whoever shows the fleet."""

    def __init__(self, file: Path) -> None:
        self._file, self._last = file, 0.0

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Yield the items."""
        for i, item in enumerate(items):
            if i == 0 or time.monotonic() > self._last + _TOLD_EVERY_S:
                self._write(f"{what}: {i} of {len(items)}")
            yield item

    def say(self, text: str) -> None:
        """Note one remark."""
        self._write(text)

    def _write(self, text: str) -> None:
        """A worker does not fail for want of a place to say how it does."""
        self._last = time.monotonic()
        try:
            self._file.write_text(json.dumps({"step": text[:300]}), encoding="utf-8")
        except OSError:
            return


def read_step(file: Path) -> str | None:
    """What a worker said last; None where none has begun."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return str(found["step"])
    except OSError:
        return None
    except (ValueError, KeyError, TypeError):  # read while it was written
        return ""
