"""Bitwright's answers for a layout beside the library's, and the verdict."""

import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import bitwright
from bitwright.errors import BitwrightError
from tests.differential.directory import write
from tests.differential.layouts import Layout
from tests.differential.library import Answer, Item, Library, items_of, open_library, quiet, take_weights

T = TypeVar("T")

FLOAT_TOLERANCE = 1e-4  # of the length of the library's output
INT8_FACTOR = 2.0  # times the distance that the same weights and inputs, rounded, have in the library itself
INT8_FLOOR = 5e-3  # of the length of the library's output: where that distance happens to be next to nothing
# An output of few values, such as one score, is near zero or off by nothing in one text by luck: it is measured by what
# is typical of all texts, with more room for one of them.
FEW_VALUES, FEW_FACTOR = 16, 4.0

RIGHT, REFUSED, WRONG, CRASHED = "right", "refused", "wrong", "crashed"
UNLOADABLE = "not loaded by the library"
_WORST_LAST = (UNLOADABLE, RIGHT, REFUSED, WRONG, CRASHED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind: one of the five above. stage: "library", "float" or "int8". reason: of a refusal the message, of a crash
    the error, else what differs. figures: of the texts, what was measured."""

    kind: str
    stage: str
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class _Fails(Exception):
    """Carries a verdict out of a stage."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class _Watch:
    """A Progress that knows whether the work has begun."""

    begun = False

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        """Every loop that is shown is work."""
        self.begun = True
        return iter(items)

    def say(self, text: str) -> None:
        """Remarks precede the work, or stand in it."""
        self.begun |= text.startswith("quantizing")


def judge(layout: Layout, folder: Path) -> Verdict:
    """What becomes of a layout; `folder` is made, and removed again."""
    with quiet():
        try:
            return _judge(layout, folder)
        except _Fails as failed:
            return failed.verdict
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _judge(layout: Layout, folder: Path) -> Verdict:
    source, result = folder / "model", folder / "result"
    write(layout, source)
    try:
        library = open_library(layout, source)
    except Exception as error:
        return Verdict(UNLOADABLE, "library", _line(error))
    items, answers = _answered(items_of(layout), library)
    if not items:
        return Verdict(UNLOADABLE, "library", "it answers no text with finite numbers")
    verdicts = [_stage(lambda: _float(library, source, items, answers)),
                _stage(lambda: _int8(library, source, result, items, answers))]  # fmt: skip
    worst = max(verdicts, key=lambda verdict: _WORST_LAST.index(verdict.kind))
    if worst.kind in (REFUSED, WRONG) and _guesses(layout, source, items, answers):
        return Verdict(UNLOADABLE, "library", "its answers are random: the files lack a weight that it fills in")
    return worst


def _stage(run: Callable[[], Verdict]) -> Verdict:
    try:
        return run()
    except _Fails as failed:
        return failed.verdict


def _answered(items: list[Item], library: Library) -> tuple[list[Item], list[Answer]]:
    """The items that the library answers, with the answers."""
    found = [(item, answer) for item, answer in zip(items, library.answers(items), strict=True) if answer is not None]
    return [item for item, _ in found], [answer for _, answer in found]


def _guesses(layout: Layout, source: Path, items: list[Item], answers: list[Answer]) -> bool:
    """Whether the library, opened again, answers otherwise."""
    again = open_library(layout, source).answers(items)
    pairs = zip(answers, again, _lengths(answers), strict=True)
    return any(new is None or _distance(new[1], old[1]) > FLOAT_TOLERANCE * length for old, new, length in pairs)


def _float(library: Library, source: Path, items: list[Item], answers: list[Answer]) -> Verdict:
    """Plumbing: nothing quantized."""
    model = _refusable("float", lambda: bitwright.load(source, compute="float32"))
    _compare_ids("float", model, library, items, answers)
    outputs = _outputs("float", model, library, items, answers)
    far = [distance / length for distance, length in zip(_distances(outputs, answers), _lengths(answers), strict=True)]
    figures = {"relative distance": _rounded(far)}
    if max(far) > FLOAT_TOLERANCE:
        return Verdict(WRONG, "float", f"output differs for {_worst(items, far)}", figures)
    return Verdict(RIGHT, "float", "", figures)


def _int8(library: Library, source: Path, result: Path, items: list[Item], answers: list[Answer]) -> Verdict:
    """The default recipe, quantized, written, loaded again."""
    watch = _Watch()
    _refusable(
        "int8", lambda: bitwright.quantize(source, out=result, judged=False, progress=watch), lambda: watch.begun
    )
    model = _refusable("int8", lambda: bitwright.load(result), lambda: True)
    _compare_ids("int8", model, library, items, answers)
    ours = _distances(_outputs("int8", model, library, items, answers), answers)
    take_weights(library, result)
    rounded = [theirs if same is None else same[1]
               for (_, theirs), same in zip(answers, library.answers(items), strict=True)]  # fmt: skip
    theirs = [INT8_FACTOR * distance for distance in _distances(rounded, answers)]
    if _few(answers):
        theirs = [FEW_FACTOR / INT8_FACTOR * _mean_square(theirs)] * len(theirs)
    allowed = [INT8_FLOOR * length + far for length, far in zip(_lengths(answers), theirs, strict=True)]
    rows = [distance / most for distance, most in zip(ours, allowed, strict=True)]
    figures = {"distance over what is allowed": _rounded(rows), "backend": model.backend}
    if max(rows) > 1.0:
        return Verdict(WRONG, "int8", f"output differs for {_worst(items, rows)}", figures)
    return Verdict(RIGHT, "int8", "", figures)


def _refusable(stage: str, run: Callable[[], T], begun: Callable[[], bool] = lambda: False) -> T:
    """What `run` gives; an error of ours before the work is a refusal, any other a crash."""
    try:
        return run()
    except BitwrightError as error:
        if begun():
            raise _Fails(Verdict(CRASHED, stage, f"after the work: {_line(error)}")) from None
        raise _Fails(Verdict(REFUSED, stage, _line(error))) from None
    except Exception as error:
        raise _Fails(Verdict(CRASHED, stage, f"{_line(error)} at {_place(error)}")) from None


def _compare_ids(stage: str, model: Any, library: Library, items: list[Item], answers: list[Answer]) -> None:
    ours = _refusable(stage, lambda: model.tokenize(items), lambda: True)
    for item, mine, (fed, _) in zip(items, ours, answers, strict=True):
        # A prompt that a model puts before every text may be added where texts are encoded, not where they are cut.
        if mine != fed and not library.prompted:
            figures = {"ours": mine[:40], "library": fed[:40], "backend": model.backend}
            raise _Fails(Verdict(WRONG, stage, f"ids differ, item {items.index(item)}: {item!r:.60}", figures))


def _outputs(stage: str, model: Any, library: Library, items: list[Item], answers: list[Answer]) -> list[np.ndarray]:
    # Padding at the left moves the positions of a text: it is asked alone then, as the library is.
    together = {"batch_size": 1} if library.pads_left else {}
    ours = _refusable(stage, lambda: model.encode(items, **together), lambda: True)
    outputs = [np.asarray(row, np.float64) for row in ours]
    for item, mine, (_, theirs) in zip(items, outputs, answers, strict=True):
        if mine.shape != theirs.shape:
            figures = {"backend": model.backend, "task": model.task}
            reason = f"shape {list(mine.shape)}, the library gives {list(theirs.shape)}: {item!r:.60}"
            raise _Fails(Verdict(WRONG, stage, reason, figures))
    return outputs


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float("inf") if a.shape != b.shape else float(np.linalg.norm(a - b))


def _distances(outputs: list[np.ndarray], answers: list[Answer]) -> list[float]:
    return [_distance(ours, theirs) for ours, (_, theirs) in zip(outputs, answers, strict=True)]


def _lengths(answers: list[Answer]) -> list[float]:
    """Of the library's outputs: what distances are measured by."""
    lengths = [max(float(np.linalg.norm(output)), 1e-12) for _, output in answers]
    return [_mean_square(lengths)] * len(lengths) if _few(answers) else lengths


def _few(answers: list[Answer]) -> bool:
    return all(output.size < FEW_VALUES for _, output in answers)


def _mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


def _worst(items: list[Item], far: list[float]) -> str:
    at = int(np.argmax(far))
    many = sum(value > 10 * min(far) + 1e-9 for value in far)
    return f"item {at} ({far[at]:.3g}; {many} of {len(items)} stand out): {items[at]!r:.60}"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def reason_of(message: str) -> str:
    """A message without what is particular to one directory: paths, numbers, names in quotes and of tensors."""
    message = re.sub(r"/tmp[\w./\-]*", "DIR", message)
    message = re.sub(r"(differ|gives)\b.*", r"\1", message) if message.startswith(("ids", "output", "shape")) else message
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "…", message)
    message = re.sub(r"\b[\w]+(\.[\w]+){2,}", "NAME", message)
    return re.sub(r"\[[\d, ]*\]|-?\d+(\.\d+)?(e-?\d+)?", "#", message)[:160]
