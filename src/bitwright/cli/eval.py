"""bitwright eval: how good a model is, or how much of its original's quality it kept."""

from typing import Any

import click

from bitwright.cli.options import data_options, task_option
from bitwright.cli.terminal import TerminalProgress, out, print_json, table
from bitwright.families.tasks import TaskName


@click.command("eval")
@click.argument("model")
@click.option("--reference", metavar="FLOAT", help="The float model to compare with: a directory or a hub name.")
@data_options
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Tokens per window of a language model. Default: 1024, or all it can take.",
)
@click.option(
    "--windows", type=click.IntRange(min=1), metavar="N", help="Windows, from the text's beginning. Default: 40."
)
@click.option("--bos", is_flag=True, help="Begin each window with the tokenizer's BOS.")
@task_option
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository brings.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def command(
    model: str, reference: str | None, window: int | None, windows: int | None, bos: bool, task: TaskName | None,
    trust_remote_code: bool, as_json: bool, seed: int | None, texts: dict[str, Any],
) -> None:  # fmt: skip
    """Score MODEL, float or quantized; with --reference also what it lost.

    A language model: perplexity of the text given by --eval or --data, and with
    a reference the KL of its logits and next-token agreement. An encoder: the
    labels of --eval, or agreement with the reference.
    """
    from bitwright.pipeline.evaluation import evaluate

    with TerminalProgress() as progress:
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
    rows = [[metric["name"], f"{number(found['score'])} ({better} is better)"]]
    if found["reference"]:
        title += f" against {found['reference']}"
        bounds = f"between {percent(found['loss_lower'])} and {percent(found['loss_upper'])}"
        rows += [
            ["reference", number(found["reference_score"])],
            ["loss", f"{percent(found['loss'])}, {bounds} (each {100 * found['confidence']:g} % sure)"],
        ]
    rows += [[companion(name)[0], number(value)] for name, value in found["companions"].items()]
    rows += [["measured on", found["protocol"]], ["time", seconds(found["seconds"])]]
    out.print(table(title, [("", "prose"), ("", "prose")], rows, header=False))
