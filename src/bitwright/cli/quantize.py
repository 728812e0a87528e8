"""bitwright quantize: the main job."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bitwright.cli.options import build_recipe, data_options, scheme_options, texts_given
from bitwright.cli.terminal import Column, TerminalProgress, err, fraction, out, print_json, table
from bitwright.errors import InputError


@click.command("quantize")
@click.argument("model")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the result goes.")
@click.option(
    "--max-loss",
    type=fraction,
    metavar="PERCENT",
    help="The loss you allow, relative to the float model. Default: the recipe's, or 1%.",
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
    "--sensitivity/--no-sensitivity",
    default=True,
    show_default=True,
    help="Measure every layer for the report; without it only if the budget needs it.",
)
@click.option("--speed/--no-speed", default=True, show_default=True, help="Time the result against the float model.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what the run would cost, and stop.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository brings.")
@click.option("--json", "as_json", is_flag=True, help="Print the record (or the plan) as JSON.")
def command(
    model: str, out_dir: Path | None, max_loss: float | None, accept_point_estimate: bool | None, dry_run: bool,
    as_json: bool, overwrite: bool, sensitivity: bool, speed: bool, trust_remote_code: bool,
    data: tuple[str, ...], evaluation: str | None, kind: str | None, metric: str | None, samples: int,
    **schemes: Any,
) -> int:  # fmt: skip
    """Quantize MODEL (a directory or a hub name) within an accuracy budget.

    Exits with 3 if the budget is not met, or the sample is too small to be
    sure.
    """
    if out_dir is None and not dry_run:
        raise InputError("say where the result goes: --out DIR (or --dry-run to see the plan only)")
    from bitwright import pipeline

    recipe = build_recipe(max_loss=max_loss, accept_point_estimate=accept_point_estimate, **schemes)
    texts = texts_given(evaluation, kind, data=data, metric=metric, samples=samples)
    if out_dir is None or dry_run:
        with TerminalProgress() as progress:
            progress.say(f"loading {model}")
            preview = pipeline.preview(
                model, recipe=recipe, texts=texts, trust_remote_code=trust_remote_code, sensitivity=sensitivity,
                progress=progress,
            )  # fmt: skip
        print_json(preview) if as_json else print_preview(preview)
        return 0
    with TerminalProgress() as progress:
        result = pipeline.quantize(
            model, out=out_dir, recipe=recipe, data=data, evaluation=evaluation, kind=kind, metric=metric,
            samples=samples, overwrite=overwrite, sensitivity=sensitivity, speed=speed,
            trust_remote_code=trust_remote_code, command=shlex.join(["bitwright", *sys.argv[1:]]), progress=progress,
        )  # fmt: skip
    print_json(result.record) if as_json else print_result(result.record, result.directory)
    remarks = [f"warning: {text}" for text in result.record["warnings"]]
    if result.exit_code:
        evaluation_ = result.record["evaluation"]
        remarks.append(f"budget {evaluation_['verdict']}: {evaluation_['sentence']}")
    for remark in remarks:
        err.print(f"bitwright: {remark}", markup=False, soft_wrap=True)
    return int(result.exit_code)


def print_preview(preview: dict[str, Any]) -> None:
    """The plan, why it is so, and what the run would cost."""
    from bitwright.report.wording import seconds, size, words

    plan, cost = preview["plan"], preview["estimate"]
    reasons = list(dict.fromkeys((row["scheme"], row["reason"]) for row in plan))
    rows = [
        [row["name"], words(row["role"]), row["scheme"], str(reasons.index((row["scheme"], row["reason"])) + 1),
         size(row["bytes_after"])]
        for row in plan
    ]  # fmt: skip
    columns: list[Column] = [("layer", "name"), "role", "scheme", ("#", "right"), ("size", "right")]
    out.print(table(f"Plan for {preview['model']}", columns, rows), "")
    counts = [sum((row["scheme"], row["reason"]) == reason for row in plan) for reason in reasons]
    legend = [
        [str(i), f"{count} × {scheme}", reason]
        for i, ((scheme, reason), count) in enumerate(zip(reasons, counts, strict=True), 1)
    ]
    out.print(table("", [("#", "right"), "layers", ("", "prose")], legend))
    out.print(
        f"\nAbout {seconds(cost['seconds'])} and {size(cost['memory_bytes'])} of memory. "
        f"On disk {size(cost['source_bytes'])} → {size(cost['disk_bytes'])}."
    )


def print_result(record: dict[str, Any], directory: Path) -> None:
    """What it cost and what it brought, in a few lines."""
    from bitwright.report import verdict_sentence
    from bitwright.report.wording import seconds

    out.print(f"\n{verdict_sentence(record)}\n", markup=False)
    rows = [*_result_rows(record), ["time", seconds(record["timings_s"]["total"])]]
    out.print(table("", ["", ("", "prose")], rows, header=False))
    out.print(f"\n{directory}/report.html", soft_wrap=True, markup=False)


def _result_rows(record: dict[str, Any]) -> list[Sequence[str]]:
    from bitwright.report.wording import milliseconds, percent, ratio, size

    sizes, found = record["size"], record["evaluation"]
    linears = [row for row in record["plan"] if row["role"] != "embedding"]
    kept = sum(row["scheme"] == "16bit" for row in linears)
    rows = [
        ["budget", f"{found['verdict']}: {percent(found['max_loss'])} allowed"],
        ["loss", f"{percent(found['loss'])}, between {percent(found['loss_lower'])} and {percent(found['loss_upper'])} "
                 "(each 95 % sure)"],
        ["metric", f"{found['metric']['name']}, {found['n_held_out']} held-out {found['metric']['unit']}"],
        ["size", f"{size(sizes['source_bytes'])} → {size(sizes['checkpoint_bytes'])}"],
        ["16 bit", f"{kept} of {len(linears)} linears" + "; the others are int8" * (kept < len(linears))],
    ]  # fmt: skip
    for row in record.get("speed", {}).get("rows", []):
        if row["runtime"] == "bitwright":
            shape = f"batch {row['batch']} × {row['tokens']} tokens"
            rows.append(
                ["speed", f"{ratio(row['ratio_to_fp32'])} float32, {milliseconds(row['median_ms'])} ms, {shape}"]
            )
    words = {True: "ok", False: "FAILED: {detail}", None: "{detail}"}
    rows += [["checked", f"{row['target']}: {words[row['ok']].format(**row)}"] for row in record["verify"]]
    return [[row[0] if i == 0 or row[0] != rows[i - 1][0] else "", row[1]] for i, row in enumerate(rows)]
