"""The tensors of safetensors files as numpy arrays. It opens, checks and maps each file once.

What is mapped is not read before it is looked at. Its pages count as the process's memory then, until the system wants
them back; so whoever goes through a whole model reads copies (`read_into`), by plain file input from the same handle.
"""

import mmap
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from bitwright.errors import CheckpointError
from bitwright.files.names import renamed
from bitwright.files.safetensors import DTYPE_BITS, DTYPES, TensorEntry, read_header
from bitwright.numerics.arrays import Bf16

# What numpy holds: bf16 as its bits, under a name (`Bf16`); no float8.
_NUMPY = {
    spelled: np.dtype("uint16" if spelled == "BF16" else name)
    for spelled, name in DTYPES.items()
    if "F8" not in spelled
}


class MappedFile(NamedTuple):
    """An open file that is mapped as a whole; its tensors' bytes count from `begin`."""

    path: Path
    handle: BinaryIO
    pages: mmap.mmap
    data: np.ndarray
    begin: int


class MappedTensors(Mapping[str, np.ndarray | Bf16]):
    """Name -> tensor, a view of the mapped file. dtypes, as safetensors spells them, and shapes are known before. Names
    are those of today (`names.renamed`).
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Open and check the files.

        Raises:
            CheckpointError: a file's bytes do not say what they should, or two files hold the same name.
        """
        self._entries: dict[str, tuple[MappedFile, TensorEntry]] = {}
        for path in files:
            file, stored = self._open(path)
            entries = renamed(stored, path)
            if twice := entries.keys() & self._entries.keys():
                name = min(twice)
                raise CheckpointError(
                    f"{path}: {name} is also in {self.file(name).name}, so it is not clear which one is right; "
                    "remove one"
                )
            self._entries |= {name: (file, entry) for name, entry in entries.items()}

    def _open(self, path: Path) -> tuple[MappedFile, dict[str, TensorEntry]]:
        try:
            handle = path.open("rb")
            weakref.finalize(self, handle.close)
            entries, begin = read_header(handle, path)
            pages = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            return MappedFile(path, handle, pages, np.frombuffer(pages, np.uint8), begin), entries
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None

    def __getitem__(self, name: str) -> np.ndarray | Bf16:
        """A read-only view of the tensor.

        Raises:
            KeyError: no such name. CheckpointError: a dtype that numpy lacks.
        """
        file, entry = self._entries[name]
        data = file.data[file.begin + entry.begin : file.begin + entry.end]
        values = np.frombuffer(data, self._dtype(name)).reshape(entry.shape)
        return Bf16(values) if entry.dtype == "BF16" else values

    def as_bytes(self, name: str) -> np.ndarray:
        """A read-only view of a tensor whose values are bytes, whatever they stand for: uint8, of its shape.

        Raises:
            KeyError: no such name. CheckpointError: values that are not bytes.
        """
        file, entry = self._entries[name]
        if DTYPE_BITS[entry.dtype] != 8:
            raise CheckpointError(f"{file.path}: {name} is {entry.dtype}, but its values must be bytes")
        return file.data[file.begin + entry.begin : file.begin + entry.end].reshape(entry.shape)

    def alone(self, name: str) -> np.ndarray | Bf16:
        """As `tensors[name]`, but mapped alone, so that the rest of the file need not stay mapped."""
        file, entry = self._entries[name]
        values = np.memmap(file.handle, self._dtype(name), "r", file.begin + entry.begin, entry.shape)
        return Bf16(values) if entry.dtype == "BF16" else values

    def copied_on_write(self, name: str) -> np.memmap:
        """The bytes of a tensor, mapped alone: what is written there is the process's own and not the file's. For large
        tensors of which a few rows are looked at. uint8, one-dimensional.

        Raises:
            KeyError: no such name.
        """
        file, entry = self._entries[name]
        return np.memmap(file.handle, np.uint8, "c", file.begin + entry.begin, (entry.end - entry.begin,))

    def drop_pages(self) -> None:
        """Let the system take back the memory of what was looked at. Views stay as they are: they are read again."""
        for file in {file.path: file for file, _ in self._entries.values()}.values():
            file.pages.madvise(mmap.MADV_DONTNEED)

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a tensor from `begin` on.

        Raises:
            CheckpointError: the file ends early: it has changed since it was opened.
        """
        file, entry = self._entries[name]
        place = file.begin + entry.begin + begin
        while buffer:
            if not (count := os.preadv(file.handle.fileno(), [buffer], place)):
                raise CheckpointError(
                    f"{file.path}: {name}: the file ends {len(buffer)} bytes too early; it has changed since it was "
                    "opened"
                )
            buffer, place = buffer[count:], place + count

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entries[name][0].path

    def n_bytes(self, name: str) -> int:
        """The bytes of a tensor in its file."""
        entry = self._entries[name][1]
        return entry.end - entry.begin

    def dtype(self, name: str) -> str:
        """The dtype of a tensor, as safetensors spells it."""
        return self._entries[name][1].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entries[name][1].shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return {name: entry.shape for name, (_, entry) in self._entries.items()}

    def _dtype(self, name: str) -> np.dtype:
        spelled = self.dtype(name)
        if spelled not in _NUMPY:
            raise CheckpointError(f"{self.file(name)}: {name}: Bitwright cannot read the dtype {spelled}")
        return _NUMPY[spelled]
