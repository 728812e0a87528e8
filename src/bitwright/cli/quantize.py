"""bitwright quantize: the main job."""

import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Choice, Command
from bitwright.cli.options import (
    build_recipe,
    data_options,
    json_option,
    max_loss_option,
    model_options,
    quiet_option,
    result_options,
    scheme_options,
    this_command,
)
from bitwright.cli.plan import print_groups
from bitwright.cli.progress import shown_progress
from bitwright.cli.result import print_result
from bitwright.cli.terminal import FAILURE, out, print_json, print_warnings, remark, table
from bitwright.errors import EXIT_MEANINGS, ExitCode, InputError
from bitwright.families.tasks import TaskName
from bitwright.record import PlanRow, Record


def exit_code_lines() -> str:
    """The table of exit codes, for a screen of 80 columns."""
    return "\n".join(
        textwrap.fill(meaning, 78, initial_indent=f"{code:>5}  ", subsequent_indent=" " * 7)
        for code, meaning in EXIT_MEANINGS.items()
    )


@click.command("quantize", cls=Command, epilog=f"\b\nExit codes:\n{exit_code_lines()}")
@click.argument("model", type=click.Path())
@click.option("--out", "out_dir", type=click.Path(path_type=Path), metavar="DIR", help="Write the result to DIR.")
@max_loss_option
@click.option(
    "--min-speedup",
    type=click.FloatRange(min=0, max=100, min_open=True),
    metavar="FACTOR",
    help="Make an encoder this many times as fast as float32 and bf16, such as 1.3.",
)
@click.option(
    "--goal",
    type=Choice(("smallest",)),
    metavar="smallest",
    help="Give each layer 4, 8 or 16 bits, so that the model is as small as the allowed loss permits.",
)
@scheme_options
@data_options
@click.option(
    "--accept-point-estimate",
    is_flag=True,
    default=None,
    help="Exit with 0 where the measured loss is small enough, but the text too little to be sure.",
)
@click.option(
    "--train-minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="If the loss is over the budget, train for this time before layers get more bits (`bitwright train --help`).",
)
@result_options
@click.option(
    "--judge/--no-judge",
    "judged",
    default=True,
    help="Do not measure the loss, check the result or time it.",
)
@click.option(
    "--sensitivity/--no-sensitivity",
    default=False,
    help="Measure what each layer of an encoder loses. Takes minutes.",
)
@click.option(
    "--tune",
    type=click.IntRange(min=4),
    metavar="N",
    help="Where too much is lost, look for better settings in at most N trials, before layers get more bits.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, its time and memory. Write nothing.")
@model_options
@json_option("the record of the run, or the plan,")
@quiet_option
def command(
    model: str, out_dir: Path | None, max_loss: float | None, min_speedup: float | None, goal: str | None,
    accept_point_estimate: bool | None, dry_run: bool, as_json: bool, quiet: bool, overwrite: bool, judged: bool,
    sensitivity: bool, speed: bool, tune: int | None, train_minutes: float | None, task: TaskName | None,
    trust_remote_code: bool, texts: dict[str, Any], **schemes: Any,
) -> int:  # fmt: skip
    """Make MODEL smaller and faster, and measure what that costs in accuracy.

    MODEL is a model directory, a hub name or a GGUF file. The result is a model directory
    with a report in it, report.html.

    \b
      bitwright quantize MODEL --dry-run
      bitwright quantize MODEL --max-loss 1% --out DIR
      bitwright quantize LLM --recipe llm-int4 --eval wiki.txt --out DIR
    """
    if out_dir is None and not dry_run:
        raise InputError("say where the result goes: --out DIR (or --dry-run to see the plan only)")
    if tune is not None and dry_run:
        raise InputError("--dry-run shows the plan of the recipe as it is, and --tune would change it; leave one out")
    recipe = build_recipe(
        max_loss=max_loss, min_speedup=min_speedup, goal=goal, accept_point_estimate=accept_point_estimate, **schemes
    )
    if out_dir is None or dry_run:
        with shown_progress(quiet=quiet) as progress:
            progress.say(f"loading {model}")
            from bitwright import pipeline

            preview = pipeline.preview(
                model, recipe=recipe, texts=pipeline.Texts(**texts), trust_remote_code=trust_remote_code,
                task=task, sensitivity=sensitivity, progress=progress,
            )  # fmt: skip
        print_json(preview) if as_json else print_preview(preview)
        return 0
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright import pipeline

        asked = None if train_minutes is None else pipeline.TrainingAsked(minutes=train_minutes, only_if_over=True)
        result = pipeline.quantize(
            model, out=out_dir, recipe=recipe, **texts, overwrite=overwrite, judged=judged, sensitivity=sensitivity,
            speed=speed, tune=tune, training=asked, task=task, trust_remote_code=trust_remote_code, progress=progress,
            command=this_command(),
        )  # fmt: skip
    return finish(result, out_dir, as_json=as_json)


def finish(result: Any, out_dir: Path, *, as_json: bool) -> int:
    """Show what a run made, and return its exit code. result: of `pipeline.quantize`."""
    print_json(result.record) if as_json else print_result(result.measured, result.directory)
    print_warnings(result.measured.warnings)
    for text in failures(result.measured, out_dir, result.exit_code):
        remark(text, FAILURE)
    return int(result.exit_code)


def failures(record: Record, out_dir: Path, exit_code: int) -> list[str]:
    """Why the command does not end with 0."""
    found, front, told = record.evaluation, record.front, []
    if found and exit_code == ExitCode.NOT_SHOWN and found.verdict != "met":
        told.append(f"budget {found.verdict}: {found.sentence}")
    if front and front.busy:
        told.append("speed not shown: other programs disturbed the timing; run it again when the machine is quiet")
    elif front and not front.met:
        told.append(f"no variant is {front.min_speedup:g} times as fast with its loss inside the budget")
    if failed := [row.target for row in record.verify or () if row.ok is False]:
        told.append(
            f"failed: {out_dir} gives other outputs in {', '.join(failed)} than those that were judged; do not use it"
        )
    return told


def print_preview(preview: dict[str, Any]) -> None:
    """What the run would cost, the plan by kind of layer, why it is so, and what to know beforehand."""
    from bitwright.report.wording import number, seconds, size

    def decision(row: PlanRow) -> tuple[str, str]:
        return (row.scheme if row.method == "cast" else f"{row.scheme}, {row.method}", row.reason)

    cost = preview["estimate"]
    print_groups(preview["model"], preview["plan"])
    counts = Counter(map(decision, preview["plan"]))
    rows = [[f"{number(count)} × {how}", reason] for (how, reason), count in counts.items()]
    out.print("", table("", [("layers", "prose"), ("reason", "prose")], rows))
    out.print(
        f"\nThe run takes about {seconds(cost['seconds'])} if nothing else runs, and {size(cost['memory_bytes'])} of "
        f"memory, with all its processes.\nOn disk: {size(cost['source_bytes'])} → {size(cost['disk_bytes'])}. "
        "Nothing was written.",
        soft_wrap=False, markup=False,
    )  # fmt: skip
    print_warnings(preview["warnings"])
