"""The formats of quantized checkpoints: how each is told, read and written. The seam where further ones plug in.

Both rows of today share their tensors (`linear_tensors.py`); the second says what compressed-tensors has no words for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bitwright.checkpoints.read import Checkpoint, read_compressed
from bitwright.errors import CheckpointError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.tensors import MappedTensors

if TYPE_CHECKING:
    from bitwright.checkpoints.write import Written


class CheckpointFormat(NamedTuple):
    """One format.

    detect: whether a checkpoint is of it, by config.json and the headers of its files alone. read: opens one. write:
    makes one, as `write.write_checkpoint` says; of what compressed-tensors has no words for, one of "bitwright".
    """

    detect: Callable[[Mapping[str, Any], MappedTensors], bool]
    read: Callable[[ModelDirectory], Checkpoint]
    write: Callable[..., "Written"]


def _says(method: str, config: Mapping[str, Any], _: MappedTensors) -> bool:
    said = config.get("quantization_config")
    return isinstance(said, dict) and said.get("quant_method") == method


def _read_gguf(directory: ModelDirectory) -> Checkpoint:
    from bitwright.checkpoints.gguf import read_gguf  # 5 ms, which other checkpoints need not wait for

    return read_gguf(directory)


def _no_write(*args: Any, **options: Any) -> "Written":
    raise CheckpointError("a GGUF file is written by write_gguf, from a finished checkpoint")


def _write(*args: Any, **options: Any) -> "Written":
    """In either format, as what is written needs: writing reads the float model, which takes torch."""
    from bitwright.checkpoints.write import write_checkpoint

    return write_checkpoint(*args, **options)


FORMATS: dict[str, CheckpointFormat] = {
    "compressed-tensors": CheckpointFormat(
        partial(_says, "compressed-tensors"), partial(read_compressed, portable=True), _write
    ),
    # What compressed-tensors has no words for.
    "bitwright": CheckpointFormat(partial(_says, "bitwright"), partial(read_compressed, portable=False), _write),
    "gguf": CheckpointFormat(partial(_says, "gguf"), _read_gguf, _no_write),
}


def read_checkpoint(directory: ModelDirectory) -> Checkpoint:
    """Open a quantized checkpoint of any known format.

    Raises:
        ModelError: no config.json, or no weights.
        CheckpointError: of no known format, or its parts contradict one another.
    """
    where, said = f"{directory.path / CONFIG_FILE}: quantization_config", directory.config.get("quantization_config")
    if not isinstance(said, dict):
        raise CheckpointError(f"{where}: there is none, so this is not a quantized checkpoint")
    tensors = directory.tensors
    for row in FORMATS.values():
        if row.detect(directory.config, tensors):
            return row.read(directory)
    known = " and ".join(map(repr, FORMATS))
    raise CheckpointError(
        f"{where}: this release does not read quant_method {said.get('quant_method')!r}; it reads {known}"
    )
