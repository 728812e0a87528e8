"""The registry on disk, and who writes there.

    registry.json              schema, MLflow's address, limits of the gates
    key/  log.jsonl  head.json lock
    models/NAME/current        -> versions/7, what servers follow
    models/NAME/versions/7     the model's directory as it was added; 7.manifest, 7.sig beside it

Every writer holds the lock, and first ends what one before it began and was killed at: an entry of the log that says
what shall be is finished, or undone where that cannot be. Only the last entry can be such a one.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitwright.atomic import sync_folder, write_text_atomically
from bitwright.errors import InputError, RegistryError
from bitwright.registry.keys import make_key
from bitwright.registry.lock import LOCK, locked
from bitwright.registry.log import KEY, LOG, Entry, Log, append, as_time, read_log, write_head
from bitwright.registry.state import CHANGES, Model, fold

SCHEMA = 1
SETTINGS, MODELS, VERSIONS, CURRENT = "registry.json", "models", "versions", "current"
OWN_MLFLOW = "own"  # a database inside the registry
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry. mlflow: "own", the address of a server, or None for no mirror. limits: of the gates, where they are
    not the usual ones.
    """

    root: Path
    mlflow: str | None
    limits: Mapping[str, float]

    def folder(self, name: str) -> Path:
        """The folder of a model."""
        return self.root / MODELS / name

    def version(self, name: str, number: int) -> Path:
        """The directory of a version."""
        return self.folder(name) / VERSIONS / str(number)


