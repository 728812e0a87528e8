"""bitwright drift: whether texts are still like those that a model was calibrated on."""

from pathlib import Path

import click

from bitwright.cli.command import Command
from bitwright.cli.options import json_option, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import SUCCESS, WARNING, Column, out, print_json, table
from bitwright.errors import ExitCode


@click.command("drift", cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE[:WEIGHT]",
    help="Read the texts here, as `bitwright quantize` does. Repeat it to mix.",
)
@click.option("--make", is_flag=True, help="Make the reference, drift.json beside the model, of these texts.")
@click.option(
    "--window",
    type=click.IntRange(min=50),
    metavar="N",
    help="With --make: compare so many texts at a time. Default: 500.",
)
@click.option(
    "--queue",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="If they have drifted, put a request for a new calibration here, for `bitwright fleet run --queue`.",
)
@click.option("--name", metavar="NAME", help="Name of the model in that request. Default: that of its directory.")
@json_option("the statistics of each window")
@quiet_option
def command(
    model: str, data: tuple[str, ...], make: bool, window: int | None, queue: Path | None, name: str | None,
    as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Tell whether texts are still like those that MODEL was calibrated on.

    \b
      bitwright drift DIR --data calibration.jsonl --make
      bitwright drift DIR --data today.jsonl

    Lengths, unknown tokens, tokens and embeddings of the texts are compared with a
    reference that holds no text. Exit code: 0 they are alike, 3 they have drifted.
    """
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright.drift.check import check_texts, make_from_files

        if make:
            made = make_from_files(model, data, window=window, progress=progress)
        else:
            found = check_texts(model, data, queue=queue, name=name, window=window, progress=progress)
    if make:
        facts = {"file": str(made.file), "texts": made.reference.n, "thresholds": made.reference.thresholds}
        told = f"{made.file}: a reference of {made.reference.n} texts"
        print_json(facts) if as_json else out.print(told, markup=False, soft_wrap=True)
        return 0
    if as_json:
        print_json(found)
    else:
        columns: list[Column] = ["statistic", *((f"window {i + 1}", "right") for i in range(len(found["windows"][:4])))]
        rows = [
            [name, *(f"{row[name]:.3g}" for row in found["windows"][:4]), f"{limit:.3g}"]
            for name, limit in found["thresholds"].items()
        ]
        out.print(table("", [*columns, ("threshold", "right")], rows))
        if found["drifted"]:
            out.print(found["alarms"][0], style=WARNING, markup=False)
        else:
            out.print("The texts are like those of the reference.", style=SUCCESS)
    return int(ExitCode.NOT_SHOWN if found["drifted"] else ExitCode.DONE)
