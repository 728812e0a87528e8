"""One linear as a directory stores it (`checkpoints/linear_tensors.py`): numpy arrays, read without torch, checked."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bitwright.checkpoints.quantization_config import Group
from bitwright.engine.program import NOT_ROUNDED, Grid, same_grid, same_values
from bitwright.errors import CheckpointError
from bitwright.numerics.spec import QuantSpec

if TYPE_CHECKING:
    from bitwright.engine.weights import Weights

Operator = Literal["linear_w8a8", "linear_bf16", "linear_wna16"]
_GROUPS = 8  # groups of K that `linear_wna16` takes are multiples of this


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x̂ Wᵀ + bias, where x̂ is x as the grid says, or x itself.

    W is values_NK, float32, or it is (level(code) − zero) · scale with codes_NK int8, zero_NG int8 or None for zeros,
    and scale_NG float32. level(code) is the code, or, where there are levels, float32 (L,), the one at that index.
    bits: of a code. name: what W's numbers are, for people.
    """

    shape: tuple[int, int]
    name: str
    bias_N: np.ndarray | None
    grid: Grid | None = None
    values_NK: np.ndarray | None = None
    codes_NK: np.ndarray | None = None
    scale_NG: np.ndarray | None = None
    zero_NG: np.ndarray | None = None
    levels: np.ndarray | None = None
    bits: int = 8

    @property
    def operator(self) -> Operator:
        """The native operator that computes it: whole multiples of one scale per row with rounded inputs are int8
        products, as on the generic path (`kernels/linear.py: runs_natively`); other codes become bf16."""
        if self.scale_NG is None:
            return "linear_bf16"
        rounded = self.grid is not None and self.grid.mode != NOT_ROUNDED
        whole = self.zero_NG is None and self.levels is None and self.scale_NG.shape[1] == 1
        return "linear_w8a8" if rounded and whole else "linear_wna16"

    @property
    def dtype(self) -> str:
        """What is multiplied, for people."""
        if self.operator == "linear_wna16":
            return self.name.replace("int8", "int8×bf16")
        return "int8" if self.operator == "linear_w8a8" else "bf16"

    def joins(self, other: "Linear") -> bool:
        """Whether one operator can compute both: their inputs are the same, and so is the way in which W is held."""
        return (
            (self.shape[1], self.dtype, self.zero_NG is None) == (other.shape[1], other.dtype, other.zero_NG is None)
            and same_grid(self.grid, other.grid)
            and same_values(self.levels, other.levels)
        )

    def rows(self, begin: int, end: int) -> "Linear":
        """Outputs [begin, end)."""
        fields = ("bias_N", "values_NK", "codes_NK", "scale_NG", "zero_NG")
        parts = {name: getattr(self, name)[begin:end] for name in fields if getattr(self, name) is not None}
        return replace(self, shape=(end - begin, self.shape[1]), **parts)


def float_linear(weights: "Weights", module: str) -> Linear:
    """Raises:
    CheckpointError: no matrix.
    """
    values_NK = weights.floats(f"{module}.weight")
    if values_NK.ndim != 2 or not values_NK.size:
        shape = list(values_NK.shape)
        raise CheckpointError(f"{weights.directory}: {module}.weight has the shape {shape}; a linear has (N, K)")
    n, k = values_NK.shape
    return Linear((n, k), "bf16", _bias(weights, module, n), values_NK=values_NK)


