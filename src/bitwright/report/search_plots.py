"""The figures of the searches: what size and speed cost in accuracy."""

import math
from collections.abc import Sequence
from itertools import accumulate

from bokeh.models import ColumnDataSource, Span, Whisker

from bitwright.record import FrontRow, StepRow, Tuning
from bitwright.report.plots import BLUE, GREY, VERMILION, Key, Picture, blank, hover
from bitwright.report.tables import step_units
from bitwright.report.tuned import config_words
from bitwright.report.wording import is_finite, percent, ratio, size


def loss_against_size(steps: Sequence[StepRow], chosen: int, max_loss: float | None) -> Picture:
    """The fallback search: each step's size and loss, with a whisker up to the bound, and the budget as a line."""
    at = ([steps[chosen].bytes / 1e6], [100 * steps[chosen].loss])
    order = sorted(range(len(steps)), key=lambda i: steps[i].bytes)  # the search goes up and down
    steps = [steps[i] for i in order]
    units = [step_units(step) for step in steps]
    source = ColumnDataSource(
        {
            "megabytes": [step.bytes / 1e6 for step in steps],
            "loss": [100 * step.loss for step in steps],
            "upper": [100 * _finite_or(step.loss_upper, step.loss) for step in steps],
            "step": [str(i) for i in order],
            "unit": [", ".join(names[:3]) + " …" * (len(names) > 3) or "none" for names in units],
            "size": [size(step.bytes) for step in steps],
            "loss_text": [percent(step.loss) for step in steps],
            "upper_text": [percent(step.loss_upper) for step in steps],
        }
    )
    plot = blank(height=300, x_axis_label="size, MB", y_axis_label="loss on the tuning data, %")
    plot.line("megabytes", "loss", source=source, color=BLUE, line_alpha=0.45, line_width=2)
    whisker = Whisker(base="megabytes", upper="upper", lower="loss", source=source, line_color=BLUE, line_width=1.5)
    whisker.upper_head.size, whisker.lower_head.size = 9, 0
    plot.add_layout(whisker)
    points = plot.scatter("megabytes", "loss", source=source, size=10, color=BLUE)
    plot.scatter(*at, size=17, fill_color=None, line_color=VERMILION, line_width=2.5)
    legend = [Key("a step; the whisker is its 95 % bound", BLUE, "dot"), Key("chosen", VERMILION, "ring")]
    heights = [0.0, *source.data["upper"], *source.data["loss"]]
    if max_loss is not None:
        plot.add_layout(
            Span(location=100 * max_loss, dimension="width", line_color=GREY, line_dash="6 4", line_width=2)
        )
        legend.append(Key(f"budget, {percent(max_loss)}", GREY, "dash"))
        heights.append(100 * max_loss)
    margin = 0.08 * (max(heights) - min(heights) or 1.0)
    plot.y_range.start, plot.y_range.end = min(heights) - margin, max(heights) + margin
    tips = [("step", "@step"), ("more bits", "@unit"), ("size", "@size"), ("loss", "@loss_text")]
    plot.add_tools(hover([*tips, ("at most (95 %)", "@upper_text")], points))
    return Picture(plot, tuple(legend))


