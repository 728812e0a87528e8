"""`bitwright encode`: what it writes and says, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.bulk.vectors import FORMATS
from bitwright.cli.encode import FORMAT_NAMES
from bitwright.kernels import dispatch
from tests.rounded import write_rounded

Run = Callable[..., Any]


def test_formats_are_those_that_are_written() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES


@pytest.mark.filterwarnings("default:finished files")
@pytest.mark.skipif(not dispatch.available(), reason="needs the native kernels")
def test_encode(run: Run, here: Path, tiny_model: Callable[..., Path], once: Callable[..., Path], texts: Any) -> None:
    source = tiny_model("bert", hidden_size=64)
    model = once(("cli encode", str(source)), lambda out: write_rounded(source, out, "w8a8"))
    (here / "corpus.txt").write_text("\n".join(texts[:20]))
    command = ("encode", model, "--data", "corpus.txt", "--out", "vectors", "--format", "npy", "--file-rows", "8")
    done = run(*command, "--workers", "1")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "vectors: 20 vectors in 3 files, 0.0 MB"
    assert "20 texts in" in done.out
    assert "texts to vectors …" in done.err
    (here / "vectors" / "part-00001.npy").unlink()
    again = run(*command)
    assert "2 of the files were there already" in again.out
    assert "warning: finished files that are gone or cut short: 1" in again.err
    told = json.loads(run(*command, "--json", "--quiet").out)
    assert (told["complete"], len(told["files"])) == (True, 3)
    refused = run(*command, "--dtype", "float16")
    assert refused.code == 2
    assert 'vectors dtype was "float32", is "float16"' in refused.err


@pytest.mark.full
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_all_workers(here: Path, tiny_model: Callable[..., Path], texts: list[str]) -> None:
    (here / "corpus.txt").write_text("\n".join(texts))
    command = [sys.executable, "-m", "bitwright", "encode", str(tiny_model("bert")), "--data", "corpus.txt", "--out",
               "vectors", "--workers", "2", "--file-rows", "64"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:  # its workers import torch now, which takes seconds
            if "texts to vectors" in line:
                break
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (children := listed.read_text().split()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "the same command goes on where this one stopped" in rest
    begun = time.monotonic()
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < begun + 5:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert os.listdir(here / "vectors") == ["_manifest.json"]
