"""bitwright inspect: what a checkpoint holds, and what it becomes on this machine."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitwright.cli.command import Command
from bitwright.cli.options import json_option
from bitwright.cli.terminal import Column, out, print_json, print_warnings, table

if TYPE_CHECKING:
    from bitwright.checkpoints.checkpoint import Checkpoint
    from bitwright.engine.ops import Op
    from bitwright.engine.program import Program
    from bitwright.files.directory import ModelDirectory


@click.command("inspect", cls=Command)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--program", "whole", is_flag=True, help="List every operator with what it reads and writes.")
@json_option("what it shows")
def command(directory: Path, whole: bool, as_json: bool) -> None:
    """Show what the checkpoint in DIRECTORY holds, and how it runs here.

    It names the format, the scheme and the bits of each kind of layer, what the
    file asks for and Bitwright does otherwise, and the native operators that
    the model becomes. If the engine has no operator for a part of it, that part
    is named; `bitwright.load` then runs the model on torch.
    """
    from bitwright.checkpoints.formats import read_checkpoint
    from bitwright.checkpoints.summary import bits_per_weight
    from bitwright.errors import EngineError
    from bitwright.files.opening import open_path
    from bitwright.files.task import find_task
    from bitwright.kernels.dispatch import active_isa

    opened = open_path(directory)
    opened.check_counts()
    checkpoint = read_checkpoint(opened) if opened.is_quantized else None
    program, why = None, ""
    try:
        program = _program(opened)
    except EngineError as error:
        why = str(error)
    problems = [*(checkpoint.remarks if checkpoint else ()), *([f"the engine does not run it: {why}"] if why else [])]
    counts = Counter(map(_kind, program.ops)) if program else Counter[str]()
    found: dict[str, Any] = {
        "model_type": opened.config.get("model_type"),
        "task": find_task(opened),
        "format": checkpoint.format if checkpoint else "float",
        "bits_per_weight": bits_per_weight(checkpoint) if checkpoint else None,
        "layers": _layers(checkpoint, on_engine=program is not None) if checkpoint else [],
        "problems": problems,
        "runs_on": "engine" if program else "torch",
        "isa": active_isa(),
        "max_tokens": program.max_tokens if program else None,
        "operators": dict(counts.most_common()),
    }
    if as_json:
        print_json(found | ({"program": program.text().splitlines()} if whole and program else {}))
        return
    if whole and program:
        click.echo(program.text())
        return
    title = f"{found['model_type']}, {found['task']}"
    if checkpoint:
        bits = found["bits_per_weight"]
        title += f": {found['format']}{'' if bits is None else f', {bits:.2f} bits per quantized weight'}"
        heads: list[Column] = [
            ("layers", "name"),
            ("number", "right"),
            ("scheme", "prose"),
            ("bits", "right"),
            "runs as",
        ]
        rows = [[x["name"], str(x["number"]), x["scheme"], f"{x['bits']:.2f}", x["runs_as"]] for x in found["layers"]]
        out.print(table(title, heads, rows))
        out.print()
        title = "operators"
    if program:
        columns: list[Column] = [("operator", "name"), ("number", "right"), ("", "prose")]
        rows = [[kind, str(count), _MEANINGS.get(kind.partition(",")[0], "")] for kind, count in counts.most_common()]
        out.print(table(title, columns, rows))
        isa = found["isa"]
        out.print(f"\nAll of it runs on Bitwright's engine, with the {isa} kernels of this machine.", markup=False)
        out.print(f"A text may have up to {program.max_tokens} tokens. --program lists each operator.", markup=False)
    print_warnings(problems)


def _program(opened: "ModelDirectory") -> "Program":
    """What the model becomes on the engine.

    Raises:
        EngineError: it does not run there.
    """
    from bitwright.engine.builders import encoder_task, lower_encoder
    from bitwright.engine.decoders import DEFAULT, lower_decoder
    from bitwright.engine.weights import open_weights
    from bitwright.files.sentences import engine_pooling, read_sentences
    from bitwright.files.task import find_task

    weights = open_weights(opened)
    if find_task(opened) == "text-generation":
        return lower_decoder(weights, arithmetic=DEFAULT)
    modes, normalize = engine_pooling(read_sentences(opened, encoder_task(weights)))
    return lower_encoder(weights, pooling=modes, normalize=normalize)


def _layers(checkpoint: "Checkpoint", *, on_engine: bool) -> list[dict[str, Any]]:
    """A row for each kind of layer. What a kind runs as, one of its linears tells, which is loaded."""
    from bitwright.checkpoints.summary import summarize
    from bitwright.engine.halves import in_halves
    from bitwright.engine.linears import multiplied
    from bitwright.kernels.input_grid import input_runs_natively

    rows = []
    for layers in summarize(checkpoint):
        runs_as = "floats"
        if layers.quantized:
            linear = checkpoint.linears[layers.first].load()
            native = linear.input_spec is not None and input_runs_natively(linear.input_spec)
            runs_as = multiplied(in_halves(linear, "int8"), "int8") if on_engine else "int8" if native else "unpacked"
        rows.append(layers._asdict() | {"runs_as": runs_as})
    return rows


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
