"""Writes files that appear complete or not at all, even after a loss of power."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path, owner: str = "") -> Iterator[Path]:
    """Give the path of a new file beside `path`, to be written, and synced, by the caller; rename it to `path` at the
    end, or remove it on any exception. What a killed process left under that name goes first.

    owner: part of the new file's name, for a file that several processes may write at once.

    Raises:
        OSError: as the file system says.
    """
    temporary = path.with_name(f".{path.name}{owner}.part")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file that all may read, so that a reader never sees half of it.

    Raises:
        OSError: as the file system says.
    """
    with atomic_file(path, f".{os.getpid()}") as temporary, temporary.open("x", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Let the system store on disk which files a folder holds.

    Raises:
        OSError: as the file system says.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
