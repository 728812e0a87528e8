"""bitwright inspect: what a checkpoint becomes on this machine."""

from collections import Counter
from pathlib import Path

import click

from bitwright.cli.terminal import Column, out, table


@click.command("inspect")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--program", "whole", is_flag=True, help="List every operator with its buffers.")
def command(directory: Path, whole: bool) -> None:
    """Show the program of native operators that DIRECTORY, an encoder, runs as.

    Without an operator for every part of the model there is no program: the
    error says what is missing, and `load` takes the generic path.
    """
    from bitwright.engine.builders import encoder_task, lower_encoder
    from bitwright.engine.ops import Multiply
    from bitwright.engine.weights import open_weights
    from bitwright.files.directory import ModelDirectory
    from bitwright.files.task import pooling_for

    opened = ModelDirectory(directory)
    weights = open_weights(opened)
    task = encoder_task(weights)
    pooling = pooling_for(opened, task)
    program = lower_encoder(weights, pooling=pooling.modes, normalize=pooling.normalize)
    if whole:
        click.echo(program.text())
        return
    counts = Counter(f"linear, {op.dtype}" if isinstance(op, Multiply) else op.kind for op in program.ops)
    columns: list[Column] = [("operator", "name"), ("number", "right")]
    rows = [[kind, str(count)] for kind, count in counts.most_common()]
    out.print(table(f"{weights.config['model_type']}, {task}", columns, rows))
    out.print(f"texts of up to {program.max_tokens} tokens; --program lists the operators")
