"""Bitwright's answers for a layout beside the library's, and the verdict."""

import math
import re
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

import bitwright
from bitwright.errors import BitwrightError
from bitwright.families.tasks import TaskName
from bitwright.recipe import Recipe
from bitwright.runtime.engine_model import EngineModel
from tests.differential.directory import write
from tests.differential.layouts import Layout, named_task
from tests.differential.library import (
    Answer,
    Item,
    Library,
    asked_of,
    compute_in_bf16,
    items_of,
    open_library,
    quiet,
    take_weights,
)

T = TypeVar("T")

FLOAT_TOLERANCE = 1e-4  # of the length of the library's output
# Times the distance that the same weights and inputs, rounded, have in the library itself: in this text, or in a
# typical one if that is more. Rounding is chaotic: a difference far below a step of INT8 changes codes, and each
# moves the output by a whole step. So two forwards with the same weights are about as far from each other as each is
# from float, and the distance of one is a draw. The library's is drawn twice, and the larger one counts: with float32
# between the quantized linears, and with bf16, in which our runtimes compute there.
INT8_FACTOR = 2.0
INT8_FLOOR = 5e-3  # of the length of the library's output: where that distance happens to be next to nothing
# An output of few values, such as one score, is near zero or off by nothing in one text by luck: it is measured by what
# is typical of all texts, with more room for one of them.
FEW_VALUES, FEW_FACTOR = 16, 4.0

# Texts of which nothing depends but whether the tokenizers agree: the hard ones are read beside them, however few.
SAMPLES = 60

