"""Pickles models, for spawned workers, joblib and Spark. Imports no torch.

A pickle says where a model lies and how `load` was called, in a few hundred bytes, and holds a digest of what lies
there; weights stay in their files. To unpickle is to call `load` again, and nothing else.

The digest is no signature: of weights it reads a few bytes of every tensor, which takes a thousandth of the time that
all of them would. Whoever trains or quantizes a model again changes some of them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitwright.errors import CheckpointError, ModelError
from bitwright.files.directory import CONFIG_FILE, config_file, weight_files
from bitwright.files.safetensors import read_header

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

_RECORD_FILE = "record.json"  # record.RECORD_FILE; importing that would take loading a model 20 ms

_PIECE = 64  # bytes that are read at a place
_PLACES = 1024  # of a file whose tensors are not known

Stamp = tuple[tuple[str, int, int], ...]  # name, size, time of the last change in nanoseconds, of each file


class LoadedFrom(NamedTuple):
    """Where `load` found a model. options: the arguments of `load`. stamp: the state of the files then."""

    path: Path
    options: Mapping[str, Any]
    stamp: Stamp

    @classmethod
    def of(cls, path: Path, options: Mapping[str, Any]) -> "LoadedFrom":
        """path: the directory, absolute. What a digest needs is read only when the model is pickled."""
        return cls(path, options, _stamp(path))


def reduce_model(model: "Model") -> tuple[Any, ...]:
    """`__reduce__` of every model.

    Raises:
        ModelError: `load` did not give it, or its files have changed since.
    """
    found: LoadedFrom | None = getattr(model, "loaded_from", None)
    if found is None:
        raise ModelError(
            f"{model.path}: this model ({model.backend}) does not come from load(), so it cannot be pickled: a "
            "pickle holds a directory, not weights. Pickle a model from load()"
        )
    if not found.path.exists() or _stamp(found.path) != found.stamp:
        raise ModelError(
            f"{found.path}: the files have changed since the model was loaded; load it again, then pickle it"
        )
    return reopen, (str(found.path), dict(found.options), digest_of(found.path))


def reopen(path: str, options: dict[str, Any], digest: str) -> "Model":
    """The model of a pickle, loaded again.

    Raises:
        ModelError: the directory is gone, or is not what it was. And as `load`.
    """
    from bitwright.runtime.load import load

    again = "load the model from its new place and pickle it again"
    if not Path(path).exists():
        raise ModelError(f"{path}: the pickled model was there, but nothing is any more. Put it back, or {again}")
    if digest_of(Path(path)) != digest:
        raise ModelError(f"{path}: the files are not those of the pickled model. Put them back, or {again}")
    return load(path, **options)


def digest_of(path: Path) -> str:
    """SHA-256 over record.json, if there is one, and config.json; and of the weight files over names, sizes, and the
    first, middle and last bytes of every tensor.

    Raises:
        ModelError: there are no weights, or no config.json.
    """
    from hashlib import sha256  # 2 ms, which loading a model need not wait for

    digest = sha256()
    for file in _files(path):
        whole = file.name in (_RECORD_FILE, CONFIG_FILE)
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        for piece in [file.read_bytes()] if whole else _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    """A few bytes of each tensor; of a file that is not safetensors, of places at equal distances."""
    with file.open("rb") as stream:
        try:
            entries, buffer = read_header(stream, file)
        except CheckpointError:
            size = file.stat().st_size
            places = list(range(0, size, max(size // _PLACES, _PIECE)))
        else:
            places = [
                buffer + place
                for entry in entries.values()
                for place in (entry.begin, (entry.begin + entry.end) // 2, max(entry.begin, entry.end - _PIECE))
            ]
        for place in places:
            yield os.pread(stream.fileno(), _PIECE, place)


def _stamp(path: Path) -> Stamp:
    return tuple((file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in _files(path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    config = config_file(path)
    if not config.is_file():
        raise ModelError(
            f"{config.parent}: there is no {CONFIG_FILE}; a transformers model directory has one, so check the path"
        )
    record = [path / _RECORD_FILE] if (path / _RECORD_FILE).is_file() else []
    return [*record, config, *weight_files(path)]
