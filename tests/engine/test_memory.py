"""Constants lie where kernels can read them, none over another; when addresses run out, an error says so, and the
executor goes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitwright.engine.memory import ALIGNMENT, Memory, aligned

TinyModel = Callable[..., Path]

_SETUP = """
import resource, sys
from pathlib import Path

import numpy as np

from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.dispatch import native_isa

weights, threads = open_weights(ModelDirectory(Path(sys.argv[1]))), int(sys.argv[2])
executor = Executor(lower_encoder(weights), native_isa())
_, most = resource.getrlimit(resource.RLIMIT_AS)

def limit_to(mib):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resource.setrlimit(resource.RLIMIT_AS, (int(status["VmSize"].split()[0]) * 1024 + (mib << 20), most))

def error_of(*batch):
    try:
        executor.run_packed(*batch, threads)
    except MemoryError as error:
        return str(error)
    raise SystemExit("memory was enough")
"""

_NO_BUFFERS = """
batch = np.full(4 * 60, 5), np.full(4, 60)
limit_to(1)
assert "not enough memory for 240 tokens in 4 sequences" in error_of(*batch)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
assert np.isfinite(executor.run_packed(*batch, threads)).all()
"""

_LARGE_BATCH = """
want = executor.run_packed(np.full(60, 5), np.array([60]), threads)
batch = np.full(50_000 * 60, 5), np.full(50_000, 60)
limit_to(8)  # the ids alone take 12 MB as the native side wants them
error_of(*batch)
assert np.array_equal(executor.run_packed(np.full(60, 5), np.array([60]), threads), want)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("code", [_NO_BUFFERS, _LARGE_BATCH], ids=["buffers", "large-batch"])
def test_running_out_of_memory(tiny_model: TinyModel, code: str, threads: int) -> None:
    subprocess.run([sys.executable, "-c", _SETUP + code, tiny_model("bert"), str(threads)], check=True)


SIZES = (1, 63, 64, 65, 1 << 20, 3 << 20, 31 << 20, 33 << 20, 7)  # bytes; chunks are of 32 MiB


def test_copies_are_aligned_and_none_lies_over_another() -> None:
    memory = Memory()
    given = [np.full(size, number, np.uint8) for number, size in enumerate(SIZES, 1)]
    copies = [memory.copy(values) for values in given]
    for values, copy in zip(given, copies, strict=True):
        assert copy.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(copy, values)


@pytest.mark.parametrize("copy", [Memory().copy, aligned])
def test_a_view_is_copied_as_its_values(copy: object) -> None:
    assert callable(copy)
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).swapaxes(0, 2)
    found = copy(values)
    assert found.flags.c_contiguous
    assert found.ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(found, values)
