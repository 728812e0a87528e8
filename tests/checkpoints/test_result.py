import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitwright.checkpoints.result import atomic_directory, check_out, copy_file, write_file
from bitwright.errors import CheckpointError, InputError
from bitwright.record import Record, write_record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted_write(out: Path, error: type[BaseException]) -> None:
    with atomic_directory(out, 10) as folder:
        write_file(folder / "config.json", b"new")
        raise error


def test_appears_complete(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "deep" / "out", 10) as folder:
        write_file(folder / "sub" / "x", b"abc")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "sub" / "x").read_bytes() == b"abc"
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        interrupted_write(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_an_exception_keeps_the_directory_that_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "out" / "config.json", b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(tmp_path / "out", KeyboardInterrupt)
    assert (tmp_path / "out" / "config.json").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_success_replaces_the_directory_that_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "out" / "stale", b"old")
    with atomic_directory(tmp_path / "out", 10) as folder:
        write_file(folder / "config.json", b"new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json"]


def test_a_failed_rename_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "out" / "config.json", b"old")
    rename = os.rename

    def fails_for_the_new_one(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new_one)
    with pytest.raises(CheckpointError, match="Permission denied"), atomic_directory(tmp_path / "out", 10) as folder:
        write_file(folder / "config.json", b"new")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "config.json").read_bytes() == b"old"


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1000, used=900, free=100))
    with (
        pytest.raises(CheckpointError, match="needs 101 bytes, but 100 are free"),
        atomic_directory(tmp_path / "out", 101),
    ):
        pytest.fail("not reached")
    assert names(tmp_path) == []
    with atomic_directory(tmp_path / "out", 100):
        pass


def test_a_write_that_fails_half_way_says_how_much_is_needed(tmp_path: Path) -> None:
    """A limit on the size of files makes the operating system refuse the write, as a full disk does."""
    script = f"""
import resource, signal
from pathlib import Path
from types import SimpleNamespace
from bitwright.checkpoints.result import atomic_directory, write_file
from bitwright.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_directory(Path({str(tmp_path / "out")!r}), 5000) as folder:
        write_file(folder / "small", b"x" * 900)
        write_file(folder / "large", b"x" * 5000)
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "5000 bytes are needed" in done.stdout
    assert "are free" in done.stdout
    assert names(tmp_path) == []


def test_a_killed_process_leaves_no_output(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from types import SimpleNamespace
from bitwright.checkpoints.result import atomic_directory, write_file
with atomic_directory(Path({str(tmp_path / "out")!r}), 10) as folder:
    write_file(folder / "config.json", b"half")
    print("writing", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()
    with atomic_directory(tmp_path / "out", 10):  # and the next run is not disturbed by what is left of it
        pass
    assert (tmp_path / "out").is_dir()


def test_overwrite_rules(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    check_out(out, source, overwrite=False)
    write_file(out / "config.json", b"{}")
    write_record(Record(), out / "record.json")
    with pytest.raises(InputError, match="--overwrite"):
        check_out(out, source, overwrite=False)
    check_out(out, source, overwrite=True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{}", "record_version is None"),
        (b'{"artist": "x", "record_version": 1, "plan": "vinyl"}', "plan is 'vinyl', not a list"),
        (b"RIFF\xff", "cannot be read as a record"),
        (b"[" * 100_000, "cannot be read as a record"),
    ],
)
def test_a_file_called_record_makes_no_directory_ours(tmp_path: Path, content: bytes, why: str) -> None:
    write_file(tmp_path / "out" / "record.json", content)
    with pytest.raises(InputError, match=rf"Bitwright did not write this directory \(.*{why}"):
        check_out(tmp_path / "out", tmp_path / "source", overwrite=True)
    assert (tmp_path / "out" / "record.json").read_bytes() == content


def test_an_empty_directory_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_out(tmp_path / "out", tmp_path / "source", overwrite=True)


def test_a_model_that_somebody_else_wrote_is_never_overwritten(tmp_path: Path) -> None:
    write_file(tmp_path / "bert" / "config.json", b"{}")
    with pytest.raises(InputError, match=r"bert: Bitwright did not write this directory \(no record\.json\)"):
        check_out(tmp_path / "bert", tmp_path / "source", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", [".", "..", "sub/..", "../other/..", "link", "dangling"])
def test_what_cannot_be_renamed_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, overwrite: bool
) -> None:
    write_file(tmp_path / "up" / "here" / "record.json", b"{}")
    for folder in ("up/here/sub", "up/other", "result"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "up" / "here")
    Path("link").symlink_to(tmp_path / "result")
    Path("dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot replace .*; choose another directory"):
        check_out(Path(place), tmp_path / "source", overwrite=overwrite)


def test_a_mount_point_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(InputError, match="disk: the result cannot replace a link, a mount point"):
        check_out(tmp_path / "disk", tmp_path / "source", overwrite=True)
    check_out(tmp_path / "disk" / "out", tmp_path / "source", overwrite=True)


@pytest.mark.parametrize("place", ["source", "source/out", "."])
def test_the_source_is_never_overwritten(tmp_path: Path, place: str) -> None:
    write_file(tmp_path / "source" / "config.json", b"{}")
    with pytest.raises(InputError, match="source model"):
        check_out(tmp_path / place, tmp_path / "source", overwrite=True)


def test_what_is_no_model_is_never_overwritten(tmp_path: Path) -> None:
    write_file(tmp_path / "home" / "thesis.tex", b"")
    with pytest.raises(InputError, match="did not write this directory"):
        check_out(tmp_path / "home", tmp_path / "source", overwrite=True)


def test_files_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(handle: int) -> None:
        steps.append("fsync")
        fsync(handle)

    def noted_rename(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    with atomic_directory(tmp_path / "out", 10) as folder:
        write_file(folder / "x", b"abc")
    assert steps == ["fsync", "fsync", "rename", "fsync"]  # the file, its folder, the rename, the folder around it


def test_links_are_copied_as_what_they_point_at(tmp_path: Path) -> None:
    """Hub caches are folders of links."""
    write_file(tmp_path / "blob", b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    copy_file(tmp_path / "link", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"abc"
    assert not (tmp_path / "copy").is_symlink()
