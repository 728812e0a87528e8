"""What a quantized checkpoint holds, in a few rows: its linears by kind, in which scheme, in how many bits."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.numerics.linear import LinearForm
from bitwright.numerics.spec import QuantSpec

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_MATRICES = ("F32", "F16", "BF16", "F64")


class Layers(NamedTuple):
    """Linears or tables whose names differ in their numbers alone, and that are stored alike.

    name: with * for a number. first: one of them. shape: (N, K) of that. bits: of a weight, with what belongs to it.
    quantized: whether codes are multiplied; False of floats and of what is read as floats.
    """

    name: str
    first: str
    number: int
    shape: tuple[int, int]
    scheme: str
    bits: float
    quantized: bool


def summarize(checkpoint: Checkpoint) -> list[Layers]:
    """The kinds of layers of a checkpoint, in the order of their names; what is quantized comes first."""
    stored = _bits(checkpoint)
    kinds: dict[tuple[str, str, bool], list[tuple[str, tuple[int, int]]]] = {}
    for name, shape, scheme, quantized in _layers(checkpoint):
        kinds.setdefault((_NUMBER.sub("*", name), scheme, quantized), []).append((name, shape))
    rows = []
    for (name, scheme, quantized), members in kinds.items():
        weights = sum(n * k for _, (n, k) in members)
        bits = sum(stored.get(module, 0) for module, _ in members)
        rows.append(Layers(name, members[0][0], len(members), members[0][1], scheme, bits / weights, quantized))
    return sorted(rows, key=lambda row: (not row.quantized, row.name))


def bits_per_weight(checkpoint: Checkpoint) -> float | None:
    """Of all quantized linears together; None without any."""
    stored = _bits(checkpoint)
    modules = {
        name: p.shape for pendings in (checkpoint.linears, checkpoint.dequantized) for name, p in pendings.items()
    }
    weights = sum(n * k for n, k in modules.values())
    return sum(stored.get(name, 0) for name in modules) / weights if weights else None


def scheme_of(form: LinearForm) -> str:
    """A scheme in a few words: "int4 g128, zero points; inputs int8"."""
    weight = form.weight
    size = "" if weight.group_size is None else f" g{weight.group_size}"
    per = " per tensor" * weight.per_tensor
    parts = [f"{_codes(weight)}{size}{per}"]
    if not weight.symmetric:
        parts.append("minima" if form.has_minimum else "zero points")
    if form.scales_input or form.shifts_input:
        parts.append("scaled inputs")
    inputs = "" if form.input is None else f"; inputs int{form.input.bits}{'' if form.input.dynamic else ', static'}"
    return ", ".join(parts) + inputs


def _codes(spec: QuantSpec) -> str:
    if spec.grid in ("fp4", "nf4", "ternary", "binary"):  # of one width
        return spec.grid
    return f"{'int' if spec.grid == 'uniform' else spec.grid}{spec.bits}"


def _layers(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, int], str, bool]]:
    for name, pending in checkpoint.linears.items():
        yield name, pending.shape, scheme_of(pending.form), True
    for name, made in checkpoint.dequantized.items():
        yield name, made.shape, made.stored, False
    tensors = checkpoint.tensors
    for name in checkpoint.tables:
        shape = tensors.shape(f"{name}.weight")
        yield name, (shape[0], shape[-1]), "int8 table", False
    for tensor in checkpoint.others:
        name, _, suffix = tensor.rpartition(".")
        shape = tensors.shape(tensor)
        if suffix == "weight" and len(shape) == 2 and tensors.dtype(tensor) in _MATRICES and 0 not in shape:
            yield name, (shape[0], shape[1]), {"F16": "fp16", "BF16": "bf16"}.get(tensors.dtype(tensor), "float"), False


def _bits(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Bits of the weight of each module, with scales and all that belongs to it, but no bias."""
    found: dict[str, int] = {}
    tensors = checkpoint.tensors
    for tensor in tensors:
        module, _, suffix = tensor.rpartition(".")
        if tensor not in checkpoint.others or suffix == "weight":
            found[module] = found.get(module, 0) + 8 * tensors.n_bytes(tensor)
    return found