def quantized_linear(weights: "Weights", module: str, group: Group) -> Linear:
    """A linear of a config group; with W in float32 where no operator takes its groups of K.

    Raises:
        CheckpointError: its tensors contradict one another or the group.
    """
    spec = group.weight_spec
    if f"{module}.weight_g_idx" in weights:
        raise CheckpointError(f"{weights.directory}: {module}: columns assigned to groups by an index cannot be read")
    codes_NK = _codes(weights, module, group)
    n, k = codes_NK.shape
    size = spec.group_size if spec.group_size is not None else k
    if k % size:
        raise CheckpointError(f"{weights.directory}: {module}: K = {k} is not a multiple of group_size = {size}")
    linear = Linear(
        (n, k), _name(spec) + f" g{size}" * (size < k), _bias(weights, module, n),
        _grid(weights, module, group, k), None, codes_NK, _scales(weights, module, spec, n, k // size),
        _zeros(weights, module, group, n, k // size), _levels(weights, module, spec), spec.bits,
    )  # fmt: skip
    return linear if size == k or size % _GROUPS == 0 else dequantized(linear)


def unpack_bits(rows_NB: np.ndarray, bits: int, count: int) -> np.ndarray:
    """`count` codes of each row of bytes, the lowest bits first (`numerics/bits.py`): uint8 (N, count)."""
    stride = 1 if 8 % bits == 0 else bits  # bytes that hold a whole number of codes
    dtype = np.dtype(np.uint8 if stride == 1 else np.uint32)
    padded = np.pad(rows_NB, ((0, 0), (0, -rows_NB.shape[1] % stride)))
    words = np.zeros((len(padded), padded.shape[1] // stride), dtype)
    for i in range(stride):
        words |= np.left_shift(padded[:, i::stride].astype(dtype), 8 * i)
    codes = np.empty((*words.shape, 8 * stride // bits), np.uint8)
    for i in range(codes.shape[2]):
        codes[..., i] = np.bitwise_and(np.right_shift(words, i * bits), (1 << bits) - 1)
    return codes.reshape(len(rows_NB), -1)[:, :count]


def dequantized(linear: Linear) -> Linear:
    """The same linear with W in float32."""
    codes, scale_NG, zero_NG = linear.codes_NK, linear.scale_NG, linear.zero_NG
    assert codes is not None
    assert scale_NG is not None
    steps = codes.astype(np.float32) if linear.levels is None else linear.levels[codes]
    steps = steps.reshape(*scale_NG.shape, -1) - (0 if zero_NG is None else zero_NG[..., None])
    values_NK = (steps * scale_NG[..., None]).reshape(linear.shape)
    return Linear(linear.shape, linear.name, linear.bias_N, linear.grid, values_NK)


def _name(spec: QuantSpec) -> str:
    if spec.grid in ("nf4", "ternary", "binary"):  # of one width
        return spec.grid
    return f"{'int' if spec.grid == 'uniform' else spec.grid}{spec.bits}"


def _bias(weights: "Weights", module: str, n: int) -> np.ndarray | None:
    return weights.vector(f"{module}.bias", n) if f"{module}.bias" in weights else None


def _codes(weights: "Weights", module: str, group: Group) -> np.ndarray:
    """int8 (N, K)."""
    spec, form = group.weight_spec, group.format
    packed = form == "pack-quantized" and f"{module}.weight_packed" in weights
    name = f"{module}.{'weight_packed' if packed else 'weight'}"
    stored, dtype = weights.raw(name)
    wanted = {"int-quantized": "I8", "pack-quantized": "I32", "grid-quantized": "U8"}[form]
    if dtype != wanted or stored.ndim not in (2, 3) or not stored.size or len(stored) * stored.shape[-1] != stored.size:
        raise CheckpointError(
            f"{weights.directory}: {name} is {dtype} {list(stored.shape)}; codes of a {form} weight are {wanted} (N, …)"
        )
    rows = stored.reshape(len(stored), -1)
    least = -(1 << spec.bits - 1) if form != "grid-quantized" else spec.code_min
    if form == "int-quantized":
        codes_NK = rows
    else:
        (n, k), unit = _shape(weights, module), 8 if form == "grid-quantized" else 32
        want = (n, math.ceil(k * spec.bits / unit) * unit // 8)
        rows = np.ascontiguousarray(rows).view(np.uint8)
        if rows.shape != want:
            raise CheckpointError(
                f"{weights.directory}: {name} is {list(rows.shape)} bytes; codes of {spec.bits} bits for "
                f"N, K = {[n, k]} take {list(want)}"
            )
        codes_NK = (unpack_bits(rows, spec.bits, k) + np.uint8(least % 256)).view(np.int8)
    if codes_NK.min() < least or codes_NK.max() > spec.code_max:
        raise CheckpointError(
            f"{weights.directory}: {name} holds codes from {codes_NK.min()} to {codes_NK.max()}; those of {spec.bits} "
            f"bits on the {spec.grid} grid lie in [{least}, {spec.code_max}]"
        )
    return codes_NK


def _shape(weights: "Weights", module: str) -> tuple[int, int]:
    shape, dtype = weights.raw(f"{module}.weight_shape")
    if dtype not in ("I64", "I32") or shape.size != 2 or shape.min() < 1:
        raise CheckpointError(f"{weights.directory}: {module}.weight_shape is {dtype} {shape.tolist()}, not N and K")
    n, k = shape.reshape(2).tolist()
    return n, k


def _scales(weights: "Weights", module: str, spec: QuantSpec, n: int, groups: int) -> np.ndarray:
    """float32 (N, G)."""
    name = f"{module}.weight_scale"
    scale = weights.positive(name)
    _check_shape(weights, name, scale, (1, 1) if spec.per_tensor else (n, groups))
    return np.broadcast_to(scale, (n, 1)) if spec.per_tensor else scale.reshape(n, groups)


def _zeros(weights: "Weights", module: str, group: Group, n: int, groups: int) -> np.ndarray | None:
    """int8 (N, G)."""
    spec, name = group.weight_spec, f"{module}.weight_zero_point"
    if spec.symmetric:  # older tools store one, all zero, with symmetric weights too
        if name in weights and weights.raw(name)[0].any():
            raise CheckpointError(f"{weights.directory}: {name} is not zero, but config.json says symmetric")
        return None
    zero, dtype = weights.raw(name)
    if group.format == "pack-quantized" and not spec.per_tensor:
        _check_shape(weights, name, zero, (math.ceil(n * spec.bits / 32), groups))
        words_GW = np.ascontiguousarray(zero.reshape(-1, groups).T)
        codes_GN = unpack_bits(words_GW.view(np.uint8), spec.bits, n) + np.uint8(-(1 << spec.bits - 1) % 256)
        zero, dtype = codes_GN.view(np.int8).T, {"I32": "I8"}.get(dtype, dtype)
    _check_shape(weights, name, zero, (1, 1) if spec.per_tensor else (n, groups))
    if dtype != "I8":
        raise CheckpointError(f"{weights.directory}: {name} is {dtype}, zero points are int8, or packed int32")
    return np.broadcast_to(zero, (n, 1)) if spec.per_tensor else zero.reshape(n, groups)


def _levels(weights: "Weights", module: str, spec: QuantSpec) -> np.ndarray | None:
    if not spec.has_codebook:
        return None
    levels = weights.vector(f"{module}.weight_codebook", spec.code_max + 1)
    if not np.isfinite(levels).all():
        raise CheckpointError(f"{weights.directory}: {module}.weight_codebook holds a level that is not finite")
    return levels


def _check_shape(weights: "Weights", name: str, values: np.ndarray, wanted: tuple[int, int]) -> None:
    """Other tools leave out, or add, an axis of length 1."""
    if [d for d in values.shape if d != 1] != [d for d in wanted if d != 1]:
        raise CheckpointError(f"{weights.directory}: {name} has the shape {list(values.shape)}, not {list(wanted)}")


def _grid(weights: "Weights", module: str, group: Group, k: int) -> Grid | None:
    spec = group.input_spec
    shift_K = multiplier_K = None
    if group.has_scale_K or group.has_shift_K:
        zeros, ones = np.zeros(k, np.float32), np.ones(k, np.float32)
        scales, shifts = f"{module}.input_scale_K", f"{module}.input_shift_K"
        scale_K = _per_input(weights, scales, _divisors(weights, scales), k) if group.has_scale_K else ones
        shift_K = _padded(_per_input(weights, shifts, weights.floats(shifts), k) if group.has_shift_K else zeros)
        multiplier_K = _padded(np.float32(1.0) / scale_K)
    if spec is None:
        return None if shift_K is None else Grid(NOT_ROUNDED, shift_K=shift_K, multiplier_K=multiplier_K)
    if spec.dynamic:
        return Grid(1 if spec.symmetric else 0, 1.0, 0, spec.code_min, shift_K, multiplier_K)
    name = f"{module}.input_scale"
    scale = float(_only(weights, name, _divisors(weights, name)))
    zero = 0 if spec.symmetric else _zero_point(weights, f"{module}.input_zero_point")
    return Grid(2, scale, zero, spec.code_min, shift_K, multiplier_K)


def _zero_point(weights: "Weights", name: str) -> int:
    values, dtype = weights.raw(name)
    zero, whole = _only(weights, name, values), dtype in ("I8", "U8", "I32", "I64")
    if not whole or not -128 <= zero <= 127:
        found = f"{dtype} {zero}" if whole else dtype
        raise CheckpointError(f"{weights.directory}: {name} is {found}; an integer from -128 to 127 is expected")
    return int(zero)


def _divisors(weights: "Weights", name: str) -> np.ndarray:
    """Positive numbers with finite reciprocals."""
    values = weights.positive(name)
    if (values < np.finfo(np.float32).tiny).any():
        raise CheckpointError(f"{weights.directory}: {name} holds {values.min()}, by which nothing can be divided")
    return values


def _only(weights: "Weights", name: str, values: np.ndarray) -> Any:
    if values.size != 1:
        raise CheckpointError(f"{weights.directory}: {name} has the shape {list(values.shape)}; it must be one number")
    return values.reshape(())[()]


def _per_input(weights: "Weights", name: str, values_K: np.ndarray, k: int) -> np.ndarray:
    if values_K.shape != (k,) or not np.isfinite(values_K).all():
        shape = list(values_K.shape)
        raise CheckpointError(f"{weights.directory}: {name} has the shape {shape}; {k} finite numbers are expected")
    return values_K


def _padded(values_K: np.ndarray) -> np.ndarray:
    return np.pad(values_K, (0, -len(values_K) % 64))
