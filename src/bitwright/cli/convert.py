"""bitwright convert: a quantized checkpoint in the format of another tool."""

from pathlib import Path

import click

from bitwright.cli.command import Choice, Command
from bitwright.cli.options import json_option, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import out, print_json, print_warnings

# A copy of `convert.TARGETS` and what has a writer of its own: --help imports neither.
FORMAT_NAMES = ("compressed-tensors", "bitwright", "gptq", "awq", "bitnet", "gguf")


@click.command("convert", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--to", "to", required=True, type=Choice(FORMAT_NAMES), metavar="FORMAT",
              help=f"Write this format: {', '.join(FORMAT_NAMES)}.")  # fmt: skip
@click.option("--out", "out_dir", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Write to this directory, which must not exist; for gguf, to this file.")  # fmt: skip
@click.option("--allow-loss", is_flag=True, help="Write it though the format cannot hold everything.")
@json_option("what was written and lost")
@quiet_option
def command(directory: Path, to: str, out_dir: Path, allow_loss: bool, as_json: bool, quiet: bool) -> None:
    """Write the quantized checkpoint in DIRECTORY in another format.

    It reads whatever `bitwright inspect` reads. The codes stay the same, and so
    does everything else of the directory: the result is compared with its
    source before it appears. Its size is told before the work. What the format cannot hold is listed first, and
    nothing is written then unless --allow-loss is given.
    """
    from bitwright.files.opening import open_path

    if to == "gguf":
        _write_gguf(directory, out_dir, allow_loss=allow_loss, as_json=as_json, quiet=quiet)
        return
    from bitwright.checkpoints.convert import convert, summary

    with shown_progress(quiet=quiet) as progress:
        done = convert(open_path(directory), to, out_dir, allow_loss=allow_loss, progress=progress)
    if as_json:
        print_json({
            "format": to,
            "path": str(done.path),
            "bytes": done.total_bytes,
            "tensor_bytes": done.tensor_bytes,
            "quantized": done.codes,
            "losses": [loss._asdict() for loss in done.losses],
            "left_out": [file.name for file in done.left_out],
        })  # fmt: skip
        return
    out.print(
        f"Wrote {done.path}: {to}, {done.codes} quantized linears, {done.total_bytes / 1e6:.1f} MB.", markup=False
    )
    if done.losses:
        print_warnings([f"lost: {summary(list(done.losses))}"])
    if done.left_out:
        print_warnings([f"not copied: {', '.join(file.name for file in done.left_out)}"])


def _write_gguf(directory: Path, file: Path, *, allow_loss: bool, as_json: bool, quiet: bool) -> None:
    from bitwright.checkpoints.gguf_write import write_gguf
    from bitwright.files.opening import open_path

    with shown_progress(quiet=quiet) as progress:
        done = write_gguf(open_path(directory), file, allow_loss=allow_loss, progress=progress)
    if as_json:
        print_json({"format": "gguf", "path": str(done.path), "bytes": done.size,
                    "tensor_bytes": done.tensor_bytes, "types": done.types,
                    "losses": [{"module": name, "why": why} for name, why in done.losses.items()]})  # fmt: skip
        return
    types = ", ".join(f"{count} × {name}" for name, count in done.types.items())
    out.print(f"Wrote {file}: {types}, {done.size / 1e6:.1f} MB.", markup=False)
    if done.losses:
        name, why = next(iter(done.losses.items()))
        print_warnings([f"lost in {len(done.losses)} tensors, such as {name}: {why}"])
