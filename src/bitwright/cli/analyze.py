"""bitwright analyze: which layers are sensitive."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.options import build_recipe, data_options, scheme_options, texts_given
from bitwright.cli.terminal import Column, TerminalProgress, out, print_json, table

# heading, rows of the finding, mode: "groups" of the whole model, then single linears from both sides.
_TABLES = (
    ("Groups, each quantized alone", "group", "groups", "one"),
    ("Linears, each quantized alone", "linear", "rows", "one"),
    ("Linears, everything quantized but one", "linear left in float", "rows", "all but one"),
)


@click.command("analyze")
@click.argument("model")
@scheme_options
@data_options
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep measurements here: the same command goes on where a stopped one was.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Rows to print per table."
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository brings.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def command(
    model: str, journal: Path | None, top: int, trust_remote_code: bool, as_json: bool,
    data: tuple[str, ...], evaluation: str | None, kind: str | None, metric: str | None, samples: int,
    **schemes: Any,
) -> None:  # fmt: skip
    """Rank the linears of MODEL by how far quantizing each alone moves its outputs.

    The distance is the Earth Mover's Distance between the outputs of the two
    models. Beside it: SQNR (higher is better), cosine, the share of flipped
    pair orders, and the loss of the metric.
    """
    from bitwright import pipeline

    recipe = build_recipe(**schemes)
    texts = texts_given(evaluation, kind, data=data, metric=metric, samples=samples)
    with TerminalProgress() as progress:
        progress.say(f"loading {model}")
        found = pipeline.analyze(
            model, recipe=recipe, data=texts.data, evaluation=texts.evaluation, kind=texts.kind, metric=texts.metric,
            samples=texts.samples, journal=journal, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        print_ranking(found, top)


def print_ranking(found: dict[str, Any], top: int) -> None:
    """The `top` of each ranking, and whether the distance ranks as the metric does."""
    for title, what, key, mode in _TABLES:
        rows = [row for row in found[key] if row["mode"] == mode and (key == "rows" or row["block"] is None)]
        shown = f"{title} (first {top} of {len(rows)})" if len(rows) > top else title
        columns: list[Column] = [("#", "right"), (what, "name")]
        columns += [(name, "right") for name in ("EMD", "SQNR dB", "cosine", "flips", "loss")]
        out.print(table(shown, columns, [[str(i), *_cells(row)] for i, row in enumerate(rows[:top], 1)]), "")
    agreement = found["spearman_with_metric_loss"]
    said = "not defined, one of them is constant" if agreement is None else f"{agreement:.2f}"
    out.print(f"EMD ranks the linears as the loss does: Spearman {said}\nloss: of {found['metric']}", markup=False)


def _cells(row: dict[str, Any]) -> list[str]:
    from bitwright.report.wording import fixed, words

    return [
        row["name"] if row["unit"] else words(row["name"]), fixed(row["emd"], 4), fixed(row["sqnr_db"], 1),
        fixed(row["cosine"], 5), f"{fixed(row['rank_flips'] * 100, 2)} %", f"{fixed(row['metric_loss'] * 100, 2)} %",
    ]  # fmt: skip
