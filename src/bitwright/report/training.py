"""What a report says of training: a sentence, and the curve of the loss."""

from bokeh.models import ColumnDataSource

from bitwright.record import Training
from bitwright.report.plots import BLUE, GREY, VERMILION, Key, Picture, blank, hover
from bitwright.report.wording import number, percent, seconds


def training_words(told: Training | None) -> str:
    """What was done and what came of it, in one or two sentences; "" if nothing was trained."""
    if told is None:
        return ""
    done = f"{number(told.steps)} steps of {number(told.batch)}" if not told.stopped else f"until {told.stopped}"
    how = f"on {number(told.n_texts)} texts ({told.texts}), with {told.teacher} as teacher"
    took = "" if told.seconds is None else f", in {seconds(told.seconds)}"
    if told.before is None or told.after is None:
        return f"Trained {how}: {done}{took}."
    moved = f"from {percent(told.before)} to {percent(told.after)}"
    kept = "" if told.kept else ", so the result is the one before training"
    return f"Trained {how}: {done}{took}. The loss on tuning data went {moved}{kept}."


def training_curve(told: Training) -> Picture:
    """The loss on texts that were kept apart, and on those of the steps, by step; what was kept in a ring."""
    steps, losses = [look.step for look in told.curve], [look.loss for look in told.curve]
    source = ColumnDataSource(
        {"step": steps, "loss": losses, "text": [f"{loss:.4g}" for loss in losses], "shown": list(map(number, steps))}
    )
    plot = blank(height=300, x_axis_label="step", y_axis_label="loss of the training")
    trained = [look for look in told.curve if look.train_loss is not None]
    plot.line([look.step for look in trained], [look.train_loss for look in trained], color=GREY, line_width=2)
    plot.line("step", "loss", source=source, color=BLUE, line_alpha=0.45, line_width=2)
    points = plot.scatter("step", "loss", source=source, size=9, color=BLUE)
    best = next(look for look in told.curve if look.step == told.best)
    plot.scatter([best.step], [best.loss], size=17, fill_color=None, line_color=VERMILION, line_width=2.5)
    plot.y_range.start = 0
    plot.add_tools(hover([("step", "@shown"), ("loss", "@text")], points))
    legend = [Key("on texts kept apart", BLUE, "dot"), Key("on the texts of the steps", GREY, "line"),
              Key("kept", VERMILION, "ring")]  # fmt: skip
    return Picture(plot, tuple(legend))
