"""`Watch`: looks at the texts that a live model gets, and says when they are no longer those it was calibrated on."""

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.drift.reference import Reference, read_reference
from bitwright.drift.requests import file_request
from bitwright.drift.sketch import BUCKETS, Sketch, along_directions, bucket_of, distances
from bitwright.drift.thresholds import PERSISTENCE
from bitwright.errors import BitwrightError, InputError

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

_TOGETHER = 64  # texts that are looked at at once: fewer would cost more than they tell


@dataclass(frozen=True, slots=True)
class Alarm:
    """A statistic passed its threshold in as many windows in a row as an alarm takes. window: number of the last."""

    window: int
    statistics: Mapping[str, float]
    thresholds: Mapping[str, float]
    passed: tuple[str, ...]

    def __str__(self) -> str:
        told = [f"{name} {self.statistics[name]:.3g} > {self.thresholds[name]:.3g}" for name in self.passed]
        return f"the texts have drifted ({', '.join(told)})"


class Watch:
    """Watches one model in a live process. It may be used by several threads at once.

        watch = bitwright.Watch(model, queue="recalibrate")
        vectors = watch.encode(texts)        # as model.encode, and looks at them
        watch.see(ids=ids, embeddings=vectors)   # or: what the process has anyway

    Attributes:
        windows, seen, seconds: windows that were closed, texts seen, and the time that watching them took.
        statistics: of the last window, by name. alarms: all that there were.
    """

    def __init__(
        self, model: "Model | str | Path", *, name: str | None = None, reference: Reference | str | Path | None = None,
        queue: str | Path | None = None, on_alarm: Callable[[Alarm], object] | None = None,
    ) -> None:  # fmt: skip
        """Args:
            model: a loaded model, or the directory of one; then `see` must be given ids.
            name: of the model in the fleet; by default its directory's.
            reference: by default drift.json beside the model.
            queue: a folder; an alarm puts a request for a new calibration there, which `bitwright fleet run --queue`
                takes up.
            on_alarm: is called with each alarm.

        Raises:
            CheckpointError: there is no readable reference.
        """
        self._model: Model | None = None if isinstance(model, str | Path) else model
        self._path = Path(model) if isinstance(model, str | Path) else model.path
        self.name = name or self._path.resolve().name
        found = reference if isinstance(reference, Reference) else read_reference(Path(reference or self._path))
        self.reference = found
        self._queue, self._on_alarm = None if queue is None else Path(queue), on_alarm
        self.windows = self.seen = 0
        self.seconds = 0.0
        self.statistics: dict[str, float] = {}
        self.alarms: list[Alarm] = []
        self._in_a_row = dict.fromkeys(found.thresholds, 0)
        self._lock = threading.Lock()
        self._ids: list[Sequence[int]] = []  # seen, and not looked at yet
        self._rows: list[np.ndarray] = []
        self._empty_window()

    def encode(self, items: Any, **options: Any) -> Any:
        """What `model.encode` gives for texts, which are watched.

        Raises:
            InputError: there is no loaded model; or as `model.encode`.
        """
        if self._model is None:
            raise InputError("Watch was given a directory; give it a loaded model, or call `see` beside your own calls")
        prompts = {key: options.pop(key) for key in ("prompt", "prompt_name") if key in options}
        single = isinstance(items, str)
        ids = self._model.tokenize([items] if single else items, **prompts)
        found = self._model.encode(ids, **options)
        self.see(ids=ids, embeddings=found if self.reference.width and isinstance(found, np.ndarray) else None)
        return found[0] if single else found

    def see(
        self, texts: Sequence[str] | None = None, *, ids: Sequence[Sequence[int]] | None = None,
        embeddings: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Look at some texts.

        Args:
            texts: needed where `ids` are not given; they are then tokenized again, which takes most of the time.
            ids: of their tokens, special ones included, as `model.tokenize` gives them.
            embeddings: (n, D) as `model.encode` gives them; without them only tokens and lengths are watched.

        Raises:
            InputError: neither ids nor a model that makes them of texts; embeddings of another form.
        """
        begun = time.perf_counter()
        if ids is None:
            if texts is None or self._model is None:
                raise InputError("give the ids of the tokens, or texts to a Watch that was given a loaded model")
            ids = self._model.tokenize(list(texts))
        if embeddings is not None and embeddings.shape != (len(ids), self.reference.width):
            raise InputError(
                f"embeddings have the shape {embeddings.shape}, but {len(ids)} texts of this model have "
                f"({len(ids)}, {self.reference.width})"
            )
        alarms = []
        with self._lock:
            self.seen += len(ids)
            self._ids.extend(ids)
            if embeddings is not None:
                self._rows.append(np.array(embeddings, np.float32))
            if len(self._ids) >= _TOGETHER:
                alarms = self._look()
            self.seconds += time.perf_counter() - begun
        for alarm in alarms:
            self._tell(alarm)

    def flush(self) -> None:
        """Look at what was seen and not looked at yet."""
        with self._lock:
            alarms = self._look()
        for alarm in alarms:
            self._tell(alarm)

    def metrics(self, registry: Any = None) -> None:
        """Let Prometheus read this watch. registry: of prometheus_client; by default its global one.

        Raises:
            InputError: prometheus_client is not installed.
        """
        from bitwright.drift.metrics import register

        register(self, registry)

    @property
    def drifted(self) -> bool:
        """Whether a statistic has passed its threshold in enough windows in a row, up to the last one."""
        return any(n >= PERSISTENCE for n in self._in_a_row.values())

    @property
    def in_excess(self) -> tuple[str, ...]:
        """The statistics that passed their thresholds in the last window."""
        return tuple(name for name, n in self._in_a_row.items() if n > 0)

    def _empty_window(self) -> None:
        self._n, self._unknown, self._complete = 0, 0, True
        self._octaves: list[np.ndarray] = []
        self._along: list[np.ndarray] = []
        self._counts = np.zeros(BUCKETS)

    def _look(self) -> list[Alarm]:
        """Count what was seen, and close windows that are full."""
        ids, self._ids = self._ids, []
        rows, self._rows = self._rows, []
        along = along_directions(np.concatenate(rows)) if rows else None
        if along is not None and len(along) != len(ids):
            along = None  # some calls gave embeddings, others none
        alarms, begin = [], 0
        while begin < len(ids):
            end = min(len(ids), begin + self.reference.window - self._n)
            self._count(ids[begin:end], None if along is None else along[begin:end])
            begin = end
            if self._n == self.reference.window and (alarm := self._close()) is not None:
                alarms.append(alarm)
        return alarms

    def _count(self, ids: list[Sequence[int]], along: np.ndarray | None) -> None:
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        self._counts += np.bincount(bucket_of(flat), minlength=BUCKETS)
        if self.reference.unknown_id is not None:
            self._unknown += int(np.count_nonzero(flat == self.reference.unknown_id))
        self._octaves.append(np.log2(np.maximum(lengths, 1)))
        if along is None:
            self._complete = False
        else:
            self._along.append(along)
        self._n += len(ids)

    def _close(self) -> Alarm | None:
        """The statistics of the window, and an alarm if there is a new one."""
        along = np.sort(np.concatenate(self._along).T, 1) if self._complete else np.empty((0, 0))
        window = Sketch(np.sort(np.concatenate(self._octaves)), float(self._unknown), self._counts, along)
        self.statistics = distances(window, self.reference.sketch, self.reference.spread_P)
        self.windows += 1
        self._empty_window()
        limits, before = self.reference.thresholds, self.drifted
        for name, value in self.statistics.items():
            self._in_a_row[name] = self._in_a_row[name] + 1 if value > limits[name] else 0
        if before or not self.drifted:
            return None
        passed = tuple(name for name, n in self._in_a_row.items() if n >= PERSISTENCE)
        alarm = Alarm(self.windows, self.statistics, limits, passed)
        self.alarms.append(alarm)
        return alarm

    def _tell(self, alarm: Alarm) -> None:
        """Serving goes on, whatever becomes of the request."""
        if self._queue is not None:
            try:
                file_request(self._queue, self.name, str(alarm), alarm.statistics, alarm.thresholds)
            except (OSError, BitwrightError) as error:
                warnings.warn(f"{self.name}: {alarm}, but no request could be filed: {error}", stacklevel=3)
        if self._on_alarm is not None:
            self._on_alarm(alarm)
