"""Whoever changes the log is found out; whoever is killed while writing it leaves a log that goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.errors import InputError, RegistryError
from bitwright.registry.keys import PRIVATE, PUBLIC, make_key
from bitwright.registry.log import HEAD, KEY, LOG, Log, append, check_signatures, parse, read_log


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A log of six entries."""
    make_key(tmp_path / KEY)
    log = read_log(tmp_path)
    for number in range(6):
        log = append(tmp_path, log, "done", "m", value=number)
    return tmp_path


def lines(root: Path) -> list[bytes]:
    return (root / LOG).read_bytes().splitlines(keepends=True)


def test_what_is_written_is_read(root: Path) -> None:
    log = read_log(root)
    check_signatures(root, log)
    entries = list(log.entries())
    assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry.facts["value"] for entry in entries] == list(range(6))
    assert [entry.time for entry in entries] == sorted(entry.time for entry in entries)
    assert list(log.entries("m")) == entries
    assert list(log.entries("other")) == []


def test_the_private_key_is_its_owners(root: Path) -> None:
    assert (root / KEY / PRIVATE).stat().st_mode & 0o777 == 0o600


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a changed value": lambda rows: [row.replace(b'"value":3', b'"value":9') for row in rows],
    "a line left out": lambda rows: rows[:2] + rows[3:],
    "lines in another order": lambda rows: [rows[0], rows[2], rows[1], *rows[3:]],
    "the first line left out": lambda rows: rows[1:],
    "the last line left out": lambda rows: rows[:-1],
    "half of the log": lambda rows: rows[:3],
    "nothing": lambda rows: [],
    "the last line twice": lambda rows: [*rows, rows[-1]],
    "a last line that is cut": lambda rows: [*rows[:-1], rows[-1][:40]],
    "something else": lambda rows: [b"no log\n"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_found(root: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    (root / LOG).write_bytes(b"".join(change(lines(root))))
    with pytest.raises(RegistryError, match=r"line|cut"):
        read_log(root)


def forged(log: Log, key: Path, root: Path) -> bytes:
    """A line that follows from the log, signed by another key."""
    make_key(key / KEY)
    shutil.copytree(root, key, dirs_exist_ok=True, ignore=lambda folder, names: [KEY] if KEY in names else [])
    append(key, log, "done", "m", value="forged")
    return lines(key)[-1]


def test_a_line_by_another_key_is_found(root: Path, tmp_path: Path) -> None:
    line = forged(read_log(root), tmp_path / "other", root)
    with (root / LOG).open("ab") as file:
        file.write(line)
    with pytest.raises(RegistryError, match="line 7 is not signed"):
        read_log(root)


def test_a_log_that_was_rewritten_is_found(root: Path, tmp_path: Path) -> None:
    """A whole log by another key, with its head."""
    other = tmp_path / "other"
    make_key(other / KEY)
    log = read_log(other)
    for number in range(6):
        log = append(other, log, "done", "m", value=number)
    for file in (LOG, HEAD):
        shutil.copy(other / file, root / file)
    with pytest.raises(RegistryError, match="head is not signed"):
        read_log(root)


def test_a_head_that_was_changed_is_found(root: Path) -> None:
    head = json.loads((root / HEAD).read_text())
    (root / HEAD).write_text(json.dumps(head | {"entries": 3}))
    with pytest.raises(RegistryError, match="head is not signed"):
        read_log(root)
    (root / HEAD).write_text("{}")
    with pytest.raises(RegistryError, match="no head"):
        read_log(root)


def test_the_signature_of_every_line_is_checked(root: Path) -> None:
    """A line in the middle by another key, and the chain and the head made anew by who has the right one."""
    log = read_log(root)
    line = log.lines[2].replace(b'"signature":"', b'"signature":"AAAA')
    cut = Log(log.lines[:2], json.loads(log.lines[2])["before"])
    from hashlib import sha256

    chained = Log((*cut.lines, line), sha256(line).hexdigest())
    (root / LOG).write_bytes(b"\n".join(chained.lines) + b"\n")
    (root / HEAD).unlink()
    append(root, chained, "done", "m", value=4)
    with pytest.raises(RegistryError, match="line 3"):
        check_signatures(root, read_log(root))


def test_without_a_head_every_line_needs_its_signature(root: Path) -> None:
    (root / HEAD).unlink()
    assert read_log(root).behind == 6


def test_a_line_behind_the_head_counts_and_a_torn_one_does_not(root: Path) -> None:
    head = (root / HEAD).read_bytes()
    append(root, read_log(root), "done", "m", value=6)
    (root / HEAD).write_bytes(head)  # killed before the head was written
    with (root / LOG).open("ab") as file:
        file.write(b'{"before":"12')  # and the next one while it wrote
    log = read_log(root)
    assert (len(log.lines), log.behind, log.torn) == (7, 1, 13)
    append(root, log, "done", "m", value=7)
    log = read_log(root)
    assert [parse(line).facts["value"] for line in log.lines] == list(range(8))
    assert (log.behind, log.torn) == (0, 0)


def test_time_never_runs_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.registry.log.now", lambda: "2001-01-01T00:00:00.000000Z")
    log = append(root, read_log(root), "done", "m")
    last = log.last
    assert last is not None
    assert last.time == parse(log.lines[-2]).time


def test_who_has_no_key_cannot_write(root: Path) -> None:
    (root / KEY / PRIVATE).unlink()
    before = (root / LOG).read_bytes()
    with pytest.raises(InputError, match="private key"):
        append(root, read_log(root), "done", "m")
    assert (root / LOG).read_bytes() == before


def test_a_public_key_that_is_gone_is_told(root: Path) -> None:
    (root / KEY / PUBLIC).unlink()
    with pytest.raises(RegistryError, match="public key is gone"):
        read_log(root)
