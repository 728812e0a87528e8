"""bitwright export: a result as another runtime's own file."""

from pathlib import Path
from typing import Any

import click

from bitwright.cli.command import Choice, Command
from bitwright.cli.options import json_option, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import WARNING, out, print_json, remark


@click.command("export", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to", type=Choice(("onnx",)), default="onnx", show_default=True, metavar="FORM", help="Write this: onnx."
)
@click.option(
    "--out", "out_dir", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Write the export here."
)
@click.option("--overwrite", is_flag=True, help="Replace what is there, if Bitwright wrote it.")
@click.option(
    "--onnx-range", "weights", type=Choice(("8bit", "7bit")), default="8bit", show_default=True, metavar="BITS",
    help="Keep 8-bit weights as they are, or within 7bit for x86 processors without VNNI, where ONNX Runtime's 8-bit "
    "products saturate.",
)  # fmt: skip
@click.option("--residuals", is_flag=True, help="Compute residual additions in 8 bits, too. This costs accuracy.")
@click.option("--verify/--no-verify", "check", default=True, help="Do not run the export before it appears.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model.")
@json_option("what was written and measured")
@quiet_option
def command(
    directory: Path, to: str, out_dir: Path, overwrite: bool, weights: Any, residuals: bool, check: bool,
    trust_remote_code: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Export the quantized encoder in DIRECTORY to ONNX.

    OUT/onnx/model.onnx has the codes of the result, and the operators that
    ONNX Runtime and OpenVINO compute in integers. Pooling and heads are in
    the graph. A clean process runs it, and compares it with Bitwright's engine.
    """
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"reading {directory}")
        from bitwright.pipeline.exporting import export_onnx

        written, row = export_onnx(
            directory, out_dir, weights=weights, residuals=residuals, overwrite=overwrite, check=check,
            trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
    if as_json:
        from bitwright.record import plain_data

        told = {"path": str(written.path), "linears": written.linears, "bytes": written.bytes}
        print_json(told | {"warnings": list(written.warnings), "verify": None if row is None else plain_data(row)})
        return
    for warning in written.warnings:
        remark(warning, WARNING)
    counts = ", ".join(f"{count} {kind}" for kind, count in written.linears.items())
    out.print(f"{written.path}: {counts} linears, {written.bytes / 1e6:.1f} MB", markup=False)
    out.print(row.detail if row else "It was not run (--no-verify).", markup=False)
