"""`Checkpoint`: what every reader makes of a quantized checkpoint, and what readers share. numpy, no torch."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bitwright.checkpoints.module_patterns import matcher
from bitwright.errors import CheckpointError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.files.tensors import MappedTensors
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import PendingFloat, PendingLinear

T = TypeVar("T")
_FLOATS = ("F32", "F16", "F64", "BF16")


class Checkpoint(NamedTuple):
    """A quantized checkpoint, by names on disk.

    linears: the quantized ones, their values not loaded. tables: int8 embedding tables. others: names of every other
    tensor. int8_attention: blocks whose attention the engine computes in int8. dequantized: linears and embedding
    tables whose codes are read as floats. notes: what the file asks for and nothing here does, a sentence each.
    format: the row of `FORMATS`. coded_tables: the codes of dequantized tables, as linears: a head that is tied to a
    table multiplies them.
    """

    directory: ModelDirectory
    linears: Mapping[str, PendingLinear]
    tables: tuple[str, ...]
    others: frozenset[str]
    int8_attention: frozenset[int] = frozenset()
    dequantized: Mapping[str, PendingFloat] = {}
    notes: tuple[str, ...] = ()
    format: str = ""
    coded_tables: Mapping[str, PendingLinear] = {}

    @property
    def tensors(self) -> MappedTensors:
        """All tensors of the files."""
        return self.directory.tensors

    @property
    def remarks(self) -> tuple[str, ...]:
        """What runs in another way than the file says: `notes`, and what is dequantized."""
        counts = Counter(pending.stored for pending in self.dequantized.values())
        return (*(f"{count} × {stored} run as floats" for stored, count in sorted(counts.items())), *self.notes)

    def table(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 (V, H), in a map of their own, which nothing has read yet, and scales float32 (V,) of one of
        `tables`.

        Raises:
            CheckpointError: its tensors contradict one another, or a scale is not finite and positive.
        """
        where = f"{self.directory.path}: {module}"
        codes, scale = self._codes(f"{module}.weight"), read_floats(self.directory, f"{module}.weight_scale")
        if codes.ndim != 3 or codes.shape[1] != 1 or not codes.size or scale.shape != (len(codes), 1):
            raise CheckpointError(
                f"{where}: weight {list(codes.shape)} with weight_scale {list(scale.shape)}; an int8 table has "
                "(V, 1, H) codes and (V, 1) scales"
            )
        if not ((scale > 0) & (scale < np.inf)).all():
            raise CheckpointError(f"{where}: weight_scale: every scale must be finite and positive")
        return codes[:, 0], scale[:, 0]

    def _codes(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory.path}: {name} is missing, but the table is quantized")
        if self.tensors.dtype(name) != "I8":
            raise CheckpointError(f"{self.directory.path}: {name} is {self.tensors.dtype(name)}, but must be I8")
        codes = self.tensors.alone(name)
        assert isinstance(codes, np.ndarray)
        return codes


