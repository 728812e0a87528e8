"""Whether a converted checkpoint is complete: compares it with its source, name by name and byte by byte."""

from collections.abc import Mapping
from pathlib import Path

from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.errors import CheckpointError
from bitwright.numerics.arrays import raw_bytes
from bitwright.numerics.linear import PendingLinear

_AT_ONCE = 1 << 20


def check_complete(
    source: Checkpoint, result: Checkpoint, copied: Mapping[Path, Path], kept: Mapping[str, PendingLinear]
) -> None:
    """copied: the source's files by their names in the result.

    Raises:
        CheckpointError: a file or a tensor that neither side may change is not the same in both, a quantized linear is
        missing in the result or has another shape, or the result holds a tensor of which the source has none.
    """
    for place, file in copied.items():
        copy = result.directory.path / place
        if not _same_file(file, copy):
            raise CheckpointError(f"{copy}: the copy has not the bytes of its source")
    changed = {f"{name}.bias" for name, pending in source.linears.items() if pending.form.shifts_input}
    for name in source.others - changed:
        if name not in result.tensors or not _same_tensor(source, result, name):
            raise CheckpointError(f"{result.directory.path}: {name} is not as it is in {source.tensors.file(name)}")
    for name, pending in kept.items():
        if name not in result.linears or result.linears[name].shape != pending.shape:
            raise CheckpointError(f"{result.directory.path}: {name} was to be quantized, and is not")
    known = {f"{module}.weight" for module in (*source.linears, *source.dequantized, *source.tables)} | source.others
    if extra := result.others - known - changed:
        raise CheckpointError(f"{result.directory.path}: {min(extra)} is in no tensor of the source")


def _same_file(a: Path, b: Path) -> bool:
    with a.open("rb") as one, b.open("rb") as other:
        while (part := one.read(_AT_ONCE)) == other.read(_AT_ONCE):
            if not part:
                return True
    return False


def _same_tensor(source: Checkpoint, result: Checkpoint, name: str) -> bool:
    a, b = source.tensors, result.tensors
    if (a.dtype(name), a.shape(name)) != (b.dtype(name), b.shape(name)):
        return False
    return raw_bytes(a[name]) == raw_bytes(b[name])
