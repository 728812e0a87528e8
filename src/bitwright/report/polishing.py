"""How the scales beside the codes were trained: in words, and as a picture."""

from bokeh.models import ColumnDataSource

from bitwright.record import Polished
from bitwright.report.plots import BLUE, GREY, VERMILION, Key, Picture, blank, hover
from bitwright.report.wording import number, percent, seconds


def polish_words(told: Polished) -> str:
    """What was trained, on how much, and what it gained, in sentences."""
    first, best = told.points[0], min(told.points, key=lambda point: point.held_out)
    epochs = "one pass" if told.epochs == 1 else f"{number(told.epochs)} passes"
    trained = (
        f"The codes stayed as rounding left them. The scales and norms beside them were trained by {epochs} over "
        f"{number(told.tokens)} tokens, with the original as teacher, in {seconds(told.seconds)}. On "
        f"{number(told.held_out_tokens)} tokens of the same text that were not trained on, the {told.loss} went from "
        f"{number(first.held_out)} to {number(best.held_out)}; what step {number(told.best)} gave was taken."
    )
    stopped = f" Training ended early: {told.stopped}." if told.stopped else ""
    tuning = ""
    if told.before is not None and told.after is not None:
        tuning = f" The loss on tuning texts was {percent(told.before)} before and {percent(told.after)} after."
    kept = "" if told.kept else " That is not better, so the result has the scales and norms from before."
    return trained + stopped + tuning + kept


def loss_by_step(told: Polished) -> Picture:
    """The losses of polishing over its steps."""
    held_out = [point.held_out for point in told.points]
    train = [point.held_out if point.train is None else point.train for point in told.points]
    source = ColumnDataSource({"step": [p.step for p in told.points], "held_out": held_out, "train": train})
    plot = blank(height=240, x_axis_label="step", y_axis_label=told.loss)
    plot.line("step", "train", source=source, color=GREY, line_width=1.5)
    plot.line("step", "held_out", source=source, color=BLUE, line_width=2)
    points = plot.scatter("step", "held_out", source=source, size=8, color=BLUE)
    best = min(told.points, key=lambda point: point.held_out)
    plot.scatter([best.step], [best.held_out], size=17, fill_color=None, line_color=VERMILION, line_width=2.5)
    highest = max(max(point.held_out, point.train or 0.0) for point in told.points)
    plot.y_range.start, plot.y_range.end = 0.0, 1.08 * highest
    plot.add_tools(hover([("step", "@step"), ("held out", "@held_out{0.0000}"), ("train", "@train{0.0000}")], points))
    keys = (Key("held-out text", BLUE, "dot"), Key("training text", GREY, "line"), Key("taken", VERMILION, "ring"))
    return Picture(plot, keys)
