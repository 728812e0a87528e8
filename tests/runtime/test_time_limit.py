"""The time that a process has for its work, and what is left of one that takes longer."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitwright.runtime.time_limit import killed_after, most_tokens, seconds_allowed, weight_bytes

SLEEPS = "sleep 60 & echo $!; wait"


@pytest.fixture
def parent() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that waits for one that it started."""
    with subprocess.Popen(["sh", "-c", SLEEPS], stdout=subprocess.PIPE, start_new_session=True) as process:
        yield process
        process.kill()


def ends(pid: int) -> bool:
    """Whether a process ends within seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_what_takes_too_long_is_killed_with_what_it_started(parent: "subprocess.Popen[bytes]") -> None:
    assert parent.stdout is not None
    started = int(parent.stdout.readline())
    with killed_after(parent, 0.05) as late:
        parent.stdout.read()  # until the last that could write there is gone
    assert late.is_set()
    assert parent.wait() != 0
    assert ends(started)


def test_what_answers_in_time_goes_on(parent: "subprocess.Popen[bytes]") -> None:
    assert parent.stdout is not None
    with killed_after(parent, 0.2) as late:
        os.kill(int(parent.stdout.readline()), 0)
    time.sleep(0.3)
    assert not late.is_set()
    assert parent.poll() is None


def test_the_time_grows_with_the_model_and_with_the_texts(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("model.safetensors", "deep/pytorch_model.bin", "vocab.txt"):
        (tmp_path / name).write_bytes(bytes(10))
    assert weight_bytes(tmp_path) == 20
    assert most_tokens(["four", ["to", "texts"], [7, 8, 9]]) == 7 + 10 + 6
    small, large = 90_000_000, 14_000_000_000
    assert seconds_allowed(small, 0) < seconds_allowed(small, 100_000) < seconds_allowed(large, 100_000)
