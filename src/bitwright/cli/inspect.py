"""bitwright inspect: what a checkpoint becomes on this machine."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import json_option
from bitwright.cli.terminal import Column, out, print_json, table

if TYPE_CHECKING:
    from bitwright.engine.ops import Op


@click.command("inspect", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--program", "whole", is_flag=True, help="List every operator with what it reads and writes.")
@json_option("the operators")
def command(directory: Path, whole: bool, as_json: bool) -> None:
    """Show which native operators the encoder in DIRECTORY runs as.

    If Bitwright has no operator for a part of the model, the error names that
    part. `bitwright.load` then runs the model by its generic path, on torch.
    """
    from bitwright.engine.builders import encoder_task, lower_encoder
    from bitwright.engine.weights import open_weights
    from bitwright.files.opening import open_path
    from bitwright.files.sentences import engine_pooling, read_sentences
    from bitwright.kernels.dispatch import active_isa

    opened = open_path(directory)
    weights = open_weights(opened)
    task = encoder_task(weights)
    modes, normalize = engine_pooling(read_sentences(opened, task))
    program = lower_encoder(weights, pooling=modes, normalize=normalize)
    counts = Counter(map(_kind, program.ops))
    found: dict[str, Any] = {
        "model_type": weights.config["model_type"],
        "task": task,
        "isa": active_isa(),
        "max_tokens": program.max_tokens,
        "operators": dict(counts.most_common()),
    }
    if as_json:
        print_json(found | ({"program": program.text().splitlines()} if whole else {}))
        return
    if whole:
        click.echo(program.text())
        return
    columns: list[Column] = [("operator", "name"), ("number", "right"), ("", "prose")]
    rows = [[kind, str(count), _MEANINGS.get(kind.partition(",")[0], "")] for kind, count in counts.most_common()]
    out.print(table(f"{found['model_type']}, {task}", columns, rows))
    out.print(f"\nAll of it runs on Bitwright's engine, with the {found['isa']} kernels of this machine.", markup=False)
    out.print(f"A text may have up to {program.max_tokens} tokens. --program lists each operator.", markup=False)


def _kind(op: "Op") -> str:
    """An operator, and in which numbers it computes, where there are several."""
    from bitwright.engine.ops import Attend, AttendDisentangled, Multiply

    if isinstance(op, Multiply):
        return f"linear, {op.dtype}"
    return f"{op.kind}, int8" if isinstance(op, Attend | AttendDisentangled) and op.integer else op.kind


# An operator -> what it does, for a reader who knows transformers.
_MEANINGS = {
    "embed": "looks up the token and position vectors",
    "linear": "multiplies by a weight matrix",
    "norm": "normalizes each token (LayerNorm, RMSNorm)",
    "quantize": "rounds what a linear reads to 8 bits, each token by its own scale",
    "attention": "mixes the tokens of a text",
    "pool": "makes one vector of the tokens of a text",
    "normalize": "scales a vector to length 1",
}
