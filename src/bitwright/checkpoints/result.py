"""A directory that appears complete or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.atomic import sync_folder
from bitwright.errors import CheckpointError, InputError
from bitwright.record import RECORD_FILE, read_record

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def check_out(out: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse a destination that would destroy something.

    Raises:
        InputError: `out` is the source, holds it, or lies in it; `out` is a link, a mount point, or holds the current
            directory, so that it cannot be replaced; `out` exists and `overwrite` is off, or it holds something other
            than what `bitwright quantize` wrote: a record that can be read.
    """
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InputError(
            f"{out}: this directory is the source model {source}, holds it, or is inside it; choose another directory"
        )
    current = Path.cwd()
    if here == current or here in current.parents or out.name == ".." or out.is_symlink() or os.path.ismount(out):
        raise InputError(
            f"{out}: the result cannot replace a link, a mount point, or a directory that holds the current one; "
            "choose another directory"
        )
    if not out.exists():
        return
    if not overwrite:
        raise InputError(f"{out}: this directory exists already; choose another one, or replace it with --overwrite")
    if not out.is_dir() or (any(out.iterdir()) and (why := _no_record(out))):
        why = why if out.is_dir() else "no directory"
        raise InputError(
            f"{out}: Bitwright did not write this directory ({why}), so it does not overwrite it; remove it by "
            "hand, or choose another directory"
        )


def _no_record(folder: Path) -> str:
    """What is wrong with a directory's record; "" if it is one of ours."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return f"no {RECORD_FILE}"
    try:
        read_record(file)
    except CheckpointError as error:
        return str(error)
    return ""


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        CheckpointError: fewer than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: the result needs {needed} bytes, but {free} are free; free some space, or write to another disk"
        )


@contextmanager
def atomic_directory(out: Path, needed: int) -> Iterator[Path]:
    """Give an empty directory beside `out` to write into; rename it to `out` at the end, or remove it on any exception.

    An `out` that exists is moved aside before the rename and removed after it; it comes back if the rename fails. A
    process killed outright leaves a hidden ".<name>.….partial" folder behind, never a half-written `out`.

    Args:
        needed: bytes that will be written; checked first, and quoted when the disk is full all the same.

    Raises:
        CheckpointError: the disk is full, or writing fails otherwise.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_space(out.parent, needed)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial"))
    except OSError as error:
        raise CheckpointError(
            f"{out}: this directory cannot be created ({error.strerror}); choose another one"
        ) from error
    try:
        temporary.chmod(0o755)
        yield temporary
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            sync_folder(folder)
        _replace(temporary, out)
    except OSError as error:
        free = shutil.disk_usage(out.parent).free
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in _NO_SPACE:
            raise CheckpointError(
                f"{out}: the disk is full or a size limit is reached ({error.strerror}). {needed} bytes are needed, "
                f"but {free} are free. No partial result was left; free some space, or write to another disk"
            ) from error
        raise CheckpointError(f"{out}: the result cannot be written ({error}); no partial result was left") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write one new file, its folders included, and fsync it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, destination: Path) -> None:
    """Copy the content of one file (through links), its folders included, and fsync it."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as original, destination.open("xb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def _replace(temporary: Path, out: Path) -> None:
    if not out.exists():
        os.rename(temporary, out)
        sync_folder(out.parent)
        return
    # mkdtemp only to get a free name: the old directory takes the place of the empty one.
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".old"))
    try:
        os.rename(out, aside)
    except BaseException:
        aside.rmdir()
        raise
    try:
        os.rename(temporary, out)
    except BaseException:
        os.rename(aside, out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(aside)
