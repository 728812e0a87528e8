"""Add a version: a copy of a model's directory that nobody changes, with its manifest and its signature.

Files are copied to a name of their own, without the lock. Then, under it, the log says that the version exists, and the
files are renamed. A killed copy leaves a folder that nobody owns, which the next one removes.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from bitwright.atomic import sync_folder
from bitwright.errors import InputError, ModelError, RegistryError
from bitwright.files.directory import ModelDirectory, source_bytes, source_files
from bitwright.files.opening import open_path
from bitwright.files.task import find_task
from bitwright.record import RECORD_FILE, Record, read_record
from bitwright.registry.log import KEY
from bitwright.registry.signing import sign_directory
from bitwright.registry.state import Version
from bitwright.registry.store import VERSIONS, Registry, check_name, put_in_place, writing
from bitwright.report.verdict import verdict_word

_PART = "part-"


def add(
    registry: Registry, directory: Path, name: str, *, link: bool = False, note: str | None = None, sign: bool = True
) -> Version:
    """Add a directory as the next version of a model.

    link: hard links instead of copies; whoever writes into the source then changes the version, which `verify` sees.
    note: kept in the log. sign: by `model-signing`, where that is installed.

    Raises:
        InputError: no directory, a wrong name, links across file systems; the registry is locked.
        ModelError, CheckpointError: it is no model's directory, or its record cannot be read. OSError: full disk …
    """
    check_name(name)
    if not directory.is_dir():
        raise InputError(
            f"{directory}: give the directory of a model; a registry holds no single files and no hub names"
        )
    opened = open_path(directory)
    record = read_record(directory) if (directory / RECORD_FILE).exists() else None
    facts = {
        "bytes": source_bytes(directory), "verdict": _verdict(record), "source": str(directory.absolute()),
        "claimed": (record.model.source_sha256 if record else None) or opened.fingerprint, "task": _task(opened),
        "note": note,
    }  # fmt: skip
    versions = registry.folder(name) / VERSIONS
    versions.mkdir(parents=True, exist_ok=True)
    with _own_part(versions) as part:
        manifest = _copy(directory, part, source_files(directory), link=link)
        versions.joinpath(f"{part.name}.manifest").write_text(manifest, encoding="utf-8")
        signed = sign and sign_directory(part, versions / f"{part.name}.sig", registry.root / KEY)
        sync_folder(part)
        sync_folder(versions)
        content = sha256(manifest.encode()).hexdigest()
        with writing(registry, f"add {name}") as writer:
            number = max(writer.model(name, new=True).versions, default=0) + 1
            writer.append("add", name, version=number, content=content, signed=signed, part=part.name, **facts)
            put_in_place(writer, name, versions / str(number), part.name)
            return writer.model(name).versions[number]


def manifest_of(directory: Path) -> str:
    """The manifest of a directory as it is: a line "SHA-256  name" for each file, in the order of names."""
    return "".join(f"{_digest(file)}  {file.relative_to(directory)}\n" for file in source_files(directory))


def changed_files(place: Path, content: str) -> list[str]:
    """The files of a version that are not as they were added, or not there; `content`: as the log has it.

    Raises:
        RegistryError: its manifest is not the one that the log names.
    """
    path = place.with_name(f"{place.name}.manifest")
    said = path.read_text(encoding="utf-8") if path.exists() else ""
    if sha256(said.encode()).hexdigest() != content:
        raise RegistryError(f"{path}: this is not the manifest that the log names; put it back from a copy")
    before, after = ({line[66:]: line[:64] for line in text.splitlines()} for text in (said, manifest_of(place)))
    return sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file))


def _task(opened: ModelDirectory) -> str | None:
    """What the model is for; None where its files leave that open, which is for those to say who load it."""
    try:
        return find_task(opened)
    except ModelError:
        return None


def _verdict(record: Record | None) -> str | None:
    return None if record is None else verdict_word(record)


@contextmanager
def _own_part(versions: Path) -> Iterator[Path]:
    """A folder for a copy that is under way. Its lock says that somebody is at it; what dead ones left goes."""
    for other in versions.glob(f"{_PART}*"):
        if other.is_dir():
            with _held(other) as free:
                if free:
                    _remove(other)
    part = versions / f"{_PART}{os.getpid()}-{os.urandom(4).hex()}"
    part.mkdir()
    try:
        with _held(part):
            yield part
    except BaseException:
        _remove(part)
        raise


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether the lock of a folder was free; it is ours until the end then."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its owner has just renamed it
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield folder.exists()
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    for ending in (".manifest", ".sig"):
        part.with_name(part.name + ending).unlink(missing_ok=True)
    shutil.rmtree(part, ignore_errors=True)


def _copy(source: Path, target: Path, files: Sequence[Path], *, link: bool) -> str:
    """Copy files, on disk when this returns, and give the manifest. Copies are read-only."""
    lines, folders = [], {target}
    for file in files:
        name = file.relative_to(source)
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        folders.add(copy.parent)
        lines.append(f"{_linked(file, copy) if link else _copied(file, copy)}  {name}\n")
    for folder in folders:
        sync_folder(folder)
    return "".join(lines)


def _linked(file: Path, copy: Path) -> str:
    try:
        os.link(file.resolve(), copy)
    except OSError as error:
        raise InputError(f"--link: {file} cannot be linked to {copy} ({error.strerror}); leave --link out") from None
    return _digest(copy)


def _copied(file: Path, copy: Path) -> str:
    digest = sha256()
    with file.open("rb") as reading, copy.open("xb") as writing_:
        while chunk := reading.read(1 << 20):
            digest.update(chunk)
            writing_.write(chunk)
        writing_.flush()
        os.fsync(writing_.fileno())
        os.fchmod(writing_.fileno(), 0o444)
    return digest.hexdigest()


def _digest(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
