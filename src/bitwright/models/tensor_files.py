"""Tensors of a model directory by name, in torch, read one at a time from safetensors or .bin files.

Safetensors are read by plain file input, not through their map: pages that were read there count as the process's
memory until the system wants them back, so that a model twice the size of the memory would seem to fill it. Tables of
which a forward looks up a few rows are the exception.
"""

import math
import mmap
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitwright.errors import CheckpointError
from bitwright.files.directory import ModelDirectory
from bitwright.files.names import renamed
from bitwright.files.safetensors import DTYPES
from bitwright.files.tensors import MappedTensors
from bitwright.numerics.arrays import as_torch
from bitwright.numerics.linear import PendingFloat

TORCH_DTYPES = {spelled: getattr(torch, name) for spelled, name in DTYPES.items()}

# What torch's restricted reader raises on bytes that are none of its own.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
)

_PIECE = 1 << 21  # values


class TensorFiles(Mapping[str, Tensor]):
    """Name -> tensor, loaded when asked for and not kept. Shapes and dtypes are known without loading.

    Files: `model.safetensors`, its shards, or `pytorch_model.bin`, in the order in which transformers prefers them. A
    .bin file is read by torch's restricted reader, which builds tensors and runs no code.
    """

    def __init__(self, directory: ModelDirectory, made: Mapping[str, PendingFloat] | None = None) -> None:
        """Open the weights of `directory`. made: tensors that codes in the files become, by name; they hide what the
        files call so.

        Raises:
            CheckpointError: a file's bytes do not say what they should, or two shards hold the same name.
            ModelError: there are no weights.
        """
        self.path = directory.path
        self._made = dict(made or {})
        self._pickled: dict[str, tuple[Path, Tensor]] = {}
        files = directory.weight_files
        if all(file.suffix != ".bin" for file in files):
            self._mapped = directory.tensors
            return
        self._mapped = MappedTensors([file for file in files if file.suffix == ".safetensors"])
        for file in files:
            loaded = renamed(_unpickled(file), file) if file.suffix == ".bin" else {}
            if twice := loaded.keys() & {*self._pickled, *self._mapped}:
                name = min(twice)
                raise CheckpointError(
                    f"{file}: {name} is also in {self.file(name).name}, so it is not clear which one is right; "
                    "remove one"
                )
            self._pickled |= {name: (file, tensor) for name, tensor in loaded.items()}

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor, contiguous, the caller's own.

        Raises:
            KeyError: no such name.
            CheckpointError: a dtype that torch lacks, or a file that has changed since it was opened.
        """
        return self.values_at(name, 0, self.shape(name))

    def values_at(self, name: str, start: int, shape: tuple[int, ...]) -> Tensor:
        """Consecutive values of a tensor, from its flat position `start` on, in the given shape; only they are read.

        Raises:
            As `tensors[name]`.
        """
        if name in self._made:
            values: Tensor = as_torch(self._made[name].load()).reshape(-1)
            return values[start : start + math.prod(shape)].view(shape)
        if name in self._pickled:
            count = math.prod(shape)
            return self._pickled[name][1].reshape(-1)[start : start + count].view(shape).clone()
        return read_values(self._mapped, name, start, shape)

    def pieces(self, name: str, start: int, count: int) -> Iterator[Tensor]:
        """`count` consecutive values of a tensor, from its flat position `start` on, 8 MiB or so at a time.

        Raises:
            As `tensors[name]`.
        """
        if name in self._made:  # which is made whole, and once
            yield from self.values_at(name, start, (count,)).split(_PIECE)  # type: ignore[no-untyped-call]
            return
        for begin in range(start, start + count, _PIECE):
            yield self.values_at(name, begin, (min(_PIECE, start + count - begin),))

    def looked_up(self, name: str, check: Callable[[Tensor], None]) -> Tensor | None:
        """The whole tensor, of which only what is looked at comes into memory; None where a file cannot give it so: no
        safetensors file, or values that do not lie as processors want them. check: is given the tensor once.

        Raises:
            As `check`.
        """
        if name in self._made or name in self._pickled or not math.prod(self.shape(name)):
            return None
        raw = self._mapped.copied_on_write(name)
        dtype = _dtype(self._mapped, name)
        if raw.ctypes.data % dtype.itemsize:
            return None
        tensor = torch.from_numpy(raw).view(dtype).reshape(self.shape(name))
        check(tensor)
        raw._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        return tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._mapped
        yield from self._pickled
        yield from (name for name in self._made if name not in self._mapped)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._mapped or name in self._pickled or name in self._made

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        if name in self._made and name not in self._mapped:
            return self.path
        return self._pickled[name][0] if name in self._pickled else self._mapped.file(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        if name in self._made:
            return self._made[name].shape
        return tuple(self._pickled[name][1].shape) if name in self._pickled else self._mapped.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor.

        Raises:
            CheckpointError: a dtype that torch lacks.
        """
        if name in self._made:
            made: torch.dtype = getattr(torch, self._made[name].dtype)
            return made
        if name in self._pickled:
            return self._pickled[name][1].dtype
        return _dtype(self._mapped, name)


def read_pickled(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a small .bin file, in float32.

    Raises:
        CheckpointError: it holds something other than tensors by name.
    """
    return {name: tensor.float().numpy() for name, tensor in _unpickled(file).items()}


def read_values(files: MappedTensors, name: str, start: int, shape: tuple[int, ...]) -> Tensor:
    """Consecutive values of a tensor of open files, in memory of their own: `TensorFiles.values_at`."""
    dtype = _dtype(files, name)
    raw = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
    files.read_into(name, start * dtype.itemsize, raw.numpy().data)
    return raw.view(dtype).reshape(shape)


def _dtype(files: MappedTensors, name: str) -> torch.dtype:
    spelled = files.dtype(name)
    if spelled not in TORCH_DTYPES:
        raise CheckpointError(f"{files.file(name)}: {name}: Bitwright cannot read the dtype {spelled}")
    found: torch.dtype = TORCH_DTYPES[spelled]
    return found


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        # Files older than torch 1.6 are no zip archives and cannot be mapped.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except _LOAD_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file}: this is not a plain file of tensors, and Bitwright unpickles nothing else ({reason[:200]}). "
            "Convert the model to safetensors"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise CheckpointError(
            f"{file}: this file holds a {type(loaded).__name__}, not tensors by name; convert the model to safetensors"
        )
    return loaded
