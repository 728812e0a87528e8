"""bitwright bench: the result against its original, interleaved."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.terminal import TerminalProgress, megabytes, out, print_json, table


@click.command("bench")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--source", type=click.Path(path_type=Path), help="The float model. Default: where the record says it came from."
)
@click.option(
    "--shape", "shapes", multiple=True, default=("1x16", "1x128", "8x128"), show_default=True, metavar="BATCHxTOKENS"
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of every runtime. Default: as many as torch takes."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Interleaved rounds per shape."
)
@click.option(
    "--rivals/--no-rivals", default=True, show_default=True, help="Also ONNX Runtime and OpenVINO, where installed."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def command(
    directory: Path,
    source: Path | None,
    shapes: tuple[str, ...],
    threads: int | None,
    rounds: int,
    rivals: bool,
    as_json: bool,
) -> None:
    """Measure latency, throughput, memory and size of DIRECTORY against float32 and bfloat16 of the same model."""
    from bitwright import pipeline

    found = pipeline.bench(
        directory, source=source, shapes=[_shape(text) for text in shapes], threads=threads, rounds=rounds, rivals=rivals,
        progress=TerminalProgress(),
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    columns = [
        "runtime",
        ("batch×tokens", "right"),
        ("median ms", "right"),
        ("per s", "right"),
        ("× fp32", "right"),
        ("× bf16", "right"),
    ]
    rows = [
        [row["runtime"], f"{row['batch']}×{row['tokens']}", f"{row['median_ms']:.2f}", f"{row['per_second']:.1f}",
         _ratio(row.get("ratio_to_fp32")), _ratio(row.get("ratio_to_bf16"))]
        for row in found["rows"]
    ]  # fmt: skip
    out.print(table(f"Speed, {found['threads']} threads, median of interleaved blocks", columns, rows))
    memory = [[name, f"{mib:.0f} MiB"] for name, mib in found["peak_rss_mib"].items()]
    out.print("", table("Peak memory of a process that loads and runs it", ["runtime", ("RSS", "right")], memory))
    size = found["size"]
    out.print(f"\nOn disk: {megabytes(size['source_bytes'])} → {megabytes(size['checkpoint_bytes'])}")
    for skipped in found["skipped"]:
        out.print(f"not measured: {skipped['runtime']}: {skipped['reason']}", style="dim", markup=False)


def _shape(text: str) -> tuple[int, int]:
    batch, cross, tokens = text.partition("x")
    if not (cross and batch.isdigit() and tokens.isdigit() and int(batch) and int(tokens)):
        raise click.UsageError(f"--shape {text!r}: write BATCHxTOKENS, such as 8x128")
    return int(batch), int(tokens)


def _ratio(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}"