def loss_against_speed(rows: Sequence[FrontRow], min_speedup: float, max_loss: float | None) -> Picture:
    """Variants by speed and loss on tuning data, with a whisker up to the bound; what was asked for as lines. Without
    those that lose everything.
    """
    rows = [row for row in rows if is_finite(row.loss)]
    source = ColumnDataSource(
        {
            "speed": [row.speedup for row in rows],
            "loss": [100 * row.loss for row in rows],
            "upper": [100 * _finite_or(row.loss_upper, row.loss) for row in rows],
            "color": [BLUE if row.on_front else GREY for row in rows],
            "kept": [str(row.n_fallback) for row in rows],
            "speed_text": [ratio(row.speedup) for row in rows],
            "loss_text": [percent(row.loss) for row in rows],
            "upper_text": [percent(row.loss_upper) for row in rows],
            "held_text": [percent(row.held_out.loss) for row in rows],
        }
    )
    plot = blank(height=300, x_axis_label="speed, × the faster of fp32 and bf16", y_axis_label="loss, %")
    front = sorted((row.speedup, 100 * row.loss) for row in rows if row.on_front)
    plot.line([x for x, _ in front], [y for _, y in front], color=BLUE, line_alpha=0.45, line_width=2)
    whisker = Whisker(base="speed", upper="upper", lower="loss", source=source, line_color="color", line_width=1.5)
    whisker.upper_head.size, whisker.lower_head.size = 9, 0
    plot.add_layout(whisker)
    points = plot.scatter("speed", "loss", source=source, size=10, color="color")
    chosen = [row for row in rows if row.chosen]
    plot.scatter(
        [row.speedup for row in chosen], [100 * row.loss for row in chosen],
        size=17, fill_color=None, line_color=VERMILION, line_width=2.5,
    )  # fmt: skip
    asked = {"line_color": GREY, "line_dash": "6 4", "line_width": 2}
    plot.add_layout(Span(location=min_speedup, dimension="height", **asked))
    if max_loss is not None:
        plot.add_layout(Span(location=100 * max_loss, dimension="width", **asked))
    heights = [0.0, *source.data["upper"], *source.data["loss"], 100 * (max_loss or 0.0)]
    widths = [min_speedup, *source.data["speed"]]
    for axis, values in ((plot.x_range, widths), (plot.y_range, heights)):
        margin = 0.08 * (max(values) - min(values) or 1.0)
        axis.start, axis.end = min(values) - margin, max(values) + margin
    tips = [("more bits", "@kept"), ("speed", "@speed_text"), ("loss", "@loss_text"), ("at most (95 %)", "@upper_text")]
    plot.add_tools(hover([*tips, ("held out", "@held_text")], points))
    keys = [
        Key("no variant is better in both; the whisker is its 95 % bound", BLUE, "dot"),
        Key("another variant is better in both", GREY, "dot"),
    ]
    return Picture(plot, (*keys, Key("chosen", VERMILION, "ring"), Key("asked for", GREY, "dash")))


def incumbent_curve(study: Tuning) -> Picture:
    """A tuner's trials, and the best so far that may win as a line."""
    trials = [trial for trial in study.trials if is_finite(trial.objective)]
    source = ColumnDataSource(
        {
            "trial": [trial.number + 1 for trial in trials],
            "objective": [trial.objective for trial in trials],
            "color": [BLUE if trial.feasible else GREY for trial in trials],
            "source": [trial.source for trial in trials],
            "settings": [config_words(trial, study) for trial in trials],
            "loss_text": [percent(trial.loss) for trial in trials],
        }
    )
    plot = blank(height=300, x_axis_label="trial", y_axis_label=study.objective)
    able = [trial for trial in trials if trial.feasible]
    best = list(accumulate((trial.objective for trial in able), min))
    plot.step([trial.number + 1 for trial in able], best, mode="after", color=BLUE, line_alpha=0.45, line_width=2)
    points = plot.scatter("trial", "objective", source=source, size=9, color="color")
    chosen = [trial for trial in able if trial.chosen]
    plot.scatter(
        [trial.number + 1 for trial in chosen], [trial.objective for trial in chosen],
        size=17, fill_color=None, line_color=VERMILION, line_width=2.5,
    )  # fmt: skip
    tips = [("trial", "@trial"), ("from", "@source"), (study.objective, "@objective"), ("loss", "@loss_text")]
    plot.add_tools(hover([*tips, ("settings", "@settings")], points))
    keys = [Key("a configuration that may win", BLUE, "dot"), Key("over a limit", GREY, "dot")]
    return Picture(plot, (*keys, Key("chosen", VERMILION, "ring")))


def _finite_or(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
