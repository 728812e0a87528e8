"""References and comparisons from files of texts, for the command line and the fleet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitwright.calibration.data import mix, parse_sources
from bitwright.drift.reference import (
    MOST_TEXTS,
    WINDOW,
    Reference,
    make_reference,
    read_reference,
    require_enough,
    write_reference,
)
from bitwright.drift.watch import Watch
from bitwright.errors import DataError, InputError
from bitwright.progress import Progress, Quiet
from bitwright.runtime.load import load


class Made(NamedTuple):
    """A reference that was written."""

    file: Path
    reference: Reference


def make_from_files(
    model: str | Path, data: Sequence[str], *, window: int | None = None, progress: Progress | None = None
) -> Made:
    """Make the reference of a model from sources of texts, and write it beside the model.

    Raises:
        BitwrightError: the model or the texts cannot be read, or are too few. OSError: it cannot be written.
    """
    texts = reference_texts(data)
    loaded = load(model)
    (progress or Quiet()).say(f"encoding {len(texts)} texts")
    made = make_reference(loaded, texts, window=window or WINDOW)
    return Made(write_reference(made, loaded.path), made)


def check_texts(
    model: str | Path, data: Sequence[str], *, queue: Path | None = None, name: str | None = None,
    window: int | None = None, progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compare sources of texts with the reference of a model, window by window.

    Returns:
        "windows": the statistics of each; "thresholds"; "alarms": as texts; "drifted".

    Raises:
        InputError: a window is asked for, which the reference has. DataError: fewer texts than one window.
    """
    if window is not None:
        raise InputError("--window belongs to --make: the reference has its own")
    loaded = load(model)
    reference = read_reference(loaded.path)
    texts = _texts(data)
    if len(texts) < reference.window:
        raise DataError(
            f"there are {len(texts)} texts, but this reference compares {reference.window} at a time; give more, or "
            "make a reference with a smaller --window"
        )
    watch = Watch(loaded, name=name, reference=reference, queue=queue)
    windows: list[dict[str, float]] = []
    whole = range(0, len(texts) - reference.window + 1, reference.window)
    for begin in (progress or Quiet()).track(whole, "encoding"):
        watch.encode(texts[begin : begin + reference.window])
        watch.flush()
        windows.append(watch.statistics)
    drifted = bool(watch.alarms) or (watch.windows == 1 and watch.in_excess != ())
    alarms = [str(alarm) for alarm in watch.alarms] or [f"one window is past {', '.join(watch.in_excess)}"] * drifted
    return {"windows": windows, "thresholds": reference.thresholds, "alarms": alarms, "drifted": drifted}


def reference_texts(data: Sequence[str]) -> list[str]:
    """The texts of a reference.

    Raises:
        DataError: they cannot be read, hold pairs, or are too few.
    """
    texts = _texts(data)
    require_enough(texts)
    return texts


def _texts(data: Sequence[str]) -> list[str]:
    """Single texts of the sources, in a seeded random order.

    Raises:
        DataError: they cannot be read, or hold pairs.
    """
    found = mix(parse_sources(data), MOST_TEXTS)
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise DataError("two columns are named, but drift is told of single texts; name one column")
    return texts