def open_registry(root: Path) -> Registry:
    """Open a registry.

    Raises:
        InputError: there is none, or one of another schema. RegistryError: its settings cannot be read.
    """
    try:
        data = json.loads((root / SETTINGS).read_bytes())
        schema, mlflow, limits = data["schema"], data["mlflow"], data.get("limits", {})
    except FileNotFoundError:
        raise InputError(
            f"{root}: there is no registry here. `bitwright registry add DIR --name NAME` makes one; --registry, or "
            "BITWRIGHT_REGISTRY, says where"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RegistryError(f"{root / SETTINGS}: cannot be read ({type(error).__name__}: {error})") from None
    if schema != SCHEMA:
        raise InputError(f"{root}: the registry has schema {schema!r}; this release reads {SCHEMA}: update Bitwright")
    if not isinstance(limits, dict) or not isinstance(mlflow, str | None):
        raise RegistryError(f"{root / SETTINGS}: `limits` must be an object, and `mlflow` a text or null")
    return Registry(root.absolute(), mlflow, limits)


def make_registry(root: Path, *, mlflow: str | None = OWN_MLFLOW) -> Registry:
    """Make a registry, or open the one that is there.

    Raises:
        InputError: the folder holds something else; as `open_registry` and `make_key`. OSError: as the file
            system says.
    """
    if (root / SETTINGS).exists():
        return open_registry(root)
    if (root / LOG).exists():
        raise RegistryError(f"{root / SETTINGS}: the file is gone, but the log is there; put it back from a copy")
    root.mkdir(parents=True, exist_ok=True)
    _refuse_others(root)  # before there is a file of ours
    with locked(root, "make the registry"):
        if not (root / SETTINGS).exists():
            _refuse_others(root, ours=True)
            make_key(root / KEY)
            settings: dict[str, Any] = {"schema": SCHEMA, "mlflow": mlflow, "limits": {}}
            write_text_atomically(root / SETTINGS, json.dumps(settings, indent=1) + "\n")
    return open_registry(root)


def _refuse_others(root: Path, *, ours: bool = False) -> None:
    """Refuse a folder with files of others. Not `ours`: who else makes the registry now has made the lock first."""
    if {file.name for file in root.iterdir()} - {KEY, LOCK} and (ours or not (root / LOCK).exists()):
        raise InputError(f"{root}: this folder holds other files; give an empty or a new one")


def check_name(name: str) -> None:
    """Raises:
    InputError: a text that cannot be the name of a model and of its folder.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a model: use up to 100 letters, digits, dots, dashes and underscores, the first a "
            "letter or a digit"
        )


def read_models(registry: Registry, name: str | None = None) -> dict[str, Model]:
    """The models; the one of that name alone, if one is given.

    What a killed writer left is ended first, if nobody holds the lock and this user may write.

    Raises:
        RegistryError, InputError: as `read_log`.
    """
    log = read_log(registry.root)
    if _is_cut(log):
        with suppress(OSError, InputError), writing(registry, "end what was cut", wait_s=0.0) as writer:
            log = writer.log
    return fold(log.entries(name))


def model_of(registry: Registry, name: str) -> Model:
    """One model.

    Raises:
        InputError: there is none of that name. And as `read_models`.
    """
    found = read_models(registry, name).get(name)
    return found or _unknown(registry, name)


def _unknown(registry: Registry, name: str) -> Model:
    from difflib import get_close_matches

    known = sorted(read_models(registry))
    near = get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(
        f"{registry.root}: no model is called {name!r}{hint}; `bitwright registry list` shows {len(known)}"
    )


class Writer:
    """Who holds the lock: the log as it is, and the way to add to it."""

    def __init__(self, registry: Registry, log: Log) -> None:
        self.registry, self.log = registry, log

    def append(self, what: str, name: str = "", **facts: Any) -> None:
        """Add an entry, as `log.append` does."""
        self.log = append(self.registry.root, self.log, what, name, **facts)

    def model(self, name: str, *, new: bool = False) -> Model:
        """One model as it is now; with `new` it may be one without versions.

        Raises:
            InputError: there is none of that name.
        """
        found = fold(self.log.entries(name)).get(name)
        return found or (Model(name) if new else _unknown(self.registry, name))


@contextmanager
def writing(registry: Registry, what: str, *, wait_s: float = 5.0) -> Iterator[Writer]:
    """Hold the lock and the log. What a killed writer left is ended first.

    Raises:
        InputError, RegistryError, OSError: as `locked` and `read_log`.
    """
    with locked(registry.root, what, wait_s=wait_s):
        writer = Writer(registry, read_log(registry.root))
        if writer.log.behind:
            write_head(registry.root, writer.log)
        if (last := writer.log.last) is not None:
            _end(writer, last)
        yield writer


def _is_cut(log: Log) -> bool:
    last = log.last
    return bool(log.behind or log.torn or (last and last.what in ("add", *CHANGES)))


def _end(writer: Writer, last: Entry) -> None:
    """Finish what the last entry says shall be, or undo it where its version is not there."""
    registry, name = writer.registry, last.name
    if last.what not in ("add", *CHANGES):
        return
    place = registry.version(name, last.facts["version"])
    if last.what == "add":
        put_in_place(writer, name, place, last.facts["part"])
    elif place.is_dir():
        finish(writer, name, last.facts["version"])
    else:
        why = f"version {last.facts['version']} is not in its place"
        writer.append("undone", name, of=last.what, version=last.facts["version"], why=why)


def put_in_place(writer: Writer, name: str, place: Path, part: str) -> None:
    """Rename the files of a version that were copied to a name of their own, and say so in the log. What is in its
    place already stays.
    """
    for ending in (".manifest", ".sig", ""):
        copied = place.with_name(part + ending)
        if copied.exists():
            copied.rename(place.with_name(place.name + ending))
    sync_folder(place.parent)
    version = int(place.name)
    if place.is_dir():
        writer.append("done", name, of="add", version=version)
    else:
        writer.append("undone", name, of="add", version=version, why="its files are gone")


def finish(writer: Writer, name: str, version: int) -> None:
    """Swap the link, unless it is swapped, and say so in the log: with the time of the swap, even if that was before
    this process.
    """
    link, intent = writer.registry.folder(name) / CURRENT, writer.log.last
    assert intent is not None
    if linked(link) != version:
        swap(link, version)
    writer.append("done", name, of=intent.what, version=version, since=max(intent.time, as_time(link.lstat().st_mtime)))


def linked(link: Path) -> int | None:
    """The version that a link names; None without one."""
    try:
        text = os.readlink(link)
    except OSError:
        return None
    folder, _, number = text.rpartition("/")
    return int(number) if folder == VERSIONS and number.isdigit() else None


def swap(link: Path, version: int) -> None:
    """Let `current` name another version: whoever reads it sees the old one or the new one."""
    temporary = link.with_name(f".{link.name}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"{VERSIONS}/{version}")
    temporary.replace(link)
    sync_folder(link.parent)
