"""`GgufDirectory`: a GGUF file as the directory that transformers would have: config.json, tokenizer.json and so on are
made of its metadata when they are asked for, and tensors are mapped, or decoded one by one.
"""

import json
import mmap
import weakref
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitwright.errors import CheckpointError, ModelError
from bitwright.families.tasks import TaskName
from bitwright.files.directory import CONFIG_FILE, ModelDirectory, absolute
from bitwright.files.folder import Folder, read_object
from bitwright.files.gguf.config import config_of, generation_config_of
from bitwright.files.gguf.header import GgufEntry, GgufHeader, read_gguf_header
from bitwright.files.gguf.names import NAMINGS, Naming, rows_in_transformers
from bitwright.files.gguf.tokenizer import tokenizer_of, tokenizer_settings
from bitwright.files.safetensors import TensorEntry
from bitwright.files.tensors import MappedFile, MappedTensors
from bitwright.numerics.arrays import Bf16, narrow
from bitwright.numerics.ggml import BlockType, held
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

TOKENIZER_FILE = "tokenizer.json"
# Entry of our own files: whether no scale of a Q4_0 tensor is negative, so that its codes are a symmetric grid.
POSITIVE_KEY = "bitwright.positive_scales"
_FACTORS = "rope_freqs.weight"  # of the angles; config.json has what they are made of
_AT_ONCE = 1 << 20  # values that are decoded at once: they stay in cache


