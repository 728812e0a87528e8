"""bitwright bench: the result against its original, interleaved."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import cache_option, json_option, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import WARNING, Column, out, print_json, remark, table
from bitwright.errors import ExitCode, InputError

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
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
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
    default=("1x16", "1x128", "8x128"),
    show_default=True,
    metavar="BATCHxTOKENS",
    help="Time this many sequences of this many tokens. Repeat it for several.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Give each runtime this many threads. Default: OMP_NUM_THREADS, or one for each processor.",
)
@cache_option
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
    directory: Path, source: Path | None, shapes: tuple[Shape, ...], threads: int | None, kv_cache: str | None,
    rounds: int, max_load: float, rivals: bool, by_operator: bool, as_json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Time the result in DIRECTORY against its original in float32 and bfloat16.

    The tables show latency, throughput, memory and size. The runtimes take
    turns, and only rounds on a quiet machine count. A language model is timed
    alone: tokens per second that the engine reads and writes.
    """
    if _writes_text(directory):
        return _language_model(directory, threads, kv_cache, rounds, max_load, as_json=as_json, quiet=quiet)
    if kv_cache is not None:
        raise InputError(f"--kv-cache is for language models, and {directory} is none; leave it out")
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


def _writes_text(directory: Path) -> bool:
    from bitwright.files.directory import CONFIG_FILE, ModelDirectory
    from bitwright.files.task import find_task

    return (directory / CONFIG_FILE).is_file() and find_task(ModelDirectory(directory)) == "text-generation"


def _language_model(
    directory: Path, threads: int | None, kv_cache: Any, rounds: int, max_load: float, *, as_json: bool, quiet: bool
) -> int:  # fmt: skip
    with shown_progress(quiet=quiet) as progress:
        from bitwright import pipeline

        found = pipeline.bench_language_model(
            directory,
            threads=threads,
            kv_cache=kv_cache or "int8",
            rounds=rounds,
            max_load=max_load,
            progress=progress,
        )
    print_json(found) if as_json else print_tokens(found)
    if not found["too_busy"]:
        return ExitCode.DONE
    busy = f"other programs kept {found['other_load_cores']:.1f} cores busy"
    remark(f"not everything was measured: {busy}. Wait for a quiet moment, or use --max-load", WARNING)
    return ExitCode.NOT_SHOWN


def print_tokens(found: dict[str, Any]) -> None:
    """Tokens per second of a language model."""
    columns: list[Column] = [("what", "name")]
    columns += [(name, "right") for name in ("answers", "text before", "tokens/s", "lower quartile", "rounds")]
    kinds = {"prefill": "reads a prompt", "decode": "writes"}
    rows = [
        [kinds[row["kind"]], str(row["batch"]), str(row["depth"]), f"{row['tokens_per_s']:,.1f}",
         f"{row['lower_quartile']:,.1f}", str(row["rounds"])]
        for row in found["rows"]
    ]  # fmt: skip
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    out.print(table(f"{found['backend']}, {threads}", columns, rows))


def print_profile(rows: list[dict[str, Any]]) -> None:
    """A table for each shape."""
    columns: list[Column] = [("operator", "name")]
    columns += [(name, "right") for name in ("number", "ms", "GOP/s", "share")]
    for batch, tokens in dict.fromkeys((row["batch"], row["tokens"]) for row in rows):
        cells = [
            [row["operator"], str(row["number"]), f"{row['ms']:.3f}",
             "" if row["gops"] is None else f"{row['gops']:.0f}", f"{row['share']:.1%}"]
            for row in rows if (row["batch"], row["tokens"]) == (batch, tokens)
        ]  # fmt: skip
        out.print(table(f"{batch} × {tokens} tokens, 1 thread", columns, cells))
        counted = [row for row in rows if (row["batch"], row["tokens"]) == (batch, tokens)]
        ms = sum(row["ms"] for row in counted)
        gops = sum(row["gops"] * row["ms"] for row in counted if row["gops"] is not None) / ms
        peak = next((row["gops"] / row["of_peak"] for row in counted if row["of_peak"]), None)
        of_peak = f", {gops / peak:.0%} of the {peak:.0f} of int8 products alone" if peak else ""
        out.print(f"all: {ms:.3f} ms, {gops:.0f} GOP/s{of_peak}\n")


def print_measurements(found: dict[str, Any]) -> None:
    """Speed, memory and size."""
    from bitwright.report.wording import milliseconds, number, ratio, size

    columns: list[Column] = [("runtime", "name")]
    columns += [(name, "right") for name in ("batch", "tokens", "median ms", "per s", "× fp32", "× bf16")]
    rows = [
        [row["runtime"], str(row["batch"]), str(row["tokens"]), milliseconds(row["median_ms"]),
         f"{row['per_second']:,.1f}", *(ratio(row.get(f"ratio_to_{other}")) for other in ("fp32", "bf16"))]
        for row in found["rows"]
    ]  # fmt: skip
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    if rows:
        out.print(table(f"Speed with {threads}; × is how many times as fast", columns, rows), "")
    memory = [[name, f"{number(round(mib))} MiB"] for name, mib in found["peak_rss_mib"].items()]
    out.print(table("Peak memory of a process that loads and runs it", [("runtime", "name"), ("RSS", "right")], memory))
    sizes = found["size"]
    out.print(f"\nOn disk: {size(sizes['source_bytes'])} → {size(sizes['checkpoint_bytes'])}")
    for skipped in found["skipped"]:
        what = "" if skipped["runtime"] == "all" else f"{skipped['runtime']}: "
        out.print(f"not measured: {what}{skipped['reason']}", style="dim", markup=False)