class Module:
    """The tensors `<name>.<suffix>` of one quantized module. Headers are checked before values are read."""

    def __init__(self, directory: ModelDirectory, name: str) -> None:
        self.directory, self.name = directory, name

    def __contains__(self, suffix: object) -> bool:
        return f"{self.name}.{suffix}" in self.directory.tensors

    def fault(self, suffix: str, problem: str) -> CheckpointError:
        """What is wrong with a tensor, with its file and its name."""
        name = f"{self.name}.{suffix}"
        tensors = self.directory.tensors
        return CheckpointError(f"{tensors.file(name) if name in tensors else self.directory.path}: {name} {problem}")

    def dtype(self, suffix: str) -> str:
        """The dtype of a tensor as safetensors spells it, "" of one that is missing."""
        name = f"{self.name}.{suffix}"
        return self.directory.tensors.dtype(name) if suffix in self else ""

    def shape(self, suffix: str, dtypes: tuple[str, ...], ndim: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor that must be there.

        Raises:
            CheckpointError: it is not, has another dtype, another number of axes, or no values.
        """
        name, tensors = f"{self.name}.{suffix}", self.directory.tensors
        if name not in tensors:
            raise self.fault(suffix, "is missing")
        dtype, shape = tensors.dtype(name), tensors.shape(name)
        if dtype not in dtypes:
            raise self.fault(suffix, f"is {dtype}, but must be {' or '.join(dtypes)}")
        if 0 in shape or (ndim is not None and len(shape) != ndim):
            raise self.fault(suffix, f"has the shape {list(shape)}, but must have {ndim or 'some'} axes, none empty")
        return shape

    def expect(self, suffix: str, dtypes: tuple[str, ...], shape: tuple[int, ...], why: str) -> None:
        """Raises:
        CheckpointError: the tensor is missing, or has another dtype or shape.
        """
        found = self.shape(suffix, dtypes)
        if found != shape:
            raise self.fault(suffix, f"has the shape {list(found)}, but {list(shape)} is expected of {why}")

    def ints(self, suffix: str) -> np.ndarray:
        """A tensor of whole numbers, or of bytes, as it is stored."""
        values = self.directory.tensors[f"{self.name}.{suffix}"]
        assert isinstance(values, np.ndarray)
        return values

    def bytes(self, suffix: str) -> np.ndarray:
        """A tensor of bytes, or of floats of 8 bits, as uint8."""
        return self.directory.tensors.as_bytes(f"{self.name}.{suffix}")

    def floats(self, suffix: str) -> np.ndarray:
        """A float tensor, in float32.

        Raises:
            CheckpointError: it is missing, no float tensor, or a value is NaN or infinite.
        """
        values = read_floats(self.directory, f"{self.name}.{suffix}")
        if not np.isfinite(values).all():
            raise self.fault(suffix, "holds NaN or infinity")
        return values

    def loads(self, load: Callable[..., T], *args: Any) -> Callable[[], T]:
        """`load(*args)`, whose NumericsError names this module."""
        return partial(self._load, load, *args)

    def _load(self, load: Callable[..., T], *args: Any) -> T:
        try:
            return load(*args)
        except NumericsError as error:
            raise CheckpointError(f"{self.directory.path}: {self.name}: {error}") from None


# What opening one module of another tool's gives.
Opened = PendingLinear | PendingFloat


def assemble(
    directory: ModelDirectory,
    opened: Mapping[str, Opened],
    suffixes: tuple[str, ...],
    *,
    notes: tuple[str, ...] = (),
    ignored: frozenset[str] = frozenset(),
) -> Checkpoint:
    """The checkpoint of these modules; suffixes: of the tensors that they have. ignored: names that nothing reads.

    Raises:
        CheckpointError: a tensor that belongs to no module, and that only a quantized one has.
    """
    tensors = directory.tensors
    taken = {f"{module}.{suffix}" for module in opened for suffix in suffixes} & tensors.keys() | ignored
    for name in sorted(tensors.keys() - taken):
        module, _, suffix = name.rpartition(".")
        if suffix in _QUANTIZED or (module in opened and suffix in ("weight", "weight_packed")):
            raise CheckpointError(
                f"{tensors.file(name)}: {name} is unexpected: no quantized linear of this format has it there"
            )
        if tensors.dtype(name) not in _PLAIN:
            raise CheckpointError(
                f"{tensors.file(name)}: {name} is {tensors.dtype(name)}, but belongs to no quantized linear"
            )
    linears = {name: pending for name, pending in opened.items() if isinstance(pending, PendingLinear)}
    floats = {name: pending for name, pending in opened.items() if isinstance(pending, PendingFloat)}
    others = frozenset(tensors.keys() - taken)
    return Checkpoint(directory, linears, (), others, dequantized=floats, notes=notes)


# Ends of names that only quantized linears have, of any format.
_QUANTIZED = frozenset({
    "qweight", "qzeros", "scales", "g_idx", "biases", "weight_packed", "weight_scale", "weight_scale_2",
    "weight_scale_inv", "weight_zero_point", "weight_g_idx", "weight_global_scale", "weight_shape", "input_scale",
    "input_zero_point", "input_global_scale", "pre_quant_scale", "output_scale",
})  # fmt: skip
# dtypes of what is no code: floats, positions, masks.
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"})


def refuse_excluded(modules: Iterable[str], excluded: Callable[[str], object], where: str) -> None:
    """Raises:
    CheckpointError: the files hold codes of a module that is excluded: its tool's own reader would take none of them.
    """
    for module in modules:
        if excluded(module):
            raise CheckpointError(f"{where} leaves {module} in floats, but the files hold codes of it")


def modules_with(directory: ModelDirectory, *suffixes: str) -> list[str]:
    """Modules that have a tensor of one of these suffixes, sorted.

    Raises:
        CheckpointError: there is none.
    """
    found = {
        name.removesuffix(f".{suffix}")
        for name in directory.tensors
        for suffix in suffixes
        if name.endswith(f".{suffix}")
    }
    if not found:
        raise CheckpointError(f"{directory.path}: no tensor ends in {' or '.join(suffixes)}, so nothing is quantized")
    return sorted(found)


def read_bias(directory: ModelDirectory, module: str, n: int) -> np.ndarray | None:
    """The bias of a linear, float32 (n,), or None.

    Raises:
        CheckpointError: another shape, or no floats.
    """
    name = f"{module}.bias"
    if name not in directory.tensors:
        return None
    bias = read_floats(directory, name)
    if bias.shape != (n,):
        raise CheckpointError(f"{directory.path}: {name} has the shape {list(bias.shape)}, but ({n},) is expected")
    return bias


def read_floats(directory: ModelDirectory, name: str) -> np.ndarray:
    """A float tensor of any precision, in float32. What float32 cannot hold becomes infinite, as torch has it.

    Raises:
        CheckpointError: there is none, or it is no float tensor.
    """
    tensors = directory.tensors
    if name not in tensors:
        raise CheckpointError(
            f"{directory.path}: the files hold no {name!r}. The download is incomplete, or config and weights are "
            "of different models"
        )
    if tensors.dtype(name) not in _FLOATS:
        raise CheckpointError(f"{directory.path}: {name} is {tensors.dtype(name)}, but must be a float tensor")
    values = tensors[name]
    if isinstance(values, Bf16):
        widened: np.ndarray = values.widen()
        return widened
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def whole(said: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A whole number of a quantization config.

    Raises:
        CheckpointError: it is missing, or none.
    """
    value = said.get(key, default)
    if type(value) is not int:
        raise CheckpointError(f"{where}: {key} = {value!r:.80}, but it must be a whole number")
    return value


def flag(said: Mapping[str, Any], key: str, where: str, default: bool) -> bool:
    """As `whole`, of true or false."""
    value = said.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {key} = {value!r:.80}, but it must be true or false")
    return value


def own_settings(patterns: Mapping[str, T], where: str, *, anywhere: bool = False) -> Callable[[str], T | None]:
    """A function from a module to the settings of the first pattern that matches its name, as `matcher` says.

    Raises:
        CheckpointError: no pattern, or one that could take for ever.
    """
    try:
        return matcher(((f"re:{pattern}", own) for pattern, own in patterns.items()), anywhere=anywhere)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def groups_of(k: int, size: int, where: str) -> tuple[int, int]:
    """(values that share a scale, groups of a row) of K inputs; size -1 is a whole row.

    Raises:
        CheckpointError: no size that a group can have.
    """
    size = k if size == -1 else size
    if size < 1:
        raise CheckpointError(f"{where}: group_size = {size}, but it must be -1 or at least 1")
    size = min(size, k)
    return size, -(-k // size)
