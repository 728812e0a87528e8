"""When addresses run out: an error that says so, and an executor that goes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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
assert "no memory for the buffers of 240 tokens in 4 sequences" in error_of(*batch)
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
