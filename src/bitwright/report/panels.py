"""The first screen's pictures: size, speed and loss as bars, which need no script, print, and can be read aloud."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.record import Evaluation, KindRow, Record, Shape, shape_words
from bitwright.report.verdict import (
    bits_per_weight,
    held_out,
    is_quiet,
    loss_of_what,
    original_words,
    size_ratio,
    speed_by_shape,
    speed_ratio,
    verdict_word,
)
from bitwright.report.wording import ABSENT, fixed, is_finite, percent, ratio, size, times

_ROOM = 1.06  # of a scale beyond its largest mark
_OF_BUDGET = {
    "met": "The budget of {} is met, with {} confidence.",
    "not met": "The budget of {} is not met, with {} confidence.",
    "undecided": "The sample cannot tell whether the budget of {} is met.",
    "not judged on pairs": "The budget of {} was not judged: the model reads pairs of texts.",
    "not usable": "The budget of {} does not count: a runtime gives other outputs than those that were judged.",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a picture, in percent of its width. reach: how far its uncertainty goes beyond it. ours: in colour.

    aside: what a reader who cannot see the reach is told instead.
    """

    label: str
    value: str
    length: float
    reach: float = 0.0
    ours: bool = True
    aside: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A vertical line through all bars, at a percentage of their width. kind: how it is drawn."""

    kind: str
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: a name, the number that matters, what it is relative to, and bars with lines through them."""

    name: str
    value: str
    context: str
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()


def panels(record: Record) -> tuple[Panel, Panel, Panel]:
    """Size, speed (bits per weight where that was not measured), and loss."""
    return _size(record), _speed(record), _loss(record)


def _size(record: Record) -> Panel:
    before, after = record.size.source_bytes, record.size.checkpoint_bytes
    factor = size_ratio(record)
    if factor is None or before is None or after is None:
        context = "on disk" if after else "not measured"
        return Panel("Size", size(after), context)
    scale = 100 / max(before, after)
    bars = Bar("original", size(before), before * scale, ours=False), Bar("quantized", size(after), after * scale)
    return Panel("Size", size(after), f"on disk, {times(factor, 'smaller', 'larger')} than the original", bars)


def _speed(record: Record) -> Panel:
    ratios, speed = speed_by_shape(record), speed_ratio(record)
    if speed is None:
        bits = bits_per_weight(record.plan)
        why = "not measured: the machine was busy" if not is_quiet(record) else "speed was not measured"
        if bits is None:
            return Panel("Speed", ABSENT, why)
        return Panel("Bits per weight", f"{bits:.2f}", f"in the linears, with their scales; {why}")
    threads = None if record.speed is None else record.speed.threads
    on = f", on {threads} thread{'s' * (threads != 1)}" if threads else ""
    if record.environment and record.environment.cpu:
        on += f" of {record.environment.cpu}"
    scale = 100 / (_ROOM * max(1.0, *ratios.values()))
    bars = tuple(Bar(_timed_words(shape), ratio(factor, 1), factor * scale) for shape, factor in ratios.items())
    line = Line("original", scale, "the original")
    return Panel(
        "Speed", f"{speed:.1f}", f"times as fast as {original_words(record)}{on}; geometric mean", bars, (line,)
    )


def _timed_words(shape: Shape) -> str:
    if shape.work != "forward":
        return shape_words(shape)
    return f"{shape.batch} text{'s' * (shape.batch != 1)} of {shape.tokens} tokens"


def _loss(record: Record) -> Panel:
    evaluation = record.evaluation or Evaluation()
    loss, upper, budget = evaluation.loss, evaluation.loss_upper, evaluation.max_loss
    if loss is None:
        return Panel("Loss", ABSENT, "not evaluated")
    over = f", on average over {len(evaluation.kinds)} kinds of text" if evaluation.kinds else ""
    context = f"{loss_of_what(evaluation)}{over}."
    verdict = _OF_BUDGET.get(verdict_word(record) or "")
    if budget is not None and verdict:
        context += f" {verdict.format(percent(budget), percent(evaluation.confidence or 0.95))}"
    rows = evaluation.kinds or [KindRow(held_out(evaluation), evaluation.n_held_out or 0, loss, upper)]
    return Panel("Loss", percent(loss), context, *_loss_bars(rows, budget, upper if evaluation.kinds else None))


def _loss_bars(
    rows: Sequence[KindRow], budget: float | None, new_kind: float | None
) -> tuple[tuple[Bar, ...], tuple[Line, ...]]:
    """A bar for each kind of text, a line for the budget, and one for the bound of a kind that was not tried."""
    marks = [budget, new_kind, *(row.loss for row in rows), *(row.upper for row in rows)]
    finite = [mark for mark in marks if is_finite(mark) and mark > 0]
    scale = 100 / (_ROOM * max(finite, default=1.0))

    def at(loss: float | None) -> float:
        return min(100.0, max(0.0, scale * loss)) if is_finite(loss) else 0.0 if loss is None else 100.0

    bars = tuple(
        Bar(
            row.kind,
            _aligned(row.loss, max(finite, default=0.0)),
            at(row.loss),
            max(0.0, at(row.upper) - at(row.loss)) if is_finite(row.upper) else 0.0,
            aside=f"at most {percent(row.upper)}" if is_finite(row.upper) else "",
        )
        for row in rows
    )
    lines = []
    if is_finite(new_kind):
        lines.append(Line("bound", at(new_kind), f"at most on a new kind, {percent(new_kind)}"))
    if budget is not None:
        lines.append(Line("budget", at(budget), f"budget, {percent(budget)}"))
    if any(bar.reach for bar in bars):
        lines.append(Line("thin", 0.0, "at most, for this kind; all bounds hold with 95 % confidence"))
    return bars, tuple(lines)


def _aligned(loss: float, largest: float) -> str:
    """A percentage with as many decimals as the others of its column."""
    return f"{fixed(100 * loss, 2 if largest < 0.1 else 1)}\u00a0%" if is_finite(loss) else percent(loss)