class GgufTensors(MappedTensors):
    """The tensors of a GGUF file by their names in transformers. Those of quantized types are decoded to bf16 when they
    are asked for; `quantized` gives them as they are.
    """

    def __init__(self, path: Path, header: GgufHeader) -> None:  # not as MappedTensors, whose files have another one
        """Raises:
        CheckpointError: a tensor that the architecture does not have, or a file that is not what its header says.
        """
        self.header = header
        handle, pages = _mapped(path)
        weakref.finalize(self, handle.close)
        if any(entry.end > len(pages) for entry in header.tensors.values()):
            raise CheckpointError(f"{path}: the file has become shorter since it was opened")
        file = MappedFile(path, handle, pages, np.frombuffer(pages, np.uint8), 0)
        metadata = self.header.metadata
        arch = metadata.text("general.architecture")
        self._naming = NAMINGS.get(arch, Naming({}))
        self._stored: dict[str, GgufEntry] = {}
        self._entries = {}
        self._made: dict[str, Callable[[], np.ndarray | Bf16]] = {}
        self._heads = {
            "q": metadata.number(f"{arch}.attention.head_count", 1),
            "k": metadata.number(f"{arch}.attention.head_count_kv", metadata.number(f"{arch}.attention.head_count", 1)),
        }
        for stored, entry in self.header.tensors.items():
            name = self._naming.to_transformers(stored)
            if name is None and stored != _FACTORS:
                raise CheckpointError(f"{path}: {stored}: the architecture {arch!r:.80} has no such tensor")
            if name is not None:
                self._add(name, stored, entry, file)

    def _add(self, name: str, stored: str, entry: GgufEntry, file: MappedFile) -> None:
        role = self._naming.swapped(name)
        if role and (not self._heads[role] or entry.shape[0] % (2 * self._heads[role])):
            raise CheckpointError(
                f"{file.path}: {stored}: {entry.shape[0]} rows are not pairs of {self._heads[role]} heads"
            )
        if entry.type.spec is not None and len(entry.shape) != 2:
            raise CheckpointError(
                f"{file.path}: {stored} is {entry.type.name} with {len(entry.shape)} dimensions, not 2"
            )
        if entry.type.spec is not None:
            self._made[name] = partial(self._decoded, name)
        elif role or self._naming.sums(name):
            self._made[name] = partial(self._changed, name)
        dtype = "F32" if self._naming.sums(name) else "BF16" if entry.type.spec else entry.type.name
        self._stored[name] = entry
        self._entries[name] = (file, TensorEntry(dtype, entry.shape, entry.begin, entry.end))

    @property
    def quantized(self) -> dict[str, GgufEntry]:
        """Those of quantized types."""
        return {name: entry for name, entry in self._stored.items() if entry.type.spec is not None}

    def type(self, name: str) -> BlockType:
        """The type of a tensor in the file."""
        return self._stored[name].type

    def stored_name(self, name: str) -> str:
        """What the file calls a tensor."""
        return self._naming.to_gguf(name) or name

    def spec(self, name: str) -> QuantSpec | None:
        """The spec of a tensor that `held` gives; None of floats."""
        kind = self._stored[name].type
        positive = kind.name == "Q4_0" and self.header.metadata.flag(POSITIVE_KEY, False)
        return QuantSpec(4, group_size=32) if positive else kind.spec

    def held(self, name: str, rows: slice = slice(None)) -> QTensor:
        """A tensor of quantized type, or some of its rows.

        Raises:
            NumericsError: as `ggml.held`.
        """
        return held(self._stored[name].type, self._rows(name)[rows], self.spec(name))

    def __getitem__(self, name: str) -> np.ndarray | Bf16:
        """The tensor: a read-only view, or an array of its own."""
        return self._made[name]() if name in self._made else super().__getitem__(name)

    def alone(self, name: str) -> np.ndarray | Bf16:
        """As `MappedTensors.alone`."""
        return self._made[name]() if name in self._made else super().alone(name)

    def read_into(self, name: str, begin: int, buffer: memoryview) -> None:
        """As `MappedTensors.read_into`."""
        if name not in self._made:
            super().read_into(name, begin, buffer)
            return
        made = self._made[name]()
        values = made.bits if isinstance(made, Bf16) else made
        np.frombuffer(buffer, np.uint8)[:] = values.reshape(-1).view(np.uint8)[begin : begin + len(buffer)]

    def _rows(self, name: str) -> np.ndarray:
        """The bytes of a tensor, uint8 (N, bytes of a row), its rows in transformers' order."""
        entry, (file, _) = self._stored[name], self._entries[name]
        raw_NB = file.data[entry.begin : entry.end].reshape(entry.shape[0], -1)
        role = self._naming.swapped(name)
        return raw_NB if role is None else raw_NB[rows_in_transformers(len(raw_NB), self._heads[role])]

    def _decoded(self, name: str) -> Bf16:
        n, k = self._stored[name].shape
        bits_NK = np.empty((n, k), np.uint16)
        at_once = max(1, _AT_ONCE // k)
        for begin in range(0, n, at_once):
            rows = slice(begin, begin + at_once)
            bits_NK[rows] = narrow(self.held(name, rows).dequantize()).bits
        return Bf16(bits_NK)

    def _changed(self, name: str) -> np.ndarray | Bf16:
        """A float tensor whose rows are in another order, or that holds one more than the weight."""
        spelled, shape = self._stored[name].type.name, self._stored[name].shape
        dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[spelled]
        stored = np.ascontiguousarray(self._rows(name)).view(dtype).reshape(shape)
        values: np.ndarray | Bf16 = Bf16(stored) if spelled == "BF16" else stored
        if not self._naming.sums(name):
            return values
        widened = values.widen() if isinstance(values, Bf16) else values.astype(np.float32)
        less: np.ndarray = widened - np.float32(1)
        return less


class _Made(Folder):
    """The files that a model directory would have; there are none of all that a GGUF file does not say."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        super().__init__(path)
        self.made: dict[str, Callable[[], Any]] = {
            CONFIG_FILE: partial(_config, path, header),
            "generation_config.json": partial(generation_config_of, header.metadata),
            TOKENIZER_FILE: partial(_tokenizer, path, header),
            "tokenizer_config.json": partial(tokenizer_settings, header.metadata),
        }

    def json(self, name: str, said_by: str = "") -> Any:
        """As of a folder."""
        if name not in self._parsed:
            self._parsed[name] = self.made[name]() if name in self.made else None
        return self._parsed[name]


class GgufDirectory(ModelDirectory):
    """A GGUF file, opened as a model directory. path: the file."""

    def __init__(self, path: Path, task: TaskName | None = None) -> None:
        """Raises:
        ModelError: no such file. CheckpointError: as `read_gguf_header`.
        """
        if not path.is_file():
            raise ModelError(f"{path}: there is no such file")
        self.path, self.task = absolute(path), task
        handle, pages = _mapped(self.path)
        with handle, pages, memoryview(pages) as data:
            self._header = read_gguf_header(data, self.path)
        self.package: _Made = _Made(self.path, self._header)

    def __repr__(self) -> str:
        return f"GgufDirectory({str(self.path)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """config.json, as the metadata says it.

        Raises:
            CheckpointError: as `config_of`.
        """
        return self.package.object(CONFIG_FILE) or {}

    @property
    def license(self) -> str | None:
        """As the metadata says."""
        said = self._header.metadata.text("general.license", "").strip()
        return said if said.isprintable() and said else None

    def made(self, name: str) -> str | None:
        """The text of a file that is none on disk."""
        content = self.package.json(name)
        return None if content is None else json.dumps(content)

    @property
    def made_files(self) -> dict[str, str]:
        """As the class above says."""
        found = {name: self.made(name) for name in self.package.made if name != CONFIG_FILE}
        return {name: text for name, text in found.items() if text is not None}

    @property
    def weight_files(self) -> list[Path]:
        """The file."""
        return [self.path]

    @cached_property
    def tensors(self) -> GgufTensors:
        """The weights.

        Raises:
            CheckpointError: as `GgufTensors`.
        """
        return GgufTensors(self.path, self._header)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return dict(self.tensors.shapes)

    def check_float(self) -> None:
        """Raises:
        ModelError: always: it holds codes. `floats.write_floats` gives the model that they stand for.
        """
        raise ModelError(
            f"{self.path}: this is a GGUF file, which holds codes, and a float model is needed here; give the "
            "directory of the model that it was made from"
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the file's name, size and bytes."""
        from hashlib import sha256

        digest = sha256(f"{self.path.name}\0{self.path.stat().st_size}\0".encode())
        for chunk in self._chunks(self.path):
            digest.update(chunk)
        return digest.hexdigest()


def _config(path: Path, header: GgufHeader) -> dict[str, Any]:
    factors = None
    if _FACTORS in header.tensors:
        entry = header.tensors[_FACTORS]
        if entry.type.name != "F32":
            raise CheckpointError(f"{path}: {_FACTORS} is {entry.type.name}, but must be F32")
        with path.open("rb") as file:
            file.seek(entry.begin)
            factors = np.frombuffer(file.read(entry.end - entry.begin), "<f4")
    return config_of(header.metadata, header.tensors, factors)


def _tokenizer(path: Path, header: GgufHeader) -> dict[str, Any] | None:
    """tokenizer.json of the metadata; where Bitwright does not know its kind, the one that lies beside the file."""
    try:
        return tokenizer_of(header.metadata)
    except CheckpointError as error:
        beside = path.parent / TOKENIZER_FILE
        if beside.is_file():
            return read_object(beside)
        raise CheckpointError(f"{error}. Put the model's {TOKENIZER_FILE} beside the file") from None


def _mapped(path: Path) -> tuple[BinaryIO, mmap.mmap]:
    """A file, opened and mapped.

    Raises:
        CheckpointError: it cannot be.
    """
    try:
        handle = path.open("rb")
        try:
            return handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except BaseException:
            handle.close()
            raise
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
