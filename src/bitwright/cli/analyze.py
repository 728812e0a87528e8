"""bitwright analyze: which layers are sensitive."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import (
    build_recipe,
    data_options,
    json_option,
    model_options,
    quiet_option,
    scheme_options,
)
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import Column, out, print_json, table
from bitwright.families.tasks import TaskName
from bitwright.record import LayerRow, from_data

# heading, rows of the finding, mode: "groups" of the whole model, then single linears from both sides.
_TABLES = (
    ("Groups, each quantized alone", "group", "groups", "one"),
    ("Linears, each quantized alone", "linear", "rows", "one"),
    ("Linears, everything quantized but one", "linear left in float", "rows", "all but one"),
)


@click.command("analyze", cls=Command)
@click.argument("model", type=click.Path())
@scheme_options
@data_options
@click.option("--fisher", is_flag=True, help="Also rank by gradients. The whole model must fit into memory.")
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep measurements in this file. Run the same command again to continue after a stop.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="Print at most this many rows of each table.",
)
@model_options
@json_option("everything measured")
@quiet_option
def command(
    model: str, fisher: bool, journal: Path | None, top: int, task: TaskName | None, trust_remote_code: bool,
    as_json: bool, quiet: bool, texts: dict[str, Any], **schemes: Any,
) -> None:  # fmt: skip
    """Show which layers of MODEL lose most when they are quantized.

    For an encoder, each layer is quantized alone. The tables show how far the
    outputs of the model then move (EMD, Earth Mover's Distance), and the loss.

    For a language model, and for a method that looks at inputs, the table shows
    the error that rounding leaves in the outputs of each layer.
    """
    recipe = build_recipe(**schemes)
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"loading {model}")
        from bitwright import pipeline

        found = pipeline.analyze(
            model, recipe=recipe, **texts, fisher=fisher, journal=journal, trust_remote_code=trust_remote_code,
            task=task, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        print_ranking(found, top)


def print_ranking(found: dict[str, Any], top: int) -> None:
    """The `top` of each ranking, and whether the distance ranks as the metric does."""
    if "layers" in found:
        _print_errors(found, top)
    if "fisher" in found:
        _print_fisher(found["fisher"], top)
    if "rows" in found:
        _print_distances(found, top)


def _print_distances(found: dict[str, Any], top: int) -> None:
    """Distances between the model's outputs when a part of it is quantized."""
    for title, what, key, mode in _TABLES:
        rows = [row for row in found[key] if row["mode"] == mode and (key == "rows" or row["block"] is None)]
        shown = _titled(title, len(rows), top)
        columns: list[Column] = [("#", "right"), (what, "name")]
        columns += [(name, "right") for name in ("EMD", "SQNR dB", "cosine", "flips", "loss")]
        out.print(table(shown, columns, [[str(i), *_cells(row)] for i, row in enumerate(rows[:top], 1)]), "")
    agreement = found["spearman_with_metric_loss"]
    said = "not defined, one of them is constant" if agreement is None else f"{agreement:.2f}, 1 is alike"
    out.print(
        "EMD is how far the outputs of the model move, flips the share of pairs that\n"
        f"change places. The loss is that of {found['metric']}.\n"
        f"EMD and the loss rank the linears alike: Spearman {said}.",
        markup=False,
    )


def _print_errors(found: dict[str, Any], top: int) -> None:
    """The error of every linear's own outputs; experts of one place in a block together."""
    from bitwright.report.account import error_rows
    from bitwright.report.wording import fixed

    def share(value: float | None) -> str:
        return fixed(value, 2) if value is None else f"{fixed(100 * value, 2)} %"

    rows = error_rows([from_data(LayerRow, row) for row in found["layers"]])
    methods = sorted({row.method for row in rows if row.method})
    compares = any(row.error_rtn is not None for row in rows)
    columns: list[Column] = [("#", "right"), ("linear", "name"), "stored as", ("error", "right")]
    columns += [(name, "right") for name in (*["by rtn"] * compares, "SQNR dB", "cosine")]
    cells = [
        [str(i), row.name + (f" × {row.count}" if row.count else ""), row.scheme or "", share(row.error),
         *[share(row.error_rtn)] * compares, fixed(row.sqnr_db, 1), fixed(row.cosine, 5)]
        for i, row in enumerate(rows[:top], 1)
    ]  # fmt: skip
    title = _titled(f"Error of each linear's outputs by {', '.join(methods)}", len(rows), top)
    out.print(table(title, columns, cells))
    out.print("error: relative to the outputs, by the weights alone; activations not yet rounded\n", markup=False)


def _print_fisher(rows: list[dict[str, Any]], top: int) -> None:
    """Fisher sensitivity of every unit."""
    from bitwright.report.wording import number, words

    columns: list[Column] = [("#", "right"), ("linears that share an input", "name"), "role"]
    columns += [("Fisher", "right"), ("its diagonal", "right")]
    cells = [
        [str(i), row["name"], words(row["role"]), number(row["fisher"]), number(row["diagonal"])]
        for i, row in enumerate(rows[:top], 1)
    ]
    out.print(table(_titled("Squared gradient along the rounding", len(rows), top), columns, cells), "")


def _titled(title: str, n_rows: int, top: int) -> str:
    return f"{title} (first {top} of {n_rows})" if n_rows > top else title


def _cells(row: dict[str, Any]) -> list[str]:
    from bitwright.report.wording import fixed, words

    return [
        row["name"] if row["unit"] else words(row["name"]), fixed(row["emd"], 4), fixed(row["sqnr_db"], 1),
        fixed(row["cosine"], 5), f"{fixed(row['rank_flips'] * 100, 2)} %", f"{fixed(row['metric_loss'] * 100, 2)} %",
    ]  # fmt: skip
