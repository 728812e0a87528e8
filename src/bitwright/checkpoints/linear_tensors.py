"""The tensors of one quantized linear `<m>`, written and read: N outputs, K inputs, G groups (1 of a row), b bits.

    <m>.weight             int8 (N, K)                   int-quantized
    <m>.weight_packed      int32 (N, ⌈K·b/32⌉)           pack-quantized: codes + 2^(b−1), lowest bits first
    <m>.weight             uint8 (N, 1, ⌈K·b/8⌉)         grid-quantized: codes, or codes + 1 of the ternary grid
    <m>.weight_shape       int64 (2,)                    N and K, where codes are packed
    <m>.weight_scale       float32 (N, G), or (1,) per tensor
    <m>.weight_zero_point  int8, shaped like the scale; int32 (⌈N·b/32⌉, G) where codes are packed; asymmetric only
    <m>.weight_codebook    float32 (L,)                  the levels of a grid that has them
    <m>.input_scale        float32 (1,)                  static inputs
    <m>.input_zero_point   int8 (1,)                     static asymmetric inputs
    <m>.input_scale_K      float32 (K,)                  input transform: x̂ = (x − shift) / scale
    <m>.input_shift_K      float32 (K,)
    <m>.bias               as in the source, float; read with the linear, written with the rest of the model

Readers that ignore an unknown quant_method (transformers logs it and goes on) would take codes for numbers, or start
with random ones where they find none. So what plain readers cannot represent is guarded: the codes are called `weight`,
whatever the format, and have a 1 in the middle, (N, 1, …), at which such a reader stops.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from bitwright.checkpoints.quantization_config import Group
from bitwright.checkpoints.schemes import Format, format_of
from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Array, Bf16, cast, dtype_name
from bitwright.numerics.bits import pack_bytes, pack_words, unpack_bytes, unpack_words
from bitwright.numerics.linear import InputTransform, LinearForm, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor, levels_of, scale_shape
from bitwright.numerics.spec import QuantSpec

Entry = tuple[str, tuple[int, ...]]  # dtype as safetensors spells it, and shape

_FLOATS = frozenset({"F32", "BF16", "F16"})  # in which other tools store scales

# Also read of what other tools store: the group of each column, and what 4-bit floats and their inputs have.
READ_SUFFIXES = ("weight_g_idx", "weight_global_scale", "input_global_scale")

# Ends of the names of what a quantized linear may store, but for its bias.
SUFFIXES = (
    *("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_codebook"),
    *("input_scale", "input_zero_point", "input_scale_K", "input_shift_K"),
)


def is_portable(form: LinearForm) -> bool:
    """Whether compressed-tensors has words for a linear."""
    return form.weight.grid == "uniform" and not (form.scales_input or form.shifts_input or form.has_minimum)


def linear_entries(shape: tuple[int, int], form: LinearForm, *, guarded: bool) -> dict[str, Entry]:
    """dtype and shape of every tensor of a linear (N, K), by suffix.

    Raises:
        NumericsError: its weight has minima.
    """
    _check_has_words(form)
    return _entries(shape, form, format_of(form.weight, form.input), guarded=guarded)


def linear_tensors(linear: QuantizedLinear, *, guarded: bool) -> dict[str, Array]:
    """The tensors of a linear, by suffix: as `linear_entries` promises them.

    Raises:
        NumericsError: its weight has minima, or zero points that do not fit into as many bits as its codes.
    """
    _check_has_words(linear.form)
    weight, static, transform = linear.weight, linear.static, linear.transform
    spec, format_ = weight.spec, format_of(weight.spec, linear.input_spec)
    scale = cast(weight.scale_NG, "float32")
    zero = weight.zero_point_NG
    if zero is not None and format_ == "pack-quantized" and not spec.per_tensor:
        zero = pack_words(zero, spec.bits, dim=0, what="zero points")
    codes = _pack(weight.codes_NK, spec, format_)
    asymmetric = linear.input_spec is not None and not linear.input_spec.symmetric
    tensors = {
        _codes_name(format_, guarded=guarded): codes[:, None] if guarded else codes,
        "weight_shape": None if format_ == "int-quantized" else np.array(weight.shape),
        "weight_scale": scale.reshape(1) if spec.per_tensor else scale,
        "weight_zero_point": zero.reshape(1) if zero is not None and spec.per_tensor else zero,
        "weight_codebook": levels_of(spec, weight.codebook, like=scale) if spec.has_codebook else None,
        "input_scale": None if static is None else np.array([static.scale], np.float32),
        "input_zero_point": None if static is None or not asymmetric else np.array([static.zero_point], np.int8),
        "input_scale_K": None if transform is None else transform.scale_K,
        "input_shift_K": None if transform is None else transform.shift_K,
    }
    return {suffix: tensor for suffix, tensor in tensors.items() if tensor is not None}


def _check_has_words(form: LinearForm) -> None:
    if form.has_minimum:
        raise NumericsError(
            "a weight with a float minimum for each group cannot be stored, because no tensor of ours holds one; "
            "quantize it with a zero point for each group instead"
        )


def described(
    group: Group, header: Mapping[str, Entry], weight_shape: np.ndarray | None
) -> tuple[tuple[int, int], LinearForm, bool]:
    """Shape (N, K) and form of a linear of `group`, by dtype and shape of the tensors that the file holds for it, and
    whether it is guarded.

    Args:
        header: suffix -> dtype and shape; nothing but what `SUFFIXES` names. weight_shape: that tensor, if there.

    Raises:
        NumericsError: a tensor is missing, is one too many, or has another dtype or shape than the group says.
    """
    name = "weight_packed" if group.format == "pack-quantized" and "weight" not in header else "weight"
    if name not in header:
        raise NumericsError(f"{name} is missing")
    stored = header[name][1]
    guarded = name == "weight" and len(stored) == 3
    if group.format == "int-quantized":
        shape = (stored[0], stored[-1]) if stored else (0, 0)
    elif weight_shape is None or weight_shape.dtype not in (np.int64, np.int32) or weight_shape.size != 2:
        raise NumericsError("weight_shape is missing, or is not two integers")
    else:
        n, k = weight_shape.reshape(2).tolist()
        shape = (n, k)
    if min(shape) < 1:
        raise NumericsError(f"N, K = {list(shape)}: a linear has at least one output and one input")
    promised = _entries(shape, group.form, group.format, guarded=guarded, stored_bits=group.stored_bits)
    for suffix, entry in promised.items():
        if suffix not in header:
            raise NumericsError(f"{suffix} is missing")
        if not _agree(suffix, header[suffix], entry):
            raise NumericsError(
                f"{suffix} is {header[suffix][0]} {list(header[suffix][1])}; expected {entry[0]} {list(entry[1])} of a "
                f"{group.format} weight with N, K = {list(shape)}"
            )
    for suffix in sorted(header.keys() - promised.keys()):
        if suffix not in _stray(group.form):
            raise NumericsError(
                f"{suffix} is unexpected, because config.json describes a {group.format} weight without one"
            )
    return shape, group.form, guarded


def _stray(form: LinearForm) -> list[str]:
    """Zero points that other tools store, all zero, though the grid is symmetric."""
    specs = {"weight_zero_point": form.weight, "input_zero_point": form.input}
    return [name for name, spec in specs.items() if spec is not None and spec.symmetric]


def read_linear(
    tensors: Mapping[str, np.ndarray | Bf16], group: Group, shape: tuple[int, int], bias_N: np.ndarray | None,
    *, guarded: bool,
) -> QuantizedLinear:  # fmt: skip
    """The linear that these tensors, by suffix, are. `shape` and `guarded` are what `described` said of them.

    Raises:
        NumericsError: values that contradict one another or the group.
    """
    spec, (n, k) = group.form.weight, shape
    for name in _stray(group.form):
        stray = tensors.get(name)
        if isinstance(stray, np.ndarray) and stray.any():
            raise NumericsError(f"{name} is not zero, but config.json says that the weight is symmetric")
    promised = _entries(shape, group.form, group.format, guarded=guarded, stored_bits=group.stored_bits)
    found = {suffix: _as_promised(tensors[suffix], *entry) for suffix, entry in promised.items()}
    codes = found[_codes_name(group.format, guarded=guarded)]
    bits = group.stored_bits or spec.bits
    codes_NK = _unpack(codes[:, 0] if guarded else codes, k, spec, bits, group.format)
    if spec.symmetric and spec.bits == 8 and codes_NK.size and int(codes_NK.min()) == -128:
        spec = replace(spec, full_range=True)  # other tools use −128 too
    scale, zero = found["weight_scale"], found.get("weight_zero_point")
    if zero is not None and zero.dtype == np.int32:
        zero = unpack_words(zero, bits, n, dim=0)
    if spec.per_tensor:
        scale, zero = scale.reshape(1, 1), None if zero is None else zero.reshape(1, 1)
    codebook = found.get("weight_codebook")
    if codebook is not None and spec.grid != "kmeans":
        fixed = levels_of(spec, None, like=codebook)
        if not np.array_equal(codebook, fixed):
            raise NumericsError(f"weight_codebook = {codebook.tolist()}, but the {spec.grid} grid has {fixed.tolist()}")
        codebook = None
    weight = QTensor(codes_NK, scale, zero, spec, codebook)
    return QuantizedLinear(weight, bias_N, group.form.input, _static(found), _transform(found))


def _static(found: Mapping[str, np.ndarray]) -> StaticGrid | None:
    if "input_scale" not in found:
        return None
    zero = found.get("input_zero_point")
    return StaticGrid(float(found["input_scale"][0]), 0 if zero is None else int(zero[0]))


def _transform(found: Mapping[str, np.ndarray]) -> InputTransform | None:
    scale_K, shift_K = found.get("input_scale_K"), found.get("input_shift_K")
    return None if scale_K is None and shift_K is None else InputTransform(scale_K, shift_K)


def _as_promised(tensor: np.ndarray | Bf16, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """In the dtype and the shape that we would have written; scales may be stored in 16 bit by other tools."""
    values: np.ndarray = tensor.widen() if isinstance(tensor, Bf16) else tensor
    return (values.astype(np.float32, copy=False) if dtype == "F32" else values).reshape(shape)


def _agree(suffix: str, found: Entry, promised: Entry) -> bool:
    """Whether a stored tensor holds what is promised, maybe as other tools spell it: a scale in 16 bit, no shape for a
    single value, no 1 beside the number of rows, N and K as int32."""
    is_scale, codes = suffix.endswith("_scale"), suffix in ("weight", "weight_packed")
    same_dtype = found[0] == promised[0] or (is_scale and found[0] in _FLOATS) or suffix == "weight_shape"
    same_shape = [d for d in found[1] if d != 1] == [d for d in promised[1] if d != 1] and not codes
    return same_dtype and (found[1] == promised[1] or same_shape)


def _entries(
    shape: tuple[int, int], form: LinearForm, format_: Format, *, guarded: bool, stored_bits: int | None = None
) -> dict[str, Entry]:
    weight, input_spec, (n, k) = form.weight, form.input, shape
    bits = stored_bits or weight.bits
    codes: dict[Format, Entry] = {
        "int-quantized": ("I8", (n, k)),
        "pack-quantized": ("I32", (n, math.ceil(k * bits / 32))),
        "grid-quantized": ("U8", (n, math.ceil(k * bits / 8))),
    }
    dtype, (_, width) = codes[format_]
    scale: tuple[int, ...] = (1,) if weight.per_tensor else scale_shape(n, k, weight)
    entries: dict[str, Entry] = {}
    entries[_codes_name(format_, guarded=guarded)] = (dtype, (n, 1, width) if guarded else (n, width))
    if format_ != "int-quantized":
        entries["weight_shape"] = ("I64", (2,))
    entries["weight_scale"] = ("F32", scale)
    if not weight.symmetric:
        words = ("I32", (math.ceil(n * bits / 32), scale[-1]))
        packed = format_ == "pack-quantized" and not weight.per_tensor
        entries["weight_zero_point"] = words if packed else ("I8", scale)
    if weight.has_codebook:
        entries["weight_codebook"] = ("F32", (weight.code_max + 1,))
    if input_spec is not None and not input_spec.dynamic:
        entries["input_scale"] = ("F32", (1,))
        if not input_spec.symmetric:
            entries["input_zero_point"] = ("I8", (1,))
    transforms = {"input_scale_K": form.scales_input, "input_shift_K": form.shifts_input}
    return entries | {suffix: ("F32", (k,)) for suffix, there in transforms.items() if there}


def _codes_name(format_: Format, *, guarded: bool) -> str:
    return "weight_packed" if format_ == "pack-quantized" and not guarded else "weight"


def _pack(codes_NK: Array, spec: QuantSpec, format_: Format) -> Array:
    if format_ == "int-quantized":
        return codes_NK
    if format_ == "pack-quantized":
        return pack_words(codes_NK, spec.bits)
    return pack_bytes(codes_NK, spec)


def _unpack(codes: np.ndarray, k: int, spec: QuantSpec, bits: int, format_: Format) -> np.ndarray:
    if format_ == "int-quantized":
        return codes
    unpacked = unpack_words(codes, bits, k) if format_ == "pack-quantized" else unpack_bytes(codes, spec, k)
    assert dtype_name(unpacked) == "int8"
    return np.asarray(unpacked)
