"""bitwright tune: looks for a better recipe, then quantizes by it."""

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
    worker_options,
)
from bitwright.cli.progress import shown_progress
from bitwright.cli.quantize import finish
from bitwright.cli.terminal import Column, out, share, table
from bitwright.families.tasks import TaskName
from bitwright.record import Tuning

SAMPLER_NAMES = ("tpe", "gp", "forest", "smac", "random")  # a copy of search.tuning.samplers.SAMPLERS


@click.command("tune", cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--out", "out_dir", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Write the result to DIR."
)
@max_loss_option
@click.option(
    "--trials", type=click.IntRange(min=4), default=30, show_default=True, metavar="N",
    help="Try at most this many configurations.",
)  # fmt: skip
@click.option(
    "--sampler", type=Choice(SAMPLER_NAMES), default=SAMPLER_NAMES[0], show_default=True, metavar="NAME",
    help=f"Choose the next configuration by this method: {', '.join(SAMPLER_NAMES)}.",
)  # fmt: skip
@click.option(
    "--max-bytes", type=share, metavar="PERCENT",
    help="Allow weights of this size, relative to what the recipe makes without tuning. Default: 101%.",
)  # fmt: skip
@click.option(
    "--max-work", type=share, metavar="PERCENT",
    help="Allow this much arithmetic for a token, relative to the same. Default: 101%.",
)  # fmt: skip
@worker_options("Try so many configurations at a time, at most 2.")
@scheme_options
@data_options
@result_options
@model_options
@json_option("the record of the run")
@quiet_option
def command(
    model: str, out_dir: Path, max_loss: float | None, trials: int, sampler: str, max_bytes: float | None,
    max_work: float | None, workers: int | None, ray: str | None, overwrite: bool, speed: bool,
    task: TaskName | None, trust_remote_code: bool, as_json: bool, quiet: bool, texts: dict[str, Any], **schemes: Any,
) -> int:  # fmt: skip
    """Find the settings that keep MODEL's outputs nearest to the original, and quantize by them.

    \b
      bitwright tune MODEL --static --trials 30 --max-loss 1% --out DIR

    The winner is measured once more on text that the tuner did not see. A command
    that was stopped goes on where it stopped when it is run again.
    """
    recipe = build_recipe(max_loss=max_loss, **schemes)
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright import pipeline
        from bitwright.pipeline.tune import SLACK, Tune

        tune = Tune(trials, sampler, max_bytes or SLACK, max_work or SLACK, workers, ray)
        result = pipeline.quantize(
            model, out=out_dir, recipe=recipe, **texts, overwrite=overwrite, speed=speed, tune=tune, task=task,
            trust_remote_code=trust_remote_code, progress=progress, command=this_command(),
        )  # fmt: skip
    if not as_json and result.measured.tuning is not None:
        print_study(result.measured.tuning)
    return finish(result, out_dir, as_json=as_json)


def print_study(study: Tuning) -> None:
    """The best trials beside the plain recipe, and what mattered most."""
    from bitwright.report.tuned import config_words, influences, ranked_trials
    from bitwright.report.wording import number

    rows = [
        [str(row.number + 1), "chosen" if row.chosen else row.source, number(row.objective), config_words(row, study)]
        for row in ranked_trials(study)[:3]
    ]
    columns: list[Column] = ["trial", "from", (study.objective, "right"), ("settings", "prose")]
    out.print(table("", columns, rows))
    out.print(f"{len(study.trials)} trials: {study.ended}.", markup=False)
    if words := influences(study):
        out.print(f"What mattered most: {words}.", markup=False)