RIGHT, REFUSED, WRONG, CRASHED = "right", "refused", "wrong", "crashed"
UNLOADABLE = "not loaded by the library"
_WORST_LAST = (UNLOADABLE, RIGHT, REFUSED, WRONG, CRASHED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind: one of the five above. stage: "library", "float", "16bit" or "int8". reason: the message of a refusal, the
    error of a crash, else what differs. figures: of the texts, what was measured. strict: how many texts INT8 had,
    and of how many INT8_FACTOR times the library's first draw is less than our distance, and than its second draw."""

    kind: str
    stage: str
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    strict: tuple[int, int, int] = (0, 0, 0)

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


class _Fails(Exception):
    """Carries a verdict out of a stage."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class Asked(NamedTuple):
    """The library, the items that it answers, its answers, what `encode` is told beside them, and the task that the
    user names."""

    library: Library
    items: list[Item]
    answers: list[Answer]
    how: dict[str, Any]
    task: TaskName | None


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


def judge(layout: Layout, folder: Path, *, sixteen_bits: bool = True) -> Verdict:
    """What becomes of a layout; `folder` is made, and removed again. sixteen_bits: whether a result in 16 bit is judged
    beside that in INT8, a third of the work.
    """
    with quiet():
        try:
            return _judge(layout, folder, sixteen_bits)
        except _Fails as failed:
            return failed.verdict
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _judge(layout: Layout, folder: Path, sixteen_bits: bool) -> Verdict:
    source = folder / "model"
    write(layout, source)
    try:
        library = open_library(layout, source)
    except Exception as error:
        return Verdict(UNLOADABLE, "library", _line(error))
    items, answers = _answered(items_of(layout), library)
    if not items:
        return Verdict(UNLOADABLE, "library", "it answers no text with finite numbers")
    asked = Asked(library, items, answers, asked_of(layout), named_task(layout))
    verdicts = [_stage(lambda: _float(asked, source))]
    if sixteen_bits:
        verdicts.append(_stage(lambda: _sixteen_bits(asked, source, folder / "16bit")))
    verdicts.append(_stage(lambda: _int8(asked, source, folder / "int8")))
    worst = max(verdicts, key=lambda verdict: _WORST_LAST.index(verdict.kind))
    if worst.kind in (REFUSED, WRONG) and _guesses(layout, source, asked):
        return Verdict(UNLOADABLE, "library", "its answers are random: the files lack a weight that it fills in")
    return replace(worst, strict=verdicts[-1].strict)


def _stage(run: Callable[[], Verdict]) -> Verdict:
    try:
        return run()
    except _Fails as failed:
        return failed.verdict


def _answered(items: list[Item], library: Library) -> tuple[list[Item], list[Answer]]:
    """The items that the library answers, with the answers."""
    found = [(item, answer) for item, answer in zip(items, library.answers(items), strict=True) if answer is not None]
    return [item for item, _ in found], [answer for _, answer in found]


def _guesses(layout: Layout, source: Path, asked: Asked) -> bool:
    """Whether the library, opened again, answers otherwise."""
    again = open_library(layout, source).answers(asked.items)
    pairs = zip(asked.answers, again, _lengths(asked), strict=True)
    return any(new is None or _distance(new[1], old[1]) > FLOAT_TOLERANCE * length for old, new, length in pairs)


def _float(asked: Asked, source: Path) -> Verdict:
    """Plumbing: nothing quantized."""
    return _compare_floats(
        "float", _refusable("float", lambda: bitwright.load(source, compute="float32", task=asked.task)), asked
    )


def _sixteen_bits(asked: Asked, source: Path, result: Path) -> Verdict:
    """Plumbing of what is written: weights rounded to 16 bits, and those given to the library too."""
    model = _quantized("16bit", source, result, Recipe(scheme="16bit"), asked.task)
    take_weights(asked.library, result)
    answers = asked.library.answers(asked.items)
    same = [old if new is None else new for old, new in zip(asked.answers, answers, strict=True)]
    return _compare_floats("16bit", model, asked._replace(answers=same))


def _int8(asked: Asked, source: Path, result: Path) -> Verdict:
    """The default recipe, quantized, written, loaded again. The library rounds no attention, so the engine answers in
    float attention, too. Int8 attention adds no more than all other rounding.
    """
    model = _quantized("int8", source, result, Recipe(), asked.task)
    _compare_ids("int8", model, asked)
    ours = _distances(_outputs("int8", model, asked), asked)
    by_int8 = ours
    if isinstance(model, EngineModel) and any(model.executor.program.int8_attention):
        plain = EngineModel(model.directory, float_attention=True)
        ours = _distances(_outputs("int8", plain, asked), asked)
    take_weights(asked.library, result)
    exact = _distances_of_library(asked)
    compute_in_bf16(asked.library)
    in_bf16 = _distances_of_library(asked)
    strict = (len(ours), *(_beyond(draw, exact, _lengths(asked)) for draw in (ours, in_bf16)))
    theirs = [INT8_FACTOR * max(far) for far in zip(exact, in_bf16, strict=True)]
    typical = _mean_square(theirs)
    theirs = [max(far, typical) for far in theirs]  # rounding errors of one text may happen to cancel
    if _few(asked):
        theirs = [FEW_FACTOR / INT8_FACTOR * typical] * len(theirs)
    allowed = [INT8_FLOOR * length + far for length, far in zip(_lengths(asked), theirs, strict=True)]
    # Independent noise adds in squares (`runtime/tolerances.py`).
    far = [max(plain, whole / math.sqrt(2)) for plain, whole in zip(ours, by_int8, strict=True)]
    rows = [distance / most for distance, most in zip(far, allowed, strict=True)]
    figures = {"distance over what is allowed": _rounded(rows), "backend": model.backend}
    if max(rows) > 1.0:
        return Verdict(WRONG, "int8", f"output differs, {_worst(asked.items, rows)}", figures, strict)
    return Verdict(RIGHT, "int8", "", figures, strict)


def _beyond(draw: list[float], other: list[float], lengths: list[float]) -> int:
    """Of how many texts one draw of the rounding errors is farther from the library than INT8_FACTOR times another."""
    rows = zip(draw, other, lengths, strict=True)
    return sum(one > INT8_FLOOR * length + INT8_FACTOR * two for one, two, length in rows)


def _quantized(stage: str, source: Path, result: Path, recipe: Recipe, task: TaskName | None) -> Any:
    """The result of a recipe, loaded again."""
    watch = _Watch()
    _refusable(
        stage,
        lambda: bitwright.quantize(
            source, out=result, recipe=recipe, task=task, samples=SAMPLES, judged=False, progress=watch
        ),
        lambda: watch.begun,
    )
    return _refusable(stage, lambda: bitwright.load(result), lambda: True)


def _compare_floats(stage: str, model: Any, asked: Asked) -> Verdict:
    _compare_ids(stage, model, asked)
    outputs = _outputs(stage, model, asked)
    far = [distance / length for distance, length in zip(_distances(outputs, asked), _lengths(asked), strict=True)]
    figures = {"relative distance": _rounded(far), "backend": model.backend}
    if max(far) > FLOAT_TOLERANCE:
        return Verdict(WRONG, stage, f"output differs, {_worst(asked.items, far)}", figures)
    _compare_others(stage, model, asked, outputs)
    return Verdict(RIGHT, stage, "", figures)


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


def _compare_ids(stage: str, model: Any, asked: Asked) -> None:
    ours = _refusable(stage, lambda: model.tokenize(asked.items), lambda: True)
    for index, (mine, (fed, _)) in enumerate(zip(ours, asked.answers, strict=True)):
        # A prompt that a model puts before every text may be added where texts are encoded, not where they are cut.
        if mine != fed and not asked.library.prompted:
            figures = {"ours": mine[:40], "library": fed[:40], "lengths": [len(mine), len(fed)]}
            reason = f"ids differ, item {index}: {asked.items[index]!r:.60}"
            raise _Fails(Verdict(WRONG, stage, reason, figures | {"backend": model.backend}))


def _outputs(stage: str, model: Any, asked: Asked) -> list[np.ndarray]:
    # Padding at the left moves the positions of a text: it is asked alone then, as the library is.
    together = {"batch_size": 1} if asked.library.pads_left else {}
    try:
        ours = _refusable(stage, lambda: model.encode(asked.items, **together, **asked.how), lambda: True)
    except _Fails as failed:
        if asked.how and "TypeError" in failed.verdict.reason:  # an argument that encode does not take, by name
            raise _Fails(Verdict(REFUSED, stage, failed.verdict.reason)) from None
        raise
    outputs = [np.asarray(row, np.float64) for row in ours]
    for item, mine, (_, theirs) in zip(asked.items, outputs, asked.answers, strict=True):
        if mine.shape != theirs.shape:
            figures = {"backend": model.backend, "task": model.task}
            reason = f"shape differs, {list(mine.shape)} for {list(theirs.shape)}: {item!r:.60}"
            raise _Fails(Verdict(WRONG, stage, reason, figures))
    return outputs


def _compare_others(stage: str, model: Any, asked: Asked, outputs: list[np.ndarray]) -> None:
    """The methods that both have."""
    for name, method in asked.library.other.items():
        if not hasattr(model, name):
            continue
        given = (asked.items,) if name == "predict" else (np.stack(outputs[:3]), np.stack(outputs))
        theirs = method(*given)
        ours = np.asarray(_refusable(stage, partial(getattr(model, name), *given), lambda: True), np.float64)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
            figures = {"ours": _rounded(ours.ravel()[:6]), "library": _rounded(theirs.ravel()[:6])}
            raise _Fails(Verdict(WRONG, stage, f"{name} differs", figures))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float("inf") if a.shape != b.shape else float(np.linalg.norm(a - b))


def _distances(outputs: list[np.ndarray], asked: Asked) -> list[float]:
    """From the library's outputs."""
    return [_distance(ours, theirs) for ours, (_, theirs) in zip(outputs, asked.answers, strict=True)]


def _distances_of_library(asked: Asked) -> list[float]:
    """From its own first outputs, now that its module was changed."""
    again = zip(asked.answers, asked.library.answers(asked.items), strict=True)
    return _distances([old[1] if new is None else new[1] for old, new in again], asked)


def _lengths(asked: Asked) -> list[float]:
    """Of the library's outputs: what distances are measured by."""
    lengths = [max(float(np.linalg.norm(output)), 1e-12) for _, output in asked.answers]
    return [_mean_square(lengths)] * len(lengths) if _few(asked) else lengths


def _few(asked: Asked) -> bool:
    return all(output.size < FEW_VALUES for _, output in asked.answers)


def _mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _rounded(values: Iterable[float]) -> list[float]:
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
    if found := re.match(r"\w+ differs?\b", message):
        return found[0]
    message = re.sub(r"(/[\w.\-]+)*/layout-[\w./\-]*", "DIR", message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "…", message)
    message = re.sub(r"\b[\w]+(\.[\w]+){2,}", "NAME", message)
    return re.sub(r"\[[\d, ]*\]|-?\d+(\.\d+)?(e-?\d+)?", "#", message)[:160]
