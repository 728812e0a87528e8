"""bitwright quantize: the main job."""

import shlex
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import click

from bitwright.cli.options import build_recipe, data_options, scheme_options, task_option
from bitwright.cli.terminal import Column, TerminalProgress, fraction, out, print_json, print_remarks, table
from bitwright.errors import EXIT_MEANINGS, ExitCode, InputError
from bitwright.families.tasks import TaskName
from bitwright.record import Front, PlanRow, Record


def exit_code_lines() -> str:
    """The table of exit codes, for a screen of 80 columns."""
    return "\n".join(
        textwrap.fill(meaning, 78, initial_indent=f"{code:>5}  ", subsequent_indent=" " * 7)
        for code, meaning in EXIT_MEANINGS.items()
    )


@click.command("quantize", epilog=f"\b\nExit codes:\n{exit_code_lines()}")
@click.argument("model")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the result goes.")
@click.option(
    "--max-loss",
    type=fraction,
    metavar="PERCENT",
    help="The loss you allow, relative to the float model. Default: the recipe's, or 1%.",
)
@click.option(
    "--min-speedup",
    type=click.FloatRange(min=0, max=100, min_open=True),
    metavar="FACTOR",
    help="How many times as fast as the faster of float32 and bf16 an encoder should be, such as 1.3; "
    "measures the front of speed and loss.",
)
@click.option(
    "--goal",
    type=click.Choice(["smallest"]),
    help="smallest: 4, 8 or 16 bits for each set of linears that share an input, so that the model is as small as the "
    "loss that you allow makes possible.",
)
@scheme_options
@data_options
@click.option(
    "--accept-point-estimate",
    is_flag=True,
    default=None,
    help="Exit with 0 where the sample is too small to be sure, if the estimate itself is inside the budget.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing result.")
@click.option(
    "--judge/--no-judge",
    "judged",
    default=True,
    show_default=True,
    help="Evaluate the result, put back what breaks the budget, verify and time it; without it, it is only written.",
)
@click.option(
    "--sensitivity/--no-sensitivity",
    default=False,
    show_default=True,
    help="Measure every layer of an encoder for the report; without it only what a search for a fallback needs.",
)
@click.option("--speed/--no-speed", default=True, show_default=True, help="Time an encoder against its float original.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what the run would cost, and stop.")
@task_option
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository brings.")
@click.option("--json", "as_json", is_flag=True, help="Print the record (or the plan) as JSON.")
def command(
    model: str, out_dir: Path | None, max_loss: float | None, min_speedup: float | None, goal: str | None,
    accept_point_estimate: bool | None, dry_run: bool, as_json: bool, overwrite: bool, judged: bool,
    sensitivity: bool, speed: bool, task: TaskName | None, trust_remote_code: bool, texts: dict[str, Any],
    **schemes: Any,
) -> int:  # fmt: skip
    """Quantize MODEL (a directory or a hub name) within an accuracy budget.

    \b
      bitwright quantize ENCODER --max-loss 1% --out DIR
      bitwright quantize LLM --recipe llm-int4 --eval wiki.txt --out DIR

    A language model runs block by block, in the memory of one block; its loss
    is the relative rise of perplexity. A model that reads pairs of texts is
    judged on pairs: --data FILE#FIRST,SECOND.
    """
    if out_dir is None and not dry_run:
        raise InputError("say where the result goes: --out DIR (or --dry-run to see the plan only)")
    from bitwright import pipeline

    recipe = build_recipe(
        max_loss=max_loss, min_speedup=min_speedup, goal=goal, accept_point_estimate=accept_point_estimate, **schemes
    )
    if out_dir is None or dry_run:
        with TerminalProgress() as progress:
            progress.say(f"loading {model}")
            preview = pipeline.preview(
                model, recipe=recipe, texts=pipeline.Texts(**texts), trust_remote_code=trust_remote_code,
                task=task, sensitivity=sensitivity, progress=progress,
            )  # fmt: skip
        print_json(preview) if as_json else print_preview(preview)
        return 0
    with TerminalProgress() as progress:
        result = pipeline.quantize(
            model, out=out_dir, recipe=recipe, **texts, overwrite=overwrite, judged=judged, sensitivity=sensitivity,
            speed=speed, task=task, trust_remote_code=trust_remote_code, progress=progress,
            command=shlex.join(["bitwright", *sys.argv[1:]]),
        )  # fmt: skip
    print_json(result.record) if as_json else print_result(result.measured, result.directory)
    remarks = [f"warning: {text}" for text in result.measured.warnings]
    evaluation_, front = result.measured.evaluation, result.measured.front
    failed = [row.target for row in result.measured.verify or () if row.ok is False]
    if evaluation_ and result.exit_code == ExitCode.NOT_SHOWN and evaluation_.verdict != "met":
        remarks.append(f"budget {evaluation_.verdict}: {evaluation_.sentence}")
    if front and not front.met:
        remarks.append(f"no variant is {front.min_speedup:g} times as fast with its loss inside the budget")
    if failed:
        remarks.append(
            f"failed: {out_dir} gives other outputs in {', '.join(failed)} than those that were judged; do not use it"
        )
    print_remarks(remarks)
    return int(result.exit_code)


