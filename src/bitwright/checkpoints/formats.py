"""The formats of quantized checkpoints: how each is told, read and written. The seam where further ones plug in.

The first two rows share their tensors (`linear_tensors.py`); the second says what compressed-tensors has no words for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bitwright.checkpoints.attention import parse_attention
from bitwright.checkpoints.auto_round import METHODS as AUTO_ROUND
from bitwright.checkpoints.auto_round import read_auto_round
from bitwright.checkpoints.awq import AWQ, read_awq
from bitwright.checkpoints.bitnet import BITNET, read_bitnet
from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.checkpoints.compressed import BITWRIGHT, COMPRESSED
from bitwright.checkpoints.fp8 import read_fp8
from bitwright.checkpoints.gptq import GPTQ, read_gptq
from bitwright.checkpoints.mlx import read_mlx
from bitwright.checkpoints.modelopt import METHODS as MODELOPT
from bitwright.checkpoints.modelopt import read_modelopt
from bitwright.checkpoints.read import read_compressed
from bitwright.checkpoints.spelling import Spelling
from bitwright.errors import CheckpointError, brief
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.tensors import MappedTensors

if TYPE_CHECKING:
    from bitwright.checkpoints.write import Written


class CheckpointFormat(NamedTuple):
    """One format.

    detect: whether a checkpoint is of it, by what its files say of quantization and their headers alone. read: opens
    one. write: makes one of a float model, as `write.write_checkpoint` says; of what compressed-tensors has no words
    for, one of "bitwright"; None of a format that is only converted into, or only read. spelling: how a linear of
    another format is written in this one (`convert.py`); None of a format that is only read.
    """

    detect: Callable[[Mapping[str, Any], MappedTensors], bool]
    read: Callable[[ModelDirectory], Checkpoint]
    write: Callable[..., "Written"] | None = None
    spelling: Spelling | None = None


def _says(methods: tuple[str, ...], said: Mapping[str, Any], _: MappedTensors) -> bool:
    return said.get("quant_method") in methods


def _read_gguf(directory: ModelDirectory) -> Checkpoint:
    from bitwright.checkpoints.gguf import read_gguf  # 5 ms, which other checkpoints need not wait for

    return read_gguf(directory)


def _write(*args: Any, **options: Any) -> "Written":
    """In either format, as what is written needs: writing reads the float model, which takes torch."""
    from bitwright.checkpoints.write import write_checkpoint

    return write_checkpoint(*args, **options)


FORMATS: dict[str, CheckpointFormat] = {
    "compressed-tensors": CheckpointFormat(
        partial(_says, ("compressed-tensors",)), partial(read_compressed, portable=True), _write, COMPRESSED
    ),
    # What compressed-tensors has no words for.
    "bitwright": CheckpointFormat(
        partial(_says, ("bitwright",)), partial(read_compressed, portable=False), _write, BITWRIGHT
    ),
    "gptq": CheckpointFormat(partial(_says, ("gptq",)), read_gptq, spelling=GPTQ),
    "awq": CheckpointFormat(partial(_says, ("awq",)), read_awq, spelling=AWQ),
    "bitnet": CheckpointFormat(partial(_says, ("bitnet",)), read_bitnet, spelling=BITNET),
    "auto-round": CheckpointFormat(partial(_says, AUTO_ROUND), read_auto_round),
    "fp8": CheckpointFormat(partial(_says, ("fp8",)), read_fp8),
    "modelopt": CheckpointFormat(partial(_says, MODELOPT), read_modelopt),
    "mlx": CheckpointFormat(partial(_says, ("mlx",)), read_mlx),
    "gguf": CheckpointFormat(partial(_says, ("gguf",)), _read_gguf),
}


def read_checkpoint(directory: ModelDirectory) -> Checkpoint:
    """Open a quantized checkpoint of any known format.

    Raises:
        ModelError: no config.json, or no weights.
        CheckpointError: of no known format, or its parts contradict one another.
    """
    where, said = directory.quantization or (f"{directory.transformer / CONFIG_FILE}: quantization_config", None)
    if not isinstance(said, dict):
        raise CheckpointError(f"{where}: there is none, so this is not a quantized checkpoint")
    tensors = directory.tensors
    attention = parse_attention(directory.config, str(directory.transformer / CONFIG_FILE))
    for name, row in FORMATS.items():
        if row.detect(said, tensors):
            return row.read(directory)._replace(format=name, int8_attention=attention)
    raise CheckpointError(
        f"{where}: this release does not read quant_method {brief(said.get('quant_method'))}; it reads "
        f"{' and '.join(map(repr, FORMATS))}"
    )
