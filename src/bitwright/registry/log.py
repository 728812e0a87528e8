"""The log of a registry: a JSON object a line, chained by hashes, signed, only ever added to.

    {"before": SHA-256 of the line before, "number": 7, "time": …, "what": "promote", "name": …, …, "signature": …}

A line's signature covers the line, so nobody without the key can add one. Its `before` covers all that came earlier, so
nobody can change, drop or reorder lines unseen. `head.json` says how many lines there are, signed, too: cutting the end
off is seen. The head is written after the line; a line behind it is one whose writer was killed, and counts if it is
signed. An unfinished last line does not.

A copy of an old log together with its old head looks intact. What knows more (MLflow, the versions on disk, a head that
somebody wrote down) tells on it: see `verify`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitwright.atomic import sync_folder, write_text_atomically
from bitwright.errors import RegistryError
from bitwright.registry.keys import PUBLIC, is_signed, sign

LOG, HEAD, KEY = "log.jsonl", "head.json", "key"
_FIRST = "0" * 64
_SIGNED = b',"signature":"'


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. time: UTC, ISO 8601. what: "add", "gates", "promote", "rollback", "done" … by: user and machine. name:
    of the model, "" for what is about the registry. facts: what else there is to say.
    """

    number: int
    time: str
    what: str
    by: str
    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Log:
    """The lines of a log that was found whole. head: the hash of the last one. behind: lines after the signed head.
    torn: bytes after the last line, of a writer that was killed.
    """

    lines: tuple[bytes, ...]
    head: str
    behind: int = 0
    torn: int = 0

    @property
    def last(self) -> Entry | None:
        """The last entry."""
        return parse(self.lines[-1]) if self.lines else None

    def entries(self, name: str | None = None) -> Iterator[Entry]:
        """The entries in order; of one model, if one is named."""
        mark = None if name is None else f',"name":{json.dumps(name)},'.encode()
        return (parse(line) for line in self.lines if mark is None or mark in line)


def now() -> str:
    """The time of the machine, as the log writes it."""
    return as_time(datetime.now(UTC).timestamp())


def as_time(seconds: float) -> str:
    """A time since the epoch as the log writes it: such texts sort by time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(line: bytes) -> Entry:
    """The entry of a line of a log that was found whole."""
    facts = json.loads(line)
    for key in ("before", "signature"):
        del facts[key]
    known = {key: facts.pop(key) for key in ("number", "time", "what", "by", "name")}
    return Entry(**known, facts=facts)


def read_log(root: Path) -> Log:
    """Read the log, and check the chain of its lines and its signed head.

    Raises:
        RegistryError: it was cut, changed or reordered; the message says where. InputError: as `is_signed`.
    """
    count, signed_hash = _read_head(root)  # before the log, which may grow meanwhile
    whole, _, torn = _bytes(root / LOG).rpartition(b"\n")
    lines = tuple(whole.split(b"\n")) if whole else ()
    hashes = _chained(lines, root / LOG)
    if len(lines) < count:
        raise RegistryError(
            f"{root / LOG}: the log was cut: its signed head counts {count} entries, and there are {len(lines)}. Put "
            "the file back from a copy"
        )
    if count and hashes[count - 1] != signed_hash:
        raise RegistryError(f"{root / LOG}: line {count} is not the one that was signed: the log was rewritten")
    for number in range(count, len(lines)):
        if not _line_is_signed(lines[number], _public(root)):
            raise RegistryError(f"{root / LOG}: line {number + 1} is not signed by the registry's key")
    return Log(lines, hashes[-1] if hashes else _FIRST, len(lines) - count, len(torn))


def check_signatures(root: Path, log: Log) -> None:
    """Check the signature of every line: minutes for a million.

    Raises:
        RegistryError: one is not by the registry's key.
    """
    public = _public(root)
    for number, line in enumerate(log.lines, 1):
        if not _line_is_signed(line, public):
            raise RegistryError(f"{root / LOG}: line {number} is not signed by the registry's key")


def append(root: Path, log: Log, what: str, name: str = "", **facts: Any) -> Log:
    """Add an entry, on disk when this returns, and sign the new head. Whoever calls holds the registry's lock.

    The time never runs back, whatever the machine's clock does.

    Raises:
        InputError: as `sign`. OSError: as the file system says.
    """
    last = log.last
    number, time = len(log.lines) + 1, max(now(), last.time if last else "")
    body = {"before": log.head, "number": number, "time": time, "what": what, "by": who(), "name": name}
    assert not body.keys() & facts.keys(), facts.keys()
    body |= facts
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    line = text[:-1] + _SIGNED + sign(root / KEY, text).encode() + b'"}'
    with (root / LOG).open("ab") as file:
        if log.torn:
            file.truncate(file.tell() - log.torn)
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if number == 1:
        sync_folder(root)
    grown = Log((*log.lines, line), sha256(line).hexdigest())
    write_head(root, grown)
    return grown


def write_head(root: Path, log: Log) -> None:
    """Sign how many lines there are, and the last one."""
    said = f"{len(log.lines)} {log.head}"
    head = {"entries": len(log.lines), "hash": log.head, "signature": sign(root / KEY, f"head {said}".encode())}
    write_text_atomically(root / HEAD, json.dumps(head) + "\n")


def who() -> str:
    """The user and the machine, for people."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container without a name for its user
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _read_head(root: Path) -> tuple[int, str]:
    """(lines that the head counts, hash of the last of them)."""
    text = _bytes(root / HEAD)
    if not text:
        return 0, _FIRST  # every line then needs its own signature
    try:
        head = json.loads(text)
        count, found, signature = int(head["entries"]), str(head["hash"]), str(head["signature"])
    except (ValueError, KeyError, TypeError):
        raise RegistryError(f"{root / HEAD}: this is no head of a log; put the file back from a copy") from None
    if not is_signed(_public(root), f"head {count} {found}".encode(), signature):
        raise RegistryError(f"{root / HEAD}: the head is not signed by the registry's key: it was changed")
    return count, found


def _public(root: Path) -> bytes:
    text = _bytes(root / KEY / PUBLIC)
    if not text:
        raise RegistryError(f"{root / KEY / PUBLIC}: the registry's public key is gone; put it back from a copy")
    return text


def _chained(lines: tuple[bytes, ...], path: Path) -> list[str]:
    """The hash of each line, if each names the one before. Lines are compared as bytes: parsing takes far longer."""
    hashes: list[str] = []
    before = _FIRST
    for number, line in enumerate(lines, 1):
        if not line.startswith(f'{{"before":"{before}","number":{number},'.encode()):
            raise RegistryError(
                f"{path}: line {number} does not follow from line {number - 1}: the log was changed. Put the file back "
                "from a copy"
            )
        before = sha256(line).hexdigest()
        hashes.append(before)
    return hashes


def _line_is_signed(line: bytes, public: bytes) -> bool:
    body, mark, signature = line.rpartition(_SIGNED)
    signed = bool(mark) and signature.endswith(b'"}')
    return signed and is_signed(public, body + b"}", signature[:-2].decode("ascii", "replace"))
