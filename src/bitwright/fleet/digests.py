"""What a result depends on, as digests of content: what did not change need not be done again."""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bitwright
from bitwright.atomic import write_text_atomically
from bitwright.calibration.data import parse_sources
from bitwright.files.directory import source_files
from bitwright.fleet.config import Entry
from bitwright.kernels import dispatch, native
from bitwright.models.hub import fetch
from bitwright.pipeline.request import Texts
from bitwright.runtime.environment import version_of

Parts = dict[str, str]  # digests, by what they are of

_RACY_S = 2.0  # a file that changed as recently may change again within one tick of its clock
# Files of a result that people or other commands may write again.
_LOOSE = {"report.html", "README.md", "drift.json"}


class Digests:
    """SHA-256 of files. What it has read once it reads again only if size, times or inode of the file are others."""

    def __init__(self, memo: Path) -> None:
        """memo: the file that keeps digests for the next run; one that cannot be read counts as empty."""
        self._memo, self._begun = memo, time.time()
        try:
            self._known: dict[str, list[Any]] = dict(json.loads(memo.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of_file(self, file: Path) -> str:
        """Raises:
        OSError: it cannot be read.
        """
        found = file.stat()
        # With the time of the last change of the inode, which no copying tool sets back.
        state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]
        key = str(file)
        known = self._known.get(key)
        if isinstance(known, list) and known[:-1] == state:
            return str(known[-1])
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if max(found.st_mtime, found.st_ctime) < time.time() - _RACY_S:
            self._known[key] = [*state, digest]
        return digest

    def of_files(self, folder: Path, files: Iterable[Path]) -> str:
        """Of files with their names in a folder."""
        return digest_of([[str(file.relative_to(folder)), self.of_file(file)] for file in files])

    def of_path(self, path: Path) -> str:
        """Of a file, or of all files of a folder but the hidden ones."""
        return self.of_files(path, source_files(path)) if path.is_dir() else self.of_file(path)

    def save(self) -> None:
        """Raises:
        OSError: the memo cannot be written.
        """
        write_text_atomically(self._memo, json.dumps(self._known))


def parts_of(entry: Entry, digests: Digests) -> Parts:
    """What the result of an entry depends on: model, recipe, texts, release, instruction set.

    Raises:
        BitwrightError, OSError: the model, or a file that the entry names, is not there.
    """
    options = [entry.recipe.model_dump(mode="json"), entry.task, entry.judged, entry.speed, entry.drift]
    versions = [*map(version_of, ("torch", "transformers"))]
    return {
        "model": digests.of_path(model_path(entry)),
        "recipe": digest_of(options),
        "texts": _texts(entry.texts, digests),
        "release": digest_of([bitwright.__version__, *versions, digests.of_file(Path(str(native.load().__file__)))]),
        "instruction set": dispatch.active_isa(),
    }


def model_path(entry: Entry) -> Path:
    """Where the files of an entry's model lie; those of a name of the hub are downloaded first.

    Raises:
        ModelError: there is no such model.
    """
    return path if (path := Path(entry.model).expanduser()).is_file() else fetch(entry.model)


def result_digest(out: Path, digests: Digests) -> str:
    """Of the files of a result that nobody has a reason to change.

    Raises:
        OSError: one cannot be read.
    """
    return digests.of_files(out, [file for file in source_files(out) if file.name not in _LOOSE])


def key_of(parts: Parts) -> str:
    """One digest of all parts."""
    return digest_of(sorted(parts.items()))


def digest_of(value: Any) -> str:
    """Of plain data."""
    return hashlib.sha256(json.dumps(value).encode("utf-8", "surrogatepass")).hexdigest()


def _texts(texts: Texts, digests: Digests) -> str:
    """Of the texts: of files by content. Built-in texts belong to the release, data sets of the hub to their names."""
    found: list[Any] = [texts.kind, texts.metric, texts.samples, list(texts.data), texts.evaluation]
    named = [source.name for source in (parse_sources(texts.data) if texts.data else [])]
    if texts.metric is not None:
        named.append(texts.metric.rpartition(":")[0])
    if texts.evaluation is not None:
        named.append(texts.evaluation)
    return digest_of([*found, *(digests.of_path(Path(name)) for name in named if Path(name).exists())])
