"""Tensors of a model directory by name, read one at a time from safetensors or .bin files.

Safetensors are read by plain file input, not mapped: pages of a mapped file count as the process's memory until the
system wants them back, so that a model twice the size of the memory would seem to fill it.
"""

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitwright.errors import CheckpointError
from bitwright.files.directory import weight_files
from bitwright.files.safetensors import TensorEntry, check_safetensors

# dtype as safetensors spells it -> torch's. In the order in which the format's own writer lays tensors out, last first.
TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip

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


class TensorFiles(Mapping[str, Tensor]):
    """Name -> tensor, loaded when asked for and not kept. Shapes and dtypes are known without loading.

    Files: `model.safetensors`, its shards, or `pytorch_model.bin`, in the order in which transformers prefers them.
    """

    def __init__(self, directory: Path, *, pickles: bool = True) -> None:
        """Open the weights of `directory`.

        Args:
            pickles: whether .bin files are read (by torch's restricted reader, which runs no code) or refused.

        Raises:
            CheckpointError: a file's bytes do not say what they should, two shards hold the same name, or a .bin file
                is not wanted.
            ModelError: there are no weights.
        """
        self.directory = directory
        self._file_of: dict[str, Path] = {}
        self._entries: dict[str, TensorEntry] = {}
        self._buffer_start: dict[Path, int] = {}
        self._pickled: dict[str, Tensor] = {}
        for file in weight_files(directory):
            if file.suffix == ".bin" and not pickles:
                raise CheckpointError(f"{file}: quantized checkpoints are read from safetensors only")
            found = self._open(file)
            twice = found & self._file_of.keys()
            if twice:
                name = min(twice)
                raise CheckpointError(
                    f"{file}: {name} is also in {self._file_of[name].name}; which is meant is unknown"
                )
            self._file_of |= dict.fromkeys(found, file)

    def _open(self, file: Path) -> set[str]:
        if file.suffix == ".safetensors":
            entries = check_safetensors(file)
            self._entries |= entries
            # The tensors fill the file to its end.
            self._buffer_start[file] = file.stat().st_size - max((entry.end for entry in entries.values()), default=0)
            return set(entries)
        try:
            # Files older than torch 1.6 are no zip archives and cannot be mapped.
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except _LOAD_ERRORS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{file}: cannot be read as tensors ({reason})") from None
        if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
            raise CheckpointError(f"{file}: holds a {type(loaded).__name__}, not a mapping of names to tensors")
        self._pickled |= loaded
        return set(loaded)

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
        dtype, count = self.dtype(name), math.prod(shape)
        if name in self._pickled:
            return self._pickled[name].reshape(-1)[start : start + count].view(shape).clone()
        file = self._file_of[name]
        raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        with file.open("rb", buffering=0) as stream:
            stream.seek(self._buffer_start[file] + self._entries[name].begin + start * dtype.itemsize)
            view = raw.numpy().data
            while view:
                if not (n_read := stream.readinto(view)):
                    raise CheckpointError(f"{file}: {name}: ends {len(view)} bytes early; the file has changed")
                view = view[n_read:]
        return raw.view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._pickled[name].shape) if name in self._pickled else self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor.

        Raises:
            CheckpointError: a dtype that torch lacks.
        """
        if name in self._pickled:
            return self._pickled[name].dtype
        spelled = self._entries[name].dtype
        if spelled not in TORCH_DTYPES:
            raise CheckpointError(f"{self._file_of[name]}: {name}: dtype {spelled} cannot be read")
        return TORCH_DTYPES[spelled]
