"""Reads numbers of config.json, constants and linears from a quantized checkpoint. numpy, no torch.

Files are mapped, not read; values are copied when they are packed. A table of words is not packed: a program reads it
where it is mapped, so that its file may be replaced while the program lives, but not written over.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bitwright.checkpoints.checkpoint import Checkpoint, read_bias, read_floats
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.engine.fp8 import Change, Fp8, change_words, in_int8
from bitwright.errors import CheckpointError, EngineError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import FloatLinear, PendingFloat, QuantizedLinear

_MOST = 1 << 20  # blocks, heads or positions that a model may have
_HUGE = float(np.finfo(np.float32).max)


class Weights:
    """A checkpoint, by the names in its files.

    source: its directory, opened. directory: where it lies, for messages. config: config.json. int8_attention: blocks
    whose attention is computed in int8.
    """

    def __init__(self, checkpoint: Checkpoint, fp8: Fp8 = "bf16") -> None:
        self.source: ModelDirectory = checkpoint.directory
        self.directory: Path = checkpoint.directory.transformer.path
        self.config: dict[str, Any] = checkpoint.directory.config
        self.int8_attention: frozenset[int] = checkpoint.int8_attention
        self._checkpoint, self._fp8 = checkpoint, fp8
        self._changes: dict[str, Change] = {}  # of FP8 linears in int8
        self._tensors = checkpoint.tensors
        self._latest: tuple[str, QuantizedLinear] | None = None  # asked for twice, now and then

    @property
    def remarks(self) -> tuple[str, ...]:
        """What runs in another way than the file says, of the linears that were asked for."""
        kept = {name: x for name, x in self._checkpoint.dequantized.items() if name not in self._changes}
        said = self._checkpoint._replace(dequantized=kept).remarks
        return (*said, change_words(list(self._changes.values()))) if self._changes else said

    def drop_pages(self) -> None:
        """Give back the memory of what was read so far, which is packed."""
        self._latest = None
        self._tensors.drop_pages()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

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
            raise CheckpointError(f"{where} is {short(value)}, but must be a number from 1 to {_MOST}")
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
            raise CheckpointError(
                f"{self.directory / CONFIG_FILE}: {key} is {short(value)}, but must be a positive number"
            )
        return float(value)

    def floats(self, name: str) -> np.ndarray:
        """A float tensor, or the values of an int8 table, in float32.

        Raises:
            CheckpointError: there is none.
        """
        if (pending := self._dequantized(name)) is not None:
            made = pending.load()
            wide: np.ndarray = made.widen() if isinstance(made, Bf16) else made
            return wide
        if self._is_table(name):
            codes_VH, scale_V = self._checkpoint.table(name.removesuffix(".weight"))
            values_VH: np.ndarray = codes_VH.astype(np.float32) * scale_V[:, None]
            return values_VH
        if name in self._tensors and (dtype := self._tensors.dtype(name)).startswith("F8"):
            raise EngineError(f"{name} is stored as {dtype}")
        return read_floats(self._checkpoint.directory, name)

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
        if self._is_table(name):
            return self._checkpoint.table(name.removesuffix(".weight"))
        if (pending := self._dequantized(name)) is not None:
            made = pending.load()
            return made.bits if isinstance(made, Bf16) else made, None
        if name in self._tensors and self._tensors.dtype(name) in ("BF16", "F32"):
            stored = self._tensors.alone(name)
            values = stored.bits if isinstance(stored, Bf16) else stored
        else:
            values = self.floats(name)
        if values.ndim != 2 or not values.size:
            raise CheckpointError(
                f"{self.directory}: {name} has the shape {list(values.shape)}, but a table has (V, H)"
            )
        return values, None

    def _is_table(self, name: str) -> bool:
        return name.endswith(".weight") and name.removesuffix(".weight") in self._checkpoint.tables

    def _dequantized(self, name: str) -> PendingFloat | None:
        return self._checkpoint.dequantized.get(name.removesuffix(".weight")) if name.endswith(".weight") else None

    def has_linear(self, module: str) -> bool:
        """Whether there is such a linear, whatever its scheme."""
        found = self._checkpoint
        return f"{module}.weight" in self or module in found.linears or module in found.dequantized

    def linear(self, module: str) -> QuantizedLinear | FloatLinear:
        """Raises:
        CheckpointError: there is none, or its tensors contradict one another.
        """
        if self._latest is not None and self._latest[0] == module:
            return self._latest[1]
        codes = self._checkpoint.linears.get(module) or self._checkpoint.coded_tables.get(module)
        if codes is not None:
            self._latest = module, codes.load()
            return self._latest[1]
        name = f"{module}.weight"
        if (pending := self._dequantized(name)) is not None:
            linear = FloatLinear(pending.load(), read_bias(self._checkpoint.directory, module, pending.shape[0]))
            return self._rounded(module, linear) if pending.fp8 and self._fp8 == "int8" else linear
        half = name in self._tensors and self._tensors.dtype(name) == "BF16"
        weight_NK = self._tensors[name] if half else self.floats(name)
        if weight_NK.ndim != 2 or not weight_NK.size:
            shape = list(weight_NK.shape)
            raise CheckpointError(f"{self.directory}: {module}.weight has the shape {shape}, but a linear has (N, K)")
        return FloatLinear(weight_NK, read_bias(self._checkpoint.directory, module, weight_NK.shape[0]))

    def _rounded(self, module: str, linear: FloatLinear) -> QuantizedLinear | FloatLinear:
        """In int8, if its groups allow it."""
        if (made := in_int8(linear)) is None:
            return linear
        rounded, self._changes[module] = made
        self._latest = module, rounded
        return rounded


def open_weights(directory: ModelDirectory, *, float_attention: bool = False, fp8: Fp8 = "bf16") -> Weights:
    """The weights of a quantized checkpoint, or of a float model, of which nothing is quantized.

    float_attention: compute attention in float, whatever the checkpoint says. fp8: how FP8 linears are held.

    Raises:
        ModelError: no config.json, or no weights. CheckpointError: as `read_checkpoint`.
    """
    directory.check_counts()
    if directory.is_quantized:
        checkpoint = read_checkpoint(directory)
        return Weights(checkpoint._replace(int8_attention=frozenset()) if float_attention else checkpoint, fp8)
    return Weights(Checkpoint(directory, {}, (), frozenset(directory.tensors)))


def short(value: object) -> str:
    """A value of config.json, in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
