"""What `bitwright quantize` prints when it is done: at most twelve lines; the rest is in the report."""

import textwrap
from pathlib import Path

from rich.console import Group
from rich.text import Text

from bitwright.cli.terminal import FAILURE, SUCCESS, WARNING, out, table
from bitwright.record import Evaluation, Record, Shape, shape_words

_MOST_LINES = 12
# Rows that are left out where there are too many lines, the first first: the report has them all.
_GIVE_WAY = ("score", "not in", "worst kind", "goal", "checked in", "judged on")
_ONE_LINE = 66  # characters beside the first column, at 80
# The class of `report.verdict.state` -> how its heading looks.
_STYLES = {"met": SUCCESS, "not-met": FAILURE, "failed": FAILURE, "undecided": WARNING}


def print_result(record: Record, directory: Path) -> None:
    """The verdict, what was gained and lost, on what text, where it was checked, and where the report is."""
    from bitwright.report import verdict_sentence
    from bitwright.report.verdict import state

    kind, symbol, heading = state(record)
    headline = Text(verdict_sentence(record))
    rows = [*_gains(record), *_losses(record.evaluation), *_checks(record)]
    commands = _conversions(record, directory)
    room = _MOST_LINES - 2 - len(commands) - len(out.render_lines(headline))
    for name in _GIVE_WAY:
        if len(out.render_lines(_table(rows))) <= room:
            break
        rows = [row for row in rows if row[0] != name]
    out.print(Text(f"{symbol} {heading}", style=_STYLES.get(kind, "bold")))
    out.print(headline)
    out.print(_table(rows))
    for text in (*commands, f"{directory}/report.html"):
        out.print(text, soft_wrap=True, markup=False)


def _table(rows: list[list[str]]) -> Group:
    return table("", ["", ("", "prose")], rows, header=False)


def _gains(record: Record) -> list[list[str]]:
    """Size and speed."""
    from bitwright.report.verdict import beside_int8, is_quiet, original_words, speed_by_shape
    from bitwright.report.wording import ratio, size

    rows = [["size", f"{size(record.size.source_bytes)} → {size(record.size.checkpoint_bytes)}"]]
    if (trained := record.training) and trained.before is not None and trained.after is not None:
        from bitwright.report.wording import percent

        kept = "" if trained.kept else "; not kept"
        rows.append(["trained", f"loss on tuning text {percent(trained.before)} → {percent(trained.after)}{kept}"])
    if record.smallest is not None:
        rows.append(["goal", beside_int8(record)])
    if (front := record.front) and front.busy:
        rows.append(["speed", "not shown: other programs disturbed the timing; run it again when the machine is quiet"])
    elif front:
        speed = next((row.speedup for row in front.rows if row.chosen), None)
        rows.append(["speed", f"{ratio(speed, 1)} {original_words(record)}; {front.min_speedup:g}× asked for"])
    elif timed := speed_by_shape(record):
        shapes = [f"{ratio(speed, 1)} {_at(shape)}" for shape, speed in timed.items()]
        rows.append(["speed", f"{', '.join(shapes)}; against {original_words(record)}"])
    elif record.speed and not is_quiet(record):
        load = f"{record.speed.other_load_cores or 0.0:.1f}"
        rows.append(["speed", f"not measured: other programs kept {load} cores busy"])
    return rows


def _at(shape: Shape) -> str:
    return ("at " if shape.work == "forward" else "") + shape_words(shape)


def _losses(found: Evaluation | None) -> list[list[str]]:
    """The loss and its bound against the budget, and the texts that it was measured on."""
    from bitwright.report.judged import judged_on, worst_kind
    from bitwright.report.wording import alike, percent

    if found is None:
        return [["loss", "not measured: what this costs in accuracy is not known"]]
    most = f"at most {percent(found.loss_upper)}{' on a new kind' if found.kinds else ''}"
    rows = [["loss", f"{percent(found.loss)}; 95 % sure: {most}; {_allowed(found)}"]]
    if not found.metric.label_free:
        rows.append(["score", f"{found.metric.name} {' → '.join(alike(found.float_score, found.quantized_score))}"])
    if found.kinds:
        rows.append(["worst kind", worst_kind(found.kinds).removeprefix("most on ")])
    return [*rows, ["judged on", judged_on(found)]]


def _allowed(found: Evaluation) -> str:
    from bitwright.report.wording import percent

    return "no budget was set" if found.max_loss is None else f"{percent(found.max_loss)} allowed"


def _checks(record: Record) -> list[list[str]]:
    """Where the result was loaded again, a line for each outcome: failures first."""
    checks = record.verify or ()
    failed = [row for row in checks if row.ok is False]
    rows = [["FAILED in", _brief(f"{', '.join(row.target for row in failed)}: {failed[0].detail}")]] if failed else []
    if passed := [row.target for row in checks if row.ok]:
        rows.append(["checked in", ", ".join(passed)])
    if missed := [row for row in checks if row.ok is None]:
        why = missed[0].detail.removeprefix("not checked: ")
        rows.append(["not in", _brief(f"{', '.join(row.target for row in missed)}: {why}")])
    return rows


def _conversions(record: Record, directory: Path) -> list[str]:
    """The commands that write the formats for which the result was made."""
    from bitwright.targets import TARGETS

    formats = [row.target for row in record.verify or () if row.ok and row.target in TARGETS]
    return [
        f"bitwright convert {directory} --to {name} --out {directory}{'.gguf' if name == 'gguf' else f'-{name}'}"
        for name in formats
        if TARGETS[name].format
    ]


def _brief(text: str) -> str:
    return textwrap.shorten(text, _ONE_LINE, placeholder=" …")