def print_preview(preview: dict[str, Any]) -> None:
    """The plan, why it is so, what the run would cost, and what to know beforehand."""
    from bitwright.report.account import PlanLine, collapsed
    from bitwright.report.wording import number, seconds, size, words

    def decision(row: PlanRow | PlanLine) -> tuple[str, str]:
        return (row.scheme if row.method == "cast" else f"{row.scheme}, {row.method}", row.reason)

    plan, cost = preview["plan"], preview["estimate"]
    decisions = list(dict.fromkeys(map(decision, plan)))
    rows = [
        [f"{row.name} × {number(row.count)}" if row.count else row.name, words(row.role), row.scheme,
         str(decisions.index(decision(row)) + 1), size(row.bytes_after)]
        for row in collapsed(plan)
    ]  # fmt: skip
    columns: list[Column] = [("layer", "name"), "role", "scheme", ("#", "right"), ("size", "right")]
    out.print(table(f"Plan for {preview['model']}", columns, rows), "")
    counts = [sum(decision(row) == made for row in plan) for made in decisions]
    legend = [
        [str(i), f"{number(count)} × {how}", reason]
        for i, ((how, reason), count) in enumerate(zip(decisions, counts, strict=True), 1)
    ]
    out.print(table("", [("#", "right"), ("layers", "prose"), ("", "prose")], legend))
    out.print(
        f"\nAbout {seconds(cost['seconds'])} and {size(cost['memory_bytes'])} of memory. "
        f"On disk {size(cost['source_bytes'])} → {size(cost['disk_bytes'])}."
    )
    print_remarks(f"warning: {text}" for text in preview["warnings"])


def print_result(record: Record, directory: Path) -> None:
    """What it cost and what it brought, in a few lines."""
    from bitwright.report import verdict_sentence
    from bitwright.report.leftovers import left_out_line
    from bitwright.report.wording import seconds

    out.print(f"\n{verdict_sentence(record)}\n", markup=False)
    rows = [*_loss_rows(record), *_layer_rows(record), *_runtime_rows(record)]
    if record.left_out:
        rows.append(["left out", left_out_line(record.left_out)])
    rows.append(["time", seconds(record.timings_s["total"])])
    shown = [[row[0] if i == 0 or row[0] != rows[i - 1][0] else "", row[1]] for i, row in enumerate(rows)]
    out.print(table("", ["", ("", "prose")], shown, header=False))
    if record.front:
        out.print("", _front_table(record.front))
    out.print(f"\n{directory}/report.html", soft_wrap=True, markup=False)


