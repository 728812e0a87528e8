"""bitwright analyze: which layers are sensitive."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.options import build_recipe, data_options, scheme_options
from bitwright.cli.terminal import TerminalProgress, out, print_json, shorten, table


@click.command("analyze")
@click.argument("model")
@scheme_options
@data_options
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep measurements here: the same command goes on where a stopped one was.",
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to print.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository brings.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def command(
    model: str, journal: Path | None, top: int, trust_remote_code: bool, as_json: bool,
    data: tuple[str, ...], evaluation: str | None, kind: str | None, metric: str | None, samples: int,
    **schemes: Any,
) -> None:  # fmt: skip
    """Rank the linears of MODEL by the Earth Mover's Distance that quantizing each alone puts between the outputs."""
    from bitwright import pipeline

    texts = pipeline.Texts(data=data, evaluation=evaluation, kind=kind, metric=metric, samples=samples)
    found = pipeline.analyze(
        model, recipe=build_recipe(**schemes), texts=texts, journal=journal, trust_remote_code=trust_remote_code,
        progress=TerminalProgress(),
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    columns = ["", ("EMD", "right"), ("SQNR dB", "right"), ("cosine", "right"), ("flips", "right"), ("loss", "right")]
    for kind_, title in (
        ("groups", "Groups"),
        ("rows", "Linears, quantized alone"),
        ("reverse", "All but one quantized"),
    ):
        rows = found["rows"] if kind_ != "groups" else [r for r in found["groups"] if r["block"] is None]
        mode = "all but one" if kind_ == "reverse" else "one"
        rows = [row for row in rows if row["mode"] == mode][:top]
        out.print(table(title, ["#", *columns], [[str(i), *_cells(row)] for i, row in enumerate(rows, 1)]), "")
    agreement = found["spearman_with_metric_loss"]
    shown = "not defined (one of them is constant)" if agreement is None else f"{agreement:.2f}"
    out.print(f"Spearman of the EMD ranking with the loss of {found['metric']}: {shown}", markup=False)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        shorten(row["name"], 36), f"{row['emd']:.4f}", f"{row['sqnr_db']:.1f}", f"{row['cosine']:.5f}",
        f"{row['rank_flips'] * 100:.2f}%", f"{row['metric_loss'] * 100:.3f}%",
    ]  # fmt: skip
