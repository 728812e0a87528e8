"""bitwright train: better than rounding alone, with the float model as teacher."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Command
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
from bitwright.cli.progress import shown_progress
from bitwright.cli.quantize import exit_code_lines, finish
from bitwright.errors import InputError
from bitwright.families.tasks import TaskName


@click.command("train", cls=Command, epilog=f"\b\nExit codes:\n{exit_code_lines()}")
@click.argument("model", type=click.Path())
@click.option("--out", "out_dir", type=click.Path(path_type=Path), metavar="DIR", help="Write the result to DIR.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Train as many steps as take this time here. Default: 15, or --steps.",
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Train exactly this many steps.")
@click.option(
    "--texts",
    "train_texts",
    multiple=True,
    metavar="FILE[:WEIGHT]",
    help="Train on these texts, in the forms of --data. Repeat it to mix. Default: built-in texts. Texts that the "
    "verdict uses are left out.",
)
@click.option(
    "--labels",
    metavar="FILE",
    help="Train on the texts and labels of this file, in the forms of --eval.",
)
@click.option(
    "--teacher", metavar="MODEL", help="Train towards the outputs of this model. Default: those of MODEL in float."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="R",
    help="Set the learning rate of the weights, in steps of their grids. Default: 0.01; 0.002 for language models.",
)
@max_loss_option
@scheme_options
@data_options
@result_options
@model_options
@json_option("the record of the run")
@quiet_option
def command(
    model: str, out_dir: Path | None, max_loss: float | None, as_json: bool, quiet: bool, overwrite: bool, speed: bool,
    task: TaskName | None, trust_remote_code: bool, texts: dict[str, Any], **options: Any,
) -> int:  # fmt: skip
    """Quantize MODEL, then train it to compute as it did before.

    The original model teaches, so no labels are needed. The result is judged like any
    other, and what training did not make better stays as it was.

    \b
      bitwright train MODEL --scheme w4a8_channel --out DIR
      bitwright train MODEL --recipe encoder-int4 --texts own.txt --out DIR
    """
    if out_dir is None:
        raise InputError("say where the result goes: --out DIR")
    asked = {name: options.pop(name) for name in ("minutes", "steps", "labels", "teacher", "rate")}
    train_on = options.pop("train_texts", ())
    if asked["minutes"] is not None and asked["steps"] is not None:
        raise InputError("--minutes and --steps both say how long to train; give one of them")
    if asked["labels"] and train_on:
        raise InputError("--labels brings its own texts; leave out --texts")
    if asked["minutes"] is None and asked["steps"] is None:
        asked["minutes"] = 15.0
    recipe = build_recipe(max_loss=max_loss, **options)
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright import pipeline

        result = pipeline.quantize(
            model, out=out_dir, recipe=recipe, **texts, overwrite=overwrite, speed=speed, task=task,
            trust_remote_code=trust_remote_code, progress=progress,
            training=pipeline.TrainingAsked(texts=tuple(train_on), **asked),
            command=this_command(),
        )  # fmt: skip
    return finish(result, out_dir, as_json=as_json)
