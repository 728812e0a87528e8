"""Reads the quantized linears of a GGUF file. No torch."""

from functools import partial

from bitwright.checkpoints.checkpoint import Checkpoint, read_bias
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.files.gguf.directory import GgufDirectory, GgufTensors
from bitwright.numerics.linear import LinearForm, PendingLinear, QuantizedLinear

_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_gguf(directory: ModelDirectory) -> Checkpoint:
    """Open a GGUF file as a checkpoint: every tensor of a quantized type is a linear. So is the table of words where it
    is the head, too; as a table it is decoded.

    Raises:
        CheckpointError: as `GgufTensors`, or a directory that only claims to be such a file.
    """
    if not isinstance(directory, GgufDirectory):
        raise CheckpointError(f"{directory.path}: config.json says quant_method 'gguf'; give the GGUF file itself")
    tensors = directory.tensors
    quantized = tensors.quantized
    if _HEAD in tensors:
        quantized.pop(_TABLE, None)
    linears = {name.removesuffix(".weight"): _pending(directory, tensors, name) for name in sorted(quantized)}
    return Checkpoint(
        directory, linears, (), frozenset(tensors.keys() - quantized.keys()) | ({_TABLE} & tensors.keys())
    )


def _pending(directory: GgufDirectory, tensors: GgufTensors, name: str) -> PendingLinear:
    shape, spec = tensors.shape(name), tensors.spec(name)
    assert spec is not None
    form = LinearForm(spec, has_minimum=not spec.symmetric and tensors.type(name).name != "Q4_0")
    return PendingLinear((shape[0], shape[1]), form, partial(_load, directory, name))


def _load(directory: GgufDirectory, name: str) -> QuantizedLinear:
    tensors = directory.tensors
    try:
        weight = tensors.held(name)
    except NumericsError as error:
        raise CheckpointError(f"{directory.path}: {tensors.stored_name(name)}: {error}") from None
    return QuantizedLinear(weight, read_bias(directory, name.removesuffix(".weight"), tensors.shape(name)[0]))
