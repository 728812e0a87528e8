"""The tensors of a model directory as numpy arrays: what programs are built from, without torch.

Files are mapped, not read; values are copied when they are packed. A table of words is not packed: a program reads it
where it is mapped, so that its file may be replaced while the program lives, but not written over.
"""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitwright.checkpoints.quantization_config import QuantizationConfig, parse_quantization_config
from bitwright.engine.linears import Linear, float_linear, quantized_linear
from bitwright.errors import CheckpointError, EngineError
from bitwright.files.directory import CONFIG_FILE, read_object, weight_files
from bitwright.files.safetensors import TensorEntry, check_safetensors

# As stored; bf16 comes as its bits.
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "U8": np.uint8, "I32": np.int32,
           "I64": np.int64, "F64": np.float64}  # fmt: skip


_MOST = 1 << 20  # blocks, heads or positions that a model may have
_HUGE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """A mapped file; its tensors are at `begin` and behind."""

    handle: BinaryIO
    data: np.ndarray
    begin: int


class Weights:
    """What a directory holds, by the names in its files."""

    def __init__(self, directory: Path) -> None:
        """Raises:
        ModelError: there are none. CheckpointError: files that contradict themselves.
        EngineError: weights in files other than safetensors.
        """
        self.directory = directory
        self.config: dict[str, Any] = read_object(directory / CONFIG_FILE)
        self._entries: dict[str, tuple[_File, TensorEntry]] = {}
        for file in weight_files(directory):
            if file.suffix != ".safetensors":
                raise EngineError(f"{file.name} is no safetensors file")
            entries = check_safetensors(file)
            handle = file.open("rb")
            weakref.finalize(self, handle.close)
            data = np.memmap(handle, mode="r")
            opened = _File(handle, data, begin=8 + int.from_bytes(bytes(data[:8]), "little"))
            self._entries |= {name: (opened, entry) for name, entry in entries.items()}
        raw = self.config.get("quantization_config")
        self._quantization: QuantizationConfig | None = None
        if raw is not None:
            where = f"{directory / CONFIG_FILE}: quantization_config"
            self._quantization = parse_quantization_config(raw, where)
        self._group_of = self._quantization.group_finder() if self._quantization else lambda _: None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Names of all tensors."""
        return sorted(self._entries)

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of config.json, from 1 to `_MOST`, or the default where it says nothing.

        Raises:
            CheckpointError: it is none. EngineError: it says nothing, and there is no default.
        """
        value = self.config.get(key, default)
        if key not in self.config and default is None:
            raise EngineError(f"config.json leaves out {key}")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST:
            where = f"{self.directory / CONFIG_FILE}: {key}"
            raise CheckpointError(f"{where} is {short(value)}, not a number from 1 to {_MOST}")
        return value

    def real(self, key: str, default: float) -> float:
        """A positive number of config.json, within float32, or the default where it says nothing.

        Raises:
            CheckpointError: it is none.
        """
        return self.check_real(key, self.config.get(key, default))

    def check_real(self, key: str, value: object) -> float:
        """As `real`, of a value that lies deeper in config.json."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _HUGE:
            raise CheckpointError(f"{self.directory / CONFIG_FILE}: {key} is {short(value)}, not a positive number")
        return float(value)

    def raw(self, name: str) -> tuple[np.ndarray, str]:
        """A tensor as it lies in the file, and its dtype as the format spells it.

        Raises:
            CheckpointError: there is none. EngineError: of a dtype that no program holds.
        """
        if name not in self._entries:
            raise CheckpointError(
                f"{self.directory}: the files hold no {name!r}; the download is incomplete, or config and weights are "
                "of different models"
            )
        file, entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise EngineError(f"{name} is stored as {entry.dtype}")
        data = file.data[file.begin + entry.begin : file.begin + entry.end]
        return np.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape), entry.dtype

    def _alone(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file, in a map of its own: the rest of the file need not stay mapped with it."""
        file, entry = self._entries[name]
        return np.memmap(file.handle, _DTYPES[entry.dtype], "r", file.begin + entry.begin, entry.shape)

    def floats(self, name: str) -> np.ndarray:
        """A float tensor, or the values of an int8 table, in float32."""
        values, dtype = self.raw(name)
        if self._is_table(name):
            codes_VH, scale_V = self.table(name)
            assert scale_V is not None
            values_VH: np.ndarray = codes_VH.astype(np.float32) * scale_V[:, None]
            return values_VH
        if dtype == "BF16":
            return widen(values)
        if dtype not in ("F32", "F16", "F64"):
            raise CheckpointError(f"{self.directory}: {name} is {dtype}, a float tensor is expected")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, as torch has it
            return values.astype(np.float32)

    def positive(self, name: str) -> np.ndarray:
        """A float tensor whose values are finite and positive, in float32."""
        values = self.floats(name)
        wrong = values[~((values > 0) & (values < np.inf))]
        if wrong.size:
            raise CheckpointError(f"{self.directory}: {name} holds {wrong[0]}, which is not finite and positive")
        return values

    def vector(self, name: str, size: int) -> np.ndarray:
        """A float tensor of this many values, in float32."""
        values = self.floats(name)
        if values.shape != (size,):
            raise CheckpointError(f"{self.directory}: {name} has the shape {list(values.shape)}; ({size},) is expected")
        return values

    def rows(self, name: str, width: int) -> np.ndarray:
        """A float tensor of rows this wide, in float32."""
        values = self.floats(name)
        if values.ndim != 2 or values.shape[1] != width or not len(values):
            raise CheckpointError(
                f"{self.directory}: {name} has the shape {list(values.shape)}; rows of {width} values are expected"
            )
        return values

    def table(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """An embedding table (V, H): float32 or the bits of bf16, and None; or int8 with its scale, float32 (V,)."""
        values, dtype = self.raw(name)
        if self._is_table(name):
            scale = self.positive(f"{name}_scale")
            if dtype != "I8" or values.shape[1:-1] != (1,) or not values.size or scale.shape != (len(values), 1):
                raise CheckpointError(
                    f"{self.directory}: {name} is {dtype} {list(values.shape)} with scales {list(scale.shape)}; an "
                    "int8 table has (V, 1, H) codes and (V, 1) scales"
                )
            return self._alone(name)[:, 0], scale[:, 0]
        if values.ndim != 2 or not values.size:
            raise CheckpointError(f"{self.directory}: {name} has the shape {list(values.shape)}; a table has (V, H)")
        return (self._alone(name) if dtype in ("BF16", "F32") else self.floats(name)), None

    def _is_table(self, name: str) -> bool:
        tables = () if self._quantization is None else self._quantization.embeddings
        return name.endswith(".weight") and name.removesuffix(".weight") in tables

    def has_linear(self, module: str) -> bool:
        """Whether there is such a linear, whatever its scheme."""
        return f"{module}.weight" in self or f"{module}.weight_packed" in self

    def linear(self, module: str) -> Linear:
        """Raises:
        CheckpointError: there is none, or its tensors contradict one another.
        """
        if f"{module}.weight_scale" not in self:
            return float_linear(self, module)
        group = self._group_of(module)
        if group is None:
            raise CheckpointError(f"{self.directory}: {module} has scales, but config.json has no scheme for it")
        return quantized_linear(self, module, group)


def short(value: object) -> str:
    """A value of config.json, in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def widen(bits: np.ndarray) -> np.ndarray:
    """bf16, given as its bits, in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bf16, to nearest, half to even, as its bits; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded
