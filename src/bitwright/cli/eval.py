"""bitwright eval: how good a model is, or how much of its original's quality it kept."""

from typing import Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import data_options, json_option, model_options, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import out, print_json, table
from bitwright.families.tasks import TaskName


@click.command("eval", cls=Command)
@click.argument("model", type=click.Path())
@click.option(
    "--reference", type=click.Path(), metavar="MODEL", help="Compare with this original: a directory or a hub name."
)
@data_options
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Cut text for a language model into windows of this many tokens. Default: 1024, or all that it can take.",
)
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Use this many windows, from the beginning of the text. Default: 40.",
)
@click.option("--bos", is_flag=True, help="Begin each window with the token that marks the beginning of a text.")
@model_options
@json_option("everything measured")
@quiet_option
def command(
    model: str, reference: str | None, window: int | None, windows: int | None, bos: bool, task: TaskName | None,
    trust_remote_code: bool, as_json: bool, quiet: bool, seed: int | None, texts: dict[str, Any],
) -> None:  # fmt: skip
    """Score MODEL, original or quantized. With --reference, show what it lost.

    A language model is scored by the perplexity of the text that --eval or
    --data gives. An encoder is scored on the labels of --eval. Without labels
    its outputs are compared with those of --reference.
    """
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright.pipeline.evaluation import evaluate

        found = evaluate(
            model, reference=reference, **texts, window=window, windows=windows, bos=bos, seed=seed or 0,
            task=task, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    print_json(found) if as_json else print_scores(found)


def print_scores(found: dict[str, Any]) -> None:
    """The scores, what they are scores of, and what stands beside them."""
    from bitwright.report.wording import companion, number, percent, seconds

    metric, title = found["metric"], found["model"]
    better = "higher" if metric["higher_is_better"] else "lower"
    rows = [["score", f"{number(found['score'])}, {metric['name']} ({better} is better)"]]
    if found["reference"]:
        title += f" against {found['reference']}"
        bounds = f"{100 * found['confidence']:g} % sure: at least {percent(found['loss_lower'])}"
        rows += [
            ["original", number(found["reference_score"])],
            ["loss", f"{percent(found['loss'])}; {bounds}, at most {percent(found['loss_upper'])}"],
        ]
    rows += [[companion(name)[0], number(value)] for name, value in found["companions"].items()]
    rows += [["measured on", found["protocol"]], ["time", seconds(found["seconds"])]]
    out.print(table(title, ["", ("", "prose")], rows, header=False))
