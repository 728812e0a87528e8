"""A directory of vectors: a file for each shard, and `_manifest.json`, which says how they were made.

    part-00000.parquet    columns id and vector (a list of fixed size); or
    part-00000.npy        one array (rows, values), in the order of the corpus
    _manifest.json        model, texts and options; rows, bytes and SHA-256 of each file. Readers of whole directories
                          pass over names that begin with _
    .shards.jsonl         while the work goes on: what the manifest will say of finished files

A file appears whole or not at all. It counts when the journal names it, so a run that was killed at any moment, or lost
power, does at most those again that were under way.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.atomic import atomic_file, write_text_atomically
from bitwright.checkpoints.result import check_space, write_file
from bitwright.errors import CheckpointError, InputError
from bitwright.parsing import parse_json
from bitwright.search.journal import Journal

MANIFEST, _JOURNAL = "_manifest.json", ".shards.jsonl"
_KIND, _VERSION = "bitwright vectors", 1
_BACKEND = "backend"  # a key of the journal beside the names of files

Facts = dict[str, Any]  # what the bytes of vectors depend on, by what it is of: "model", "texts" …; plain data


def _npy(vectors: np.ndarray, ids: Sequence[Any]) -> bytes:
    written = io.BytesIO()
    np.save(written, vectors, allow_pickle=False)
    return written.getvalue()


def _parquet(vectors: np.ndarray, ids: Sequence[Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    written = io.BytesIO()
    # Vectors do not become smaller by what parquet can do with them.
    pq.write_table(pa.table({"id": ids, "vector": values}), written, compression="none", use_dictionary=False)
    return written.getvalue()


FORMATS: dict[str, Callable[[np.ndarray, Sequence[Any]], bytes]] = {"parquet": _parquet, "npy": _npy}


def check_format(name: str, *, ids: bool) -> None:
    """Raises:
    InputError: parquet without pyarrow; ids, and a format that has no place for them.
    """
    if ids and name != "parquet":
        raise InputError(f"--format {name} holds no ids; its rows are in the order of the texts. Use --format parquet")
    if name == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise InputError(
                "--format parquet needs pyarrow: pip install 'bitwright[data]'; or write --format npy"
            ) from None


class Vectors:
    """An open directory of vectors. done: what is known of each finished file, by name. manifest: see above."""

    def __init__(self, path: Path, facts: Facts, form: str) -> None:
        """Use `open_vectors`."""
        self.path, self._facts, self._form = path, facts, form
        context = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._journal = Journal(path / _JOURNAL, context)
        self._backend: str | None = self._journal.values.pop(_BACKEND, None)
        self.done: dict[str, dict[str, Any]] = dict(self._journal.values)

    def name(self, shard: int) -> str:
        """The name of a shard's file."""
        return f"part-{shard:05d}.{self._form}"

    def check_backend(self, backend: str) -> None:
        """Note what computes the vectors, or compare it with what computed those that are here.

        Raises:
            InputError: another one.
        """
        if self._backend is None:
            self._backend = backend
            self._journal.remember(_BACKEND, lambda: backend)
        elif self._backend != backend:
            raise InputError(
                f"{self.path}: the vectors here were computed by {self._backend}, but this run computes by {backend}, "
                "whose last bits may differ. Go on on a machine of the same kind, or write to another directory"
            )

    def add(self, shard: int, vectors: np.ndarray, ids: Sequence[Any]) -> None:
        """Write the file of a shard. Before the first one: is there room for all of them?

        Raises:
            CheckpointError: the disk is full, or writing fails otherwise.
        """
        name = self.name(shard)
        content = FORMATS[self._form](vectors, ids)
        facts = {"rows": len(vectors), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        try:
            if not self.done:
                check_space(self.path, len(content) * self._facts["texts"]["rows"] // len(vectors))
            with atomic_file(self.path / name) as temporary:
                write_file(temporary, content)
            self._journal.values.pop(name, None)  # what was noted of a file that is gone
            self.done[name] = self._journal.remember(name, lambda: facts)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise CheckpointError(
                f"{self.path / name}: {'the disk is full' if full else 'cannot be written'} ({error.strerror}). The "
                f"{len(self.done)} finished files are kept; make room, and run the same command again to continue"
            ) from None

    def forget_lost(self) -> list[str]:
        """Names of files that were finished, but are gone or have another size now: they are to be made again."""
        lost = [name for name, facts in self.done.items() if _size(self.path / name) != facts["bytes"]]
        for name in lost:
            del self.done[name]
        return lost

    def finish(self, origin: Facts) -> dict[str, Any]:
        """Write the manifest with all files, and return it. origin: what it says beside the facts."""
        made = {"complete": True, _BACKEND: self._backend, "files": dict(sorted(self.done.items()))}
        manifest = _manifest(self._facts) | origin | made
        write_text_atomically(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        (self.path / _JOURNAL).unlink(missing_ok=True)
        return manifest


@contextmanager
def open_vectors(path: Path, facts: Facts, form: str) -> Iterator[Vectors]:
    """Make a directory of vectors, or go on with one that was made from the same facts.

    Raises:
        InputError: the directory cannot be made, holds something else or vectors of other facts, or another run is
            writing there now.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a directory ({error.strerror}); choose another --out") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another run is writing here now; wait for it, or choose another --out") from None
        earlier = _earlier(path, facts)
        for leftover in path.glob(".*.part"):  # what a killed run was writing
            leftover.unlink()
        vectors = Vectors(path, facts, form)
        if earlier is None:
            write_text_atomically(path / MANIFEST, json.dumps(_manifest(facts) | {"complete": False}, indent=1) + "\n")
        elif earlier.get("complete"):
            vectors.done, vectors._backend = earlier["files"], earlier[_BACKEND]
        yield vectors
    finally:
        os.close(lock)


def _manifest(facts: Facts) -> dict[str, Any]:
    return {"kind": _KIND, "version": _VERSION} | facts


def _earlier(path: Path, facts: Facts) -> dict[str, Any] | None:
    """The manifest of an earlier run with the same facts; None in an empty directory."""
    file = path / MANIFEST
    if not file.is_file():
        if any(not name.startswith(f".{MANIFEST}") for name in os.listdir(path)):
            raise InputError(f"{path}: this directory has files, but none of `bitwright encode`; choose another --out")
        return None
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); choose another --out") from None
    if not isinstance(found, dict) or (found.get("kind"), found.get("version")) != (_KIND, _VERSION):
        raise InputError(f"{file}: this is no manifest of this release's `bitwright encode`; choose another --out")
    if different := [line for name in facts for line in _differences(name, found.get(name), facts[name])]:
        raise InputError(
            f"{path}: the vectors here were made in another way: {'; '.join(different)}. Choose another --out, or "
            "remove the directory to start over"
        )
    return found


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """What differs between two facts, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        yield from (f"{name} {key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in keys)
    elif before != now:
        yield f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
