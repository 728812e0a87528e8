"""Reads the quantized linears of a GGUF file. No torch."""

from collections import Counter
from collections.abc import Mapping
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
        notes=_notes(tensors, linears), coded_tables={module: codes[module] for module in tables},
    )  # fmt: skip


def _notes(tensors: GgufTensors, linears: Mapping[str, PendingLinear]) -> tuple[str, ...]:
    """Which types no kernel of codes takes: those with minima and more than 4 bits, or with groups of 16."""
    kinds = Counter(
        tensors.type(f"{module}.weight").name
        for module, pending in linears.items()
        if pending.form.has_minimum and (pending.form.weight.bits, pending.form.weight.group_size) != (4, 32)
    )
    return tuple(f"{count} × {kind} run as bf16, because they have minima" for kind, count in sorted(kinds.items()))


def _table(directory: GgufDirectory, module: str, pending: PendingLinear) -> PendingFloat:
    def load() -> Bf16:
        values = directory.tensors[f"{module}.weight"]
        assert isinstance(values, Bf16)
        return values

    return PendingFloat(pending.shape, "bfloat16", f"{directory.tensors.type(f'{module}.weight').name} table", load)


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
