"""Reads the quantized linears of a GGUF file. No torch."""

from functools import partial

from bitwright.checkpoints.checkpoint import Checkpoint, read_bias
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.files.gguf.directory import GgufDirectory, GgufTensors
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import LinearForm, PendingFloat, PendingLinear, QuantizedLinear

_TABLE = "model.embed_tokens"


def read_gguf(directory: ModelDirectory) -> Checkpoint:
    """Open a GGUF file as a checkpoint: every tensor of a quantized type is a linear, but for the table of words, which
    is decoded. A head that is tied to it multiplies its codes.

    Raises:
        CheckpointError: as `GgufTensors`, or a directory that only claims to be such a file.
    """
    if not isinstance(directory, GgufDirectory):
        raise CheckpointError(f"{directory.path}: config.json says quant_method 'gguf'; give the GGUF file itself")
    tensors = directory.tensors
    codes = {name.removesuffix(".weight"): _pending(directory, tensors, name) for name in sorted(tensors.quantized)}
    linears = {module: pending for module, pending in codes.items() if module != _TABLE}
    tables = {module: _table(directory, module, pending) for module, pending in codes.items() if module == _TABLE}
    return Checkpoint(
        directory, linears, (), frozenset(tensors.keys() - tensors.quantized.keys()), dequantized=tables,
        coded_tables={module: codes[module] for module in tables},
    )  # fmt: skip


def _table(directory: GgufDirectory, module: str, pending: PendingLinear) -> PendingFloat:
    def load() -> Bf16:
        values = directory.tensors[f"{module}.weight"]
        assert isinstance(values, Bf16)
        return values

    return PendingFloat(pending.shape, "bfloat16", directory.tensors.type(f"{module}.weight").name, load)


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
