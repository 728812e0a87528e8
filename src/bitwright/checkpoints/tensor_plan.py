"""What a checkpoint will hold, tensor by tensor: what is quantized or changed, and everything else of the source."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Literal

from bitwright.checkpoints.linear_tensors import is_portable, linear_entries, linear_tensors
from bitwright.checkpoints.schemes import format_of
from bitwright.errors import CheckpointError, named
from bitwright.files.names import name_in, require_name_in
from bitwright.files.safetensors import DTYPES
from bitwright.files.safetensors_writer import PendingTensor, pending, spelled_dtype
from bitwright.models.names import ModelNames
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles
from bitwright.numerics.arrays import Array, cast
from bitwright.numerics.linear import PendingLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import stored_dtype


@dataclass(frozen=True, slots=True)
class QuantizedParts:
    """What differs from the source, by name in the model as Bitwright holds it (its experts are linears).

    layers: the quantized linears, loaded one at a time. half: linears kept in 16 bit. tables: embedding tables as int8,
    a scale per row. changed: float parameters that are others than the source's. embeddings: what happens to the other
    tables: "16bit", or "float" to leave them as they are. int8_attention: blocks whose attention the engine computes in
    int8.
    """

    layers: Mapping[str, PendingLinear]
    half: Collection[str] = ()
    tables: Mapping[str, QTensor] = field(default_factory=dict)
    changed: Mapping[str, Callable[[], Array]] = field(default_factory=dict)
    embeddings: Literal["16bit", "float"] = "16bit"
    int8_attention: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """Every tensor that will be written, by name on disk; nothing is loaded yet.

    layers: the quantized linears by name on disk. portable: whether plain readers can represent all of it.
    """

    tensors: dict[str, PendingTensor]
    layers: dict[str, PendingLinear]
    tables: tuple[str, ...]
    portable: bool


def plan_tensors(source: SourceTensors, parts: QuantizedParts, names: ModelNames) -> TensorPlan:
    """What will be written.

    Raises:
        CheckpointError: `parts` name a linear, a table or a parameter that the source lacks, or whose shape differs, or
            that shares its weight with another module.
    """
    tensors = {name: _as_is(source.files, name) for name in source.files.keys() - _repeated(source, names)}
    unstacked = _unstack(source, tensors, {f"{name}.weight" for name in parts.layers} | parts.changed.keys())

    def on_disk(name: str) -> str:
        return unstacked.get(name) or source.file_name(name)

    tables = names.embeddings if parts.embeddings == "16bit" else ()
    repeats = names.tied.keys() - set(source.untied)
    tied = repeats | {names.tied[name] for name in repeats}
    in_16_bit = {f"{module}.weight" for module in (*parts.half, *tables)} - repeats
    for name, load in parts.changed.items():
        _require(source, name)
        if name in tied:
            raise CheckpointError(
                f"{name}: another module has the same weight, so this one must not change; exclude it"
            )
        before = tensors[on_disk(name)]
        tensors[on_disk(name)] = _changed(before, load, transposed=name in names.transposed, half=name in in_16_bit)
    for name in in_16_bit & source.keys():
        # A module that the file lacks and transformers initializes has nothing of its own to write.
        tensors[on_disk(name)] = _in_16_bit(tensors[on_disk(name)])
    portable = not parts.tables and not unstacked and _linears_are_portable(parts.layers, names)
    layers: dict[str, PendingLinear] = {}
    for module in (*parts.layers, *parts.tables):
        weight = f"{module}.weight"
        if weight in tied:
            raise CheckpointError(f"{module}: shares its weight with another module; keep it in 16 bit")
        _require(source, weight)
        shape = parts.layers[module].shape if module in parts.layers else parts.tables[module].shape
        if shape != source.shape(weight):
            raise CheckpointError(
                f"{module}: the source has the shape {list(source.shape(weight))}, but the quantized tensor has "
                f"{list(shape)}"
            )
        if module in parts.layers:
            layers[on_disk(weight).removesuffix(".weight")] = parts.layers[module]
        else:
            tensors |= table_tensors(on_disk(weight).removesuffix(".weight"), parts.tables[module])
    for module in layers:
        del tensors[f"{module}.weight"]
    tensors |= pending_linears(layers, guarded=not portable)
    on_disk_tables = tuple(on_disk(f"{module}.weight").removesuffix(".weight") for module in parts.tables)
    return TensorPlan(tensors, layers, on_disk_tables, portable)


def pending_linears(layers: Mapping[str, PendingLinear], *, guarded: bool) -> dict[str, PendingTensor]:
    """The tensors of quantized linears, by name on disk. A linear is loaded when the first of its tensors is asked for,
    and kept until one of another linear is."""

    @lru_cache(maxsize=1)
    def load(module: str) -> dict[str, Array]:
        linear = layers[module].load()
        with named(module):
            return linear_tensors(linear, guarded=guarded)

    return {
        f"{module}.{suffix}": PendingTensor(dtype, shape, partial(_pick, load, module, suffix))
        for module, layer in layers.items()
        for suffix, (dtype, shape) in linear_entries(layer.shape, layer.form, guarded=guarded).items()
    }


def _pick(load: Callable[[str], dict[str, Array]], module: str, suffix: str) -> Array:
    return load(module)[suffix]


def table_tensors(module: str, table: QTensor) -> dict[str, PendingTensor]:
    """The tensors of one int8 embedding table."""
    codes_V1H, scale_V1 = table.codes_NK[:, None], cast(table.scale_NG, "float32")
    return {f"{module}.weight": pending(codes_V1H), f"{module}.weight_scale": pending(scale_V1)}


def _linears_are_portable(layers: Mapping[str, PendingLinear], names: ModelNames) -> bool:
    """Whether compressed-tensors has words for all linears, and transformers a place for them.

    transformers (5.23) has none for what it transposes. It stacks experts while loading, and decompresses them there
    only if all are packed, symmetric, and like everything else that is quantized.
    """
    if not all(is_portable(layer.form) for layer in layers.values()):
        return False
    fused = layers.keys() & names.fused
    schemes = {(format_of(layer.form.weight, layer.form.input), layer.form.weight) for layer in layers.values()}
    like_one = (
        all(format_ == "pack-quantized" and weight.symmetric for format_, weight in schemes) and len(schemes) == 1
    )
    return not fused or (like_one and not names.transposed and fused == names.fused)


def _repeated(source: SourceTensors, names: ModelNames) -> set[str | None]:
    """Names in the files of parameters that only repeat another one that they hold."""
    return {
        name_in(source.files, name, names.prefix)
        for name, kept in names.tied.items()
        if name not in source.untied and name_in(source.files, kept, names.prefix)
    }


def _unstack(source: SourceTensors, tensors: dict[str, PendingTensor], replaced: Collection[str]) -> dict[str, str]:
    """Split, in `tensors`, what the files stack into one tensor wherever a part of it is replaced.

    Returns:
        Parameter -> its name on disk, of those that have a tensor of their own now.
    """
    stacked = {source.file_name(name) for name in replaced if name in source and _is_part(source, name)}
    own = {}
    for name in source:
        stack = source.file_name(name)
        if stack in stacked:
            expert, part, leaf = name.rsplit(".", 3)[1:]
            own[name] = f"{stack.rpartition('.')[0]}.{expert}.{part}.{leaf}"
            tensors[own[name]] = _from_source(source, name)
    for stack in stacked:
        del tensors[stack]
    return own


def _is_part(source: SourceTensors, name: str) -> bool:
    """Whether the files stack a parameter with others in one tensor."""
    return len(source.files.shape(source.file_name(name))) != len(source.shape(name))


def _require(source: SourceTensors, name: str) -> None:
    if name not in source:
        require_name_in(source, name, "", str(source.files.path))


def _as_is(files: TensorFiles, name: str) -> PendingTensor:
    shape = files.shape(name)
    pieces = partial(files.pieces, name, 0, math.prod(shape))
    return PendingTensor(spelled_dtype(files.dtype(name)), shape, lambda: files[name], pieces)


def _from_source(source: SourceTensors, name: str) -> PendingTensor:
    pieces = partial(source.pieces, name)
    return PendingTensor(spelled_dtype(source.dtype(name)), source.shape(name), lambda: source[name], pieces)


def _changed(before: PendingTensor, load: Callable[[], Array], *, transposed: bool, half: bool) -> PendingTensor:
    """A float parameter with other values: float32, because a fold's factors do not fit 16 bit, unless it is said to
    be kept in 16 bit."""
    dtype = before.dtype if half else "F32"
    return PendingTensor(dtype, before.shape, lambda: cast(load().T if transposed else load(), DTYPES[dtype]))


def _in_16_bit(tensor: PendingTensor) -> PendingTensor:
    """Floats as `stored_dtype` says; what is stored in less stays."""
    kept = stored_dtype(DTYPES[tensor.dtype])
    if tensor.dtype not in ("F16", "F32", "F64") or kept == DTYPES[tensor.dtype]:
        return tensor
    pieces = lambda: (cast(piece, kept) for piece in tensor.in_pieces())  # noqa: E731
    return PendingTensor(spelled_dtype(kept), tensor.shape, lambda: cast(tensor.load(), kept), pieces)
