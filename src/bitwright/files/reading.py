"""Opens untrusted files safely: only regular files, inside the model's directory, up to a size limit. No torch.

A directory is looked through once, when it is opened, before anything in it is read: so what transformers or the
tokenizers library opens there by itself has been looked at too.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from bitwright.errors import ModelError

MAX_JSON_BYTES = 256 << 20  # the largest tokenizer.json of a published model has a seventh of it
MAX_TEXT_BYTES = 1 << 20  # of a model card or a license, what is read
MAX_ENTRIES = 100_000  # files and folders of a model directory
_HIDDEN = "."


def check_directory(path: Path) -> None:
    """Check every file of a directory except hidden ones.

    Raises:
        ModelError: a link that leads out of the directory (those of a hub cache to its blobs stay), a pipe, a socket
            or a device; or more entries than a model has.
    """
    inside = _inside(path)
    for count, entry in enumerate(_entries(path)):
        if count >= MAX_ENTRIES:
            raise ModelError(
                f"{path}: this directory holds more than {MAX_ENTRIES} files; give a directory that holds only a model"
            )
        if entry.is_symlink():
            _check_link(Path(entry.path), inside)
        elif not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
            raise ModelError(f"{entry.path}: this is a pipe, a socket or a device, not a file; remove it")


def check_name(path: Path, name: str, said_by: str, model: Path | None = None) -> Path:
    """The path of a file in a directory that another file there names.

    said_by: the file that names it, for the message. model: the model's directory, if that is not `path` itself but
    holds it.

    Raises:
        ModelError: the name leads out of the directory.
    """
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise ModelError(f"{path / said_by}: this file names {name[:200]!r}, which is outside the model's directory")
    file = path / name
    hidden = any(part.startswith(_HIDDEN) for part in parts)  # or behind a folder that is; others were looked at
    if hidden and os.path.lexists(file):
        _check_link(file, _inside(path if model is None else model))
    return file


def read_bytes(file: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        ModelError: it is something else, or has more than `limit` bytes. OSError: it cannot be read.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:  # of a pipe, no waiting
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{file}: this is not a regular file")
        if found.st_size > limit:
            raise ModelError(f"{file}: the file has {found.st_size} bytes; Bitwright reads at most {limit}")
        return opened.read(found.st_size)


def read_text(file: Path) -> str:
    """The beginning of a text file, up to `MAX_TEXT_BYTES`; "" if it is not a regular file."""
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return opened.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace")


def lies_inside(path: Path, file: Path) -> bool:
    """Whether a file belongs to a directory after its links are followed."""
    return f"{os.path.realpath(file)}{os.sep}".startswith(_inside(path))


def _inside(path: Path) -> tuple[str, ...]:
    """The folders to which a directory's links may lead: itself, and the blobs beside a snapshot in a hub cache."""
    here = Path(os.path.realpath(path))
    blobs = here.parent.parent / "blobs"
    is_snapshot = here.parent.name == "snapshots" and blobs.is_dir()
    return tuple(f"{folder}{os.sep}" for folder in ((here, blobs) if is_snapshot else (here,)))


def _check_link(file: Path, inside: tuple[str, ...]) -> None:
    real = os.path.realpath(file)
    if not f"{real}{os.sep}".startswith(inside):
        raise ModelError(
            f"{file}: this is a link to {real}, outside the model's directory; copy the file here, or remove the link"
        )
    if os.path.exists(real) and not (os.path.isfile(real) or os.path.isdir(real)):
        raise ModelError(f"{file}: this is a pipe, a socket or a device, not a file; remove it")


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    folders = [os.fspath(path)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(_HIDDEN):
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
