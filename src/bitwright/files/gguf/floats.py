"""Writes what the codes of a GGUF file stand for as a float model directory."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.gguf.directory import GgufDirectory
from bitwright.files.safetensors_writer import PendingTensor, shard, shard_index, write_safetensors
from bitwright.numerics.arrays import Array

_SHARD_BYTES = 5_000_000_000


class DecodedGguf(ModelDirectory):
    """The float model of a GGUF file's codes, in a directory. file: where they come from."""

    def __init__(self, path: Path, file: GgufDirectory) -> None:
        super().__init__(path, file.task)
        self.file = file

    @property
    def origin(self) -> Path:
        """The GGUF file."""
        return self.file.path

    @property
    def decoded_types(self) -> tuple[str, ...]:
        """The types of the file's quantized tensors, the most frequent first."""
        kinds = Counter(entry.type.name for entry in self.file.tensors.quantized.values())
        return tuple(name for name, _ in kinds.most_common())

    @property
    def fingerprint(self) -> str:  # the floats follow from the file
        """As `GgufDirectory`."""
        return self.file.fingerprint


def float_bytes(file: GgufDirectory) -> int:
    """The bytes that the tensors take as `write_floats` writes them."""
    return sum(tensor.n_bytes for tensor in _tensors(file).values())


def write_floats(file: GgufDirectory, folder: Path) -> DecodedGguf:
    """Write the model into an empty directory. A code times its scale takes more bits than bfloat16 has, so what is
    quantized becomes float32, exactly; floats stay as they are.

    Raises:
        CheckpointError: a tensor that cannot be decoded. OSError: as the file system says.
    """
    shards = shard(_tensors(file), _SHARD_BYTES)
    for name, part in shards.items():
        write_safetensors(folder / name, part)
    config = {key: value for key, value in file.config.items() if key != "quantization_config"}
    text = {CONFIG_FILE: json.dumps(config), **file.made_files}
    if len(shards) > 1:
        text["model.safetensors.index.json"] = shard_index(shards)
    if (license_name := file.license) is not None:
        text["README.md"] = f"---\nlicense: {license_name}\n---\n"
    for name, content in text.items():
        (folder / name).write_text(content, encoding="utf-8")
    return DecodedGguf(folder, file)


def _tensors(file: GgufDirectory) -> dict[str, PendingTensor]:
    tensors = file.tensors
    found: dict[str, PendingTensor] = {}
    for name in tensors:
        quantized = name in tensors.quantized
        load: Callable[[], Array] = partial(_decoded if quantized else _stored, file, name)
        found[name] = PendingTensor("F32" if quantized else tensors.dtype(name), tensors.shape(name), load)
    return found


def _decoded(file: GgufDirectory, name: str) -> np.ndarray:
    try:
        values: np.ndarray = file.tensors.held(name).dequantize()
    except NumericsError as error:
        raise CheckpointError(f"{file.path}: {file.tensors.stored_name(name)}: {error}") from None
    return values


def _stored(file: GgufDirectory, name: str) -> Array:
    return file.tensors[name]