def _front_table(front: Front) -> Any:
    """What more and fewer units with more bits bring and cost."""
    from bitwright.report.wording import number, percent, ratio, size

    rows = [
        [
            f"{number(row.n_fallback)} of {number(front.n_units)}",
            ratio(row.speedup), percent(row.loss), percent(row.held_out.loss), size(row.bytes),
            "chosen" if row.chosen else "" if row.on_front else "dominated",
        ]
        for row in front.rows
    ]  # fmt: skip
    columns: list[Column] = [
        ("more bits", "right"), ("speed", "right"), ("loss, tuning", "right"), ("held out", "right"), ("size", "right"),
        "",
    ]  # fmt: skip
    return table("Speed (against the faster of float32 and bf16) and loss", columns, rows)


def _loss_rows(record: Record) -> list[list[str]]:
    from bitwright.report.judged import elsewhere_words, judged_on, worst_kind
    from bitwright.report.verdict import verdict_word
    from bitwright.report.wording import alike, percent, size

    found = record.evaluation
    on_disk = ["size", f"{size(record.size.source_bytes)} → {size(record.size.checkpoint_bytes)}"]
    if found is None:
        return [["loss", "not evaluated: what this costs in accuracy is not known"], on_disk]
    goal = record.smallest
    beside = [["linears", f"{size(goal.bytes)}, {size(goal.int8_bytes)} in all-INT8"]] if goal else []
    scores = " → ".join(alike(found.float_score, found.quantized_score))
    bounds = f"between {percent(found.loss_lower)} and {percent(found.loss_upper)} (each 95 % sure)"
    if found.kinds:
        bounds = f"{worst_kind(found.kinds)}; a new kind of text at most {percent(found.loss_upper)} (95 % sure)"
    rows = [
        ["budget", f"{verdict_word(record)}: {percent(found.max_loss)} allowed"],
        ["loss", f"{percent(found.loss)}, {bounds}"],
        ["metric", f"{found.metric.name} {scores}"],
        ["judged on", judged_on(found)],
    ]
    if found.calibrated_on:
        rows.append(["", f"calibrated on {found.calibrated_on}"])
    if found.elsewhere:
        rows.append(["elsewhere", elsewhere_words(found.elsewhere)])
    if found.judge:
        rows.append(["judged by", f"{found.judge}, which ran the float model"])
    if found.metric.protocol:
        rows.append(["protocol", found.metric.protocol])
    return [*rows, on_disk, *beside]


def _layer_rows(record: Record) -> list[list[str]]:
    """How the linears are stored, and which came out worst."""
    from bitwright.report.account import error_rows, has_errors
    from bitwright.report.experts import expert_blocks
    from bitwright.report.wording import number, percent

    linears = [row for row in record.plan if row.role != "embedding"]
    stored = Counter("16 bit" if row.method == "cast" else f"{row.scheme}, {row.method}" for row in linears)
    rows = [["linears", f"{number(count)} of {number(len(linears))}: {how}"] for how, count in stored.most_common()]
    if has_errors(record.layers):
        worst = next((row for row in error_rows(record.layers) if not row.fallback), None)
        if worst is not None:
            plain = f", {percent(worst.error_rtn)} by rtn" if worst.error_rtn is not None else ""
            rows.append(["worst", f"{worst.name}: outputs move by {percent(worst.error)}{plain}"])
    blocks = expert_blocks(record.layers)
    if starved := sum(block.n_starved for block in blocks):
        n_experts = sum(len(block.tokens) for block in blocks)
        too_few = f"{number(starved)} of {number(n_experts)} saw too few calibration tokens"
        rows.append(["experts", f"{too_few}; the report says what was done"])
    return rows


def _runtime_rows(record: Record) -> list[list[str]]:
    from bitwright.report.wording import milliseconds, ratio

    rows = [
        ["speed", f"{ratio(row.ratio_to_fp32)} float32, {milliseconds(row.median_ms)} ms, "
                  f"batch {row.batch} × {row.tokens} tokens"]
        for row in (record.speed.rows if record.speed else ())
        if row.runtime == "bitwright"
    ]  # fmt: skip
    for check in record.verify or ():
        said = {True: "ok", False: f"FAILED: {check.detail}", None: check.detail}[check.ok]
        rows.append(["checked", f"{check.target}: {said}"])
    return rows
