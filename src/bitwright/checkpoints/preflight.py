"""What each format that `convert` writes would lose of a result that is only planned, by the rules of `convert`."""

from collections.abc import Collection, Mapping

from bitwright.checkpoints.convert import Loss, find_losses, form_losses, summary
from bitwright.checkpoints.formats import FORMATS, read_checkpoint
from bitwright.checkpoints.gguf_blocks import may_lose
from bitwright.checkpoints.gguf_write import check_describable, gguf_losses
from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.linear import LinearForm
from bitwright.numerics.schemes import SCHEMES

Linears = Mapping[str, tuple[tuple[int, int], LinearForm]]

_HINTS = 4  # schemes that a message names


def why_not(
    to: str, source: ModelDirectory, linears: Linears, tables: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Why `convert` would lose something in the format `to`, and what to change; "" if it would lose nothing.

    Args:
        source: the float model.
        linears: shape and planned form of those that will be quantized. tables: those of words that will be int8.
        shapes: of the tensors of the source, by name.
    """
    if to == "gguf":
        try:
            check_describable(source, shapes)
        except ModelError as error:
            return str(error)
    losses = planned_losses(to, linears, tables)
    if not losses:
        return ""
    if not (refused := [loss.module for loss in losses if loss.module in linears]):
        return f"{summary(losses)}; use embeddings: 16bit"
    shape = linears[refused[0]][0]
    fitting = ", ".join([*_fitting(to, shape)[:_HINTS], "16bit"])
    return f"{summary(losses)}. Of N, K = {list(shape)} it holds {fitting}"


def lost_of_result(to: str, directory: ModelDirectory) -> str:
    """What `convert` loses of a quantized checkpoint in the format `to`; "" for nothing. Every linear is looked at.

    Raises:
        ModelError, CheckpointError: as `convert`.
    """
    if to != "gguf":
        spelling = FORMATS[to].spelling
        assert spelling is not None
        losses = find_losses(read_checkpoint(directory), spelling)
        return summary(losses) if losses else ""
    lost = gguf_losses(directory)
    if not lost:
        return ""
    name, why = next(iter(lost.items()))
    return f"{len(lost)} tensors, such as {name}: {why}"


def planned_losses(to: str, linears: Linears, tables: Collection[str]) -> list[Loss]:
    """What would be lost, as far as that follows from forms. Scales that a scheme does not round to 16 bits count."""
    if to == "gguf":
        found = [Loss(name, why, False) for name, linear in linears.items() if (why := may_lose(*linear))]
        return found + [
            Loss(name, "scales of an int8 table have 32 bits, and Q8_0's have 16", False) for name in tables
        ]
    spelling = FORMATS[to].spelling
    assert spelling is not None
    losses = form_losses(linears, tables, spelling)
    known = {loss.module for loss in losses}
    if spelling.scale == "F16":
        losses += [
            Loss(name, "its scales have 32 bits, and the format's have 16", False)
            for name, (_, form) in linears.items()
            if name not in known and not form.weight.scale_in_16_bits
        ]
    return losses


def _fitting(to: str, shape: tuple[int, int]) -> list[str]:
    """Schemes of which nothing is lost for a linear of this shape, by their names with a group size."""
    found = []
    for name, scheme in SCHEMES.items():
        spec = scheme.weight
        if spec is None or scheme.choose_group or (spec.group_size and shape[1] % spec.group_size):
            continue
        if not planned_losses(to, {name: (shape, LinearForm(spec, scheme.input))}, ()):
            found.append(name)
    return found
