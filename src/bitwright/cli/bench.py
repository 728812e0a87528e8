"""bitwright bench: the result against its original, interleaved."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import json_option, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import WARNING, Column, out, print_json, remark, table
from bitwright.errors import ExitCode

Shape = tuple[int, int]


def shape(text: str) -> Shape:
    """(batch, tokens) of "8x128".

    Raises:
        click.BadParameter: anything but two whole numbers of at least 1.
    """
    batch, _, tokens = text.partition("x")
    if not all(part.isascii() and part.isdigit() and int(part) for part in (batch, tokens)):
        raise click.BadParameter(f"{text!r} is no shape; write BATCHxTOKENS, such as 8x128")
    return int(batch), int(tokens)


@click.command("bench", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--source",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Compare with this float model. Default: the one that the result was made from.",
)
@click.option(
    "--shape",
    "shapes",
    type=shape,
    multiple=True,
    metavar="BATCHxTOKENS",
    help="Time this many sequences of this many tokens; of a language model, reading such prompts, and answers after "
    "them. Repeat it for several. Default: 1x16, 1x128 and 8x128, or for a language model six kinds of steps.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Give each runtime this many threads. Default: OMP_NUM_THREADS, or one for each processor.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Time each shape this often, all runtimes in turn.",
)
@click.option(
    "--max-load",
    type=click.FloatRange(min=0),
    default=0.15,
    show_default=True,
    metavar="CORES",
    help="Leave out rounds in which other programs kept more cores busy than this.",
)
@click.option("--rivals/--no-rivals", default=True, help="Leave out ONNX Runtime and OpenVINO.")
@click.option("--profile", "by_operator", is_flag=True, help="Time the operators of the engine instead, on one thread.")
@json_option("everything measured")
@quiet_option
def command(
    directory: Path, source: Path | None, shapes: tuple[Shape, ...], threads: int | None,
    rounds: int, max_load: float, rivals: bool, by_operator: bool, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Time the result in DIRECTORY against its original in float32 and bfloat16.

    The tables show latency, throughput, memory and size. The runtimes take
    turns, and only rounds on a quiet machine count. Of a language model, the
    tokens per second that it reads and writes are compared with bfloat16.
    """
    if by_operator:
        from bitwright.runtime.profile import profile

        rows = profile(directory, shapes)
        print_json(rows) if as_json else print_profile(rows)
        return ExitCode.DONE
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"reading {directory}")
        from bitwright import pipeline

        found = pipeline.bench(
            directory, source=source, shapes=shapes, threads=threads, rounds=rounds, rivals=rivals, max_load=max_load,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        print_measurements(found)
    if not found["too_busy"]:
        return ExitCode.DONE
    busy = f"other programs kept {found['other_load_cores']:.1f} cores busy"
    remark(f"no speed was measured: {busy}. Wait for a quiet moment, or allow so much with --max-load", WARNING)
    return ExitCode.NOT_SHOWN


def print_profile(rows: list[dict[str, Any]]) -> None:
    """A table for each shape. A language model has the bytes of weights that it reads beside the products."""
    from bitwright.record import Shape, shape_words

    for shape in dict.fromkeys(Shape(row["batch"], row["tokens"], row["work"]) for row in rows):
        here = [row for row in rows if (row["batch"], row["tokens"], row["work"]) == shape]
        reads = shape.work != "forward"
        columns: list[Column] = [("operator", "name")]
        columns += [(name, "right") for name in ("number", "ms", "GOP/s", *(["GB/s"] * reads), "share")]
        cells = [
            [row["operator"], str(row["number"]), f"{row['ms']:.3f}", _rate(row["gops"], 0),
             *([_rate(row["gb_s"], 1)] * reads), f"{row['share']:.1%}"]
            for row in here
        ]  # fmt: skip
        out.print(table(f"{shape_words(shape)}, 1 thread", columns, cells))
        ms = sum(row["ms"] for row in here)
        gops = sum(row["gops"] * row["ms"] for row in here if row["gops"] is not None) / ms
        peak = next((row["gops"] / row["of_peak"] for row in here if row["of_peak"]), None)
        of_peak = f", {gops / peak:.0%} of the {peak:.0f} of int8 products alone" if peak else ""
        out.print(f"all: {ms:.3f} ms, {gops:.0f} GOP/s{of_peak}\n")


def _rate(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def print_measurements(found: dict[str, Any]) -> None:
    """Speed, memory and size."""
    from bitwright.report.wording import number, size

    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    if any(row["work"] != "forward" for row in found["rows"]):
        out.print(_token_table(found["rows"], f"Tokens per second with {threads}; × is how many times as fast"), "")
    elif found["rows"]:
        out.print(_forward_table(found["rows"], f"Speed with {threads}; × is how many times as fast"), "")
    memory = [[name, f"{number(round(mib))} MiB"] for name, mib in found["peak_rss_mib"].items()]
    out.print(table("Peak memory of a process that loads and runs it", [("runtime", "name"), ("RSS", "right")], memory))
    sizes = found["size"]
    out.print(f"\nOn disk: {size(sizes['source_bytes'])} → {size(sizes['checkpoint_bytes'])}")
    for skipped in found["skipped"]:
        what = "" if skipped["runtime"] == "all" else f"{skipped['runtime']}: "
        out.print(f"not measured: {what}{skipped['reason']}", style="dim", markup=False)


def _forward_table(rows: list[dict[str, Any]], title: str) -> Any:
    from bitwright.report.wording import milliseconds, ratio

    columns: list[Column] = [("runtime", "name")]
    columns += [(name, "right") for name in ("batch", "tokens", "median ms", "per s", "× fp32", "× bf16")]
    cells = [
        [row["runtime"], str(row["batch"]), str(row["tokens"]), milliseconds(row["median_ms"]),
         f"{row['per_second']:,.1f}", *(ratio(row.get(f"ratio_to_{other}")) for other in ("fp32", "bf16"))]
        for row in rows
    ]  # fmt: skip
    return table(title, columns, cells)


def _token_table(rows: list[dict[str, Any]], title: str) -> Any:
    """A language model: × is relative to the faster one of those that compute in bfloat16."""
    from bitwright.report.wording import ratio

    columns: list[Column] = [("runtime", "name"), ("work", "name")]
    columns += [(name, "right") for name in ("answers", "text before", "tokens/s", "× bf16")]
    kinds = {"prefill": "reads a prompt", "decode": "writes"}
    cells = [
        [row["runtime"], kinds[row["work"]], str(row["batch"]),
         str(row["tokens"] if row["work"] == "decode" else f"0 to {row['tokens']}"), f"{row['per_second']:,.1f}",
         ratio(row["ratio_to_bf16"])]
        for row in rows
    ]  # fmt: skip
    return table(title, columns, cells)
