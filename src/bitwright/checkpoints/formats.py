"""The formats of quantized checkpoints: how each is told, read and written. The seam where further ones plug in.

Both rows of today share their tensors (`linear_tensors.py`); the second says what compressed-tensors has no words for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.checkpoints.read import Checkpoint, read_compressed
from bitwright.errors import CheckpointError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.tensors import MappedTensors


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """One format.

    detect: whether a checkpoint is of it, by config.json and the headers of its files alone. read: opens one. describe:
    the `quantization_config` of one that is written (`make_quantization_config` says from what).
    """

    detect: Callable[[Mapping[str, Any], MappedTensors], bool]
    read: Callable[[ModelDirectory], Checkpoint]
    describe: Callable[..., dict[str, Any]]


def _says(method: str, config: Mapping[str, Any], _: MappedTensors) -> bool:
    said = config.get("quantization_config")
    return isinstance(said, dict) and said.get("quant_method") == method


def _row(method: str, *, portable: bool) -> CheckpointFormat:
    return CheckpointFormat(
        partial(_says, method),
        partial(read_compressed, portable=portable),
        partial(make_quantization_config, portable=portable),
    )


FORMATS: dict[str, CheckpointFormat] = {
    "compressed-tensors": _row("compressed-tensors", portable=True),
    "bitwright": _row("bitwright", portable=False),  # what plain readers cannot represent
}


def read_checkpoint(directory: ModelDirectory) -> Checkpoint:
    """Open a quantized checkpoint of any known format.

    Raises:
        ModelError: no config.json, or no weights.
        CheckpointError: of no known format, or its parts contradict one another.
    """
    where, said = f"{directory.path / CONFIG_FILE}: quantization_config", directory.config.get("quantization_config")
    if not isinstance(said, dict):
        raise CheckpointError(f"{where}: no quantization_config; this is not a quantized checkpoint")
    tensors = directory.tensors
    for row in FORMATS.values():
        if row.detect(directory.config, tensors):
            return row.read(directory)
    known = " and ".join(map(repr, FORMATS))
    raise CheckpointError(f"{where}: quant_method {said.get('quant_method')!r}; this release reads {known}")
