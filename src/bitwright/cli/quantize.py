"""bitwright quantize: the main job."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from bitwright.cli.options import build_recipe, data_options, scheme_options
from bitwright.cli.terminal import Percent, TerminalProgress, err, megabytes, out, percent, print_json, shorten, table


@click.command("quantize")
@click.argument("model")
@click.option("--out", "out_dir", type=click.Path(path_type=Path), help="Where the result goes.")
@click.option("--max-loss", type=Percent(), help="The loss you allow, relative to the float model.  [default: 1%]")
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

    Exits with 3 if the budget is not met, or the sample is too small to be sure.
    """
    if out_dir is None and not dry_run:
        raise click.UsageError("say where the result goes: --out DIR (or --dry-run to see the plan only)")
    from bitwright import pipeline

    recipe = build_recipe(max_loss=max_loss, accept_point_estimate=accept_point_estimate, **schemes)
    progress = TerminalProgress()
    if dry_run:
        texts = pipeline.Texts(data, evaluation, kind, metric, samples)
        preview = pipeline.preview(
            model,
            recipe=recipe,
            texts=texts,
            trust_remote_code=trust_remote_code,
            sensitivity=sensitivity,
            progress=progress,
        )
        print_json(preview) if as_json else print_preview(preview)
        return 0
    assert out_dir is not None
    result = pipeline.quantize(
        model, out=out_dir, recipe=recipe, data=data, evaluation=evaluation, kind=kind, metric=metric, samples=samples,
        overwrite=overwrite, sensitivity=sensitivity, speed=speed, trust_remote_code=trust_remote_code,
        command=shlex.join(["bitwright", *sys.argv[1:]]), progress=progress,
    )  # fmt: skip
    if as_json:
        print_json(result.record)
    else:
        print_result(result.record, result.directory)
    if result.exit_code:
        err.print(f"bitwright: {result.record['evaluation']['sentence']}", markup=False)
    return int(result.exit_code)


def print_preview(preview: dict[str, Any]) -> None:
    """The plan and its cost, in 80 columns."""
    rows = [
        [shorten(row["name"], 34), row["role"][:10], row["scheme"][:12], megabytes(row["bytes_after"]), row["reason"]]
        for row in preview["plan"]
    ]
    out.print(table(f"Plan for {preview['model']}", ["layer", "role", "scheme", ("size", "right"), "reason"], rows))
    cost = preview["estimate"]
    out.print(
        f"\nabout {cost['seconds'] / 60:.1f} min, {megabytes(cost['memory_bytes'])} of memory, "
        f"{megabytes(cost['disk_bytes'])} on disk (the float weights: {megabytes(cost['source_bytes'])})"
    )


def print_result(record: dict[str, Any], directory: Path) -> None:
    """What it cost and what it brought, in a few lines."""
    from bitwright.report import verdict_sentence

    size, found = record["size"], record["evaluation"]
    rows = [
        ["loss", f"{percent(found['loss'])}, at most {percent(found['loss_upper'])} (95 % sure); budget {percent(found['max_loss'])}"],
        ["metric", found["metric"]["name"]],
        ["size", f"{megabytes(size['source_bytes'])} → {megabytes(size['checkpoint_bytes'])}"],
    ]  # fmt: skip
    for row in record.get("speed", {}).get("rows", []):
        if row["runtime"] == "bitwright":
            rows.append(
                ["speed", f"{row['ratio_to_fp32']:.2f} × float32 at batch {row['batch']}, {row['tokens']} tokens"]
            )
    kept = [row for row in record["plan"] if row["scheme"] == "16bit" and row["role"] != "embedding"]
    rows.append(["16 bit", f"{len(kept)} of {sum(r['role'] != 'embedding' for r in record['plan'])} linears"])
    rows += [["checked", f"{row['target']}: {'ok' if row['ok'] else row['detail']}"] for row in record["verify"]]
    out.print(f"\n{verdict_sentence(record)}\n", markup=False)
    out.print(table("", ["", ""], rows))
    out.print(f"\n{directory}/report.html", soft_wrap=True, markup=False)
