"""bitwright verify: whether runtimes give what the checkpoint says."""

from pathlib import Path

import click

from bitwright.cli.command import Choice, Command
from bitwright.cli.options import TARGET_NAMES as ALL_TARGETS
from bitwright.cli.options import json_option, quiet_option
from bitwright.cli.progress import shown_progress
from bitwright.cli.terminal import Column, out, print_json, table
from bitwright.errors import ExitCode

TARGET_NAMES = tuple(name for name in ALL_TARGETS if name != "vllm")


@click.command("verify", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--target", "targets", multiple=True, type=Choice(TARGET_NAMES), default=("bitwright",), show_default=True,
    metavar="NAME", help=f"Check this runtime: {', '.join(TARGET_NAMES)}. Repeat it for several.",
)  # fmt: skip
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Check this export of the result: a graph for onnx and openvino, or what `convert` wrote for gptq, awq and "
    "gguf. Default: one that is made for it.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Compare with this float model, where a check needs it. Default: the one that the result was made from.",
)
@json_option("the rows")
@quiet_option
def command(
    directory: Path, targets: tuple[str, ...], export: Path | None, source: Path | None, as_json: bool, quiet: bool
) -> int:
    """Check the result in DIRECTORY in runtimes, each in a clean process.

    DIRECTORY may also be a checkpoint of another tool, or a GGUF file. Outputs
    are compared, integer kernels are counted where the runtime has them, and
    the rows go to DIRECTORY/record.json. The exit code is 1 if a runtime fails.
    """
    with shown_progress(quiet=quiet) as progress:
        progress.say(f"reading {directory}")
        from bitwright.pipeline.exporting import verify_result

        rows = verify_result(directory, targets, export=export, source=source, progress=progress)
    if as_json:
        from bitwright.record import plain_data

        print_json([plain_data(row) for row in rows])
    else:
        columns: list[Column] = ["", "", ("", "prose")]
        words = {True: "as it must", False: "FAILED", None: "not checked"}
        out.print(
            table(str(directory), columns, [[row.target, words[row.ok], row.detail] for row in rows], header=False)
        )
    return ExitCode.FAILED if any(row.ok is False for row in rows) else ExitCode.DONE
