"""One OpenMP runtime and one pool of threads, shared with torch, whoever is imported first."""

import subprocess
import sys

import pytest

LOAD_TORCH = "import torch"
LOAD_NATIVE = "from bitwright.kernels import native; assert native.load_error() is None, native.load_error()"
RUNTIMES = "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]}))"
LINEAR = """
import os, torch
torch.set_num_threads(1)
from bitwright.kernels.linear import QuantLinear
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import SCHEMES, QuantSpec
codes = torch.ones(512, 512, dtype=torch.int8)
weight = QTensor(codes, torch.ones(512, 1), None, QuantSpec())
linear = QuantLinear(QuantizedLinear(weight, None, SCHEMES["w8a8"].input))
x = torch.ones(512, 512)
threads = lambda: len(os.listdir("/proc/self/task"))
"""


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("order", [(LOAD_TORCH, LOAD_NATIVE), (LOAD_NATIVE, LOAD_TORCH)])
def test_one_openmp_runtime_is_mapped(order):
    assert run_python("\n".join((*order, RUNTIMES))) == ["1"]


def test_loading_does_not_import_torch():
    assert run_python(f"{LOAD_NATIVE}\nimport sys; print('torch' in sys.modules)") == ["False"]


def test_torch_sets_the_number_of_threads_and_lends_them():
    """One thread starts none; two start one; after that torch's own parallel work finds it there."""
    code = f"""{LINEAR}
before = threads()
linear(x)
alone = threads() - before
torch.set_num_threads(2)
linear(x)
two = threads() - before
torch.ones(2000, 2000).exp()
print(alone, two, threads() - before)
"""
    assert run_python(code) == ["0", "1", "1"]
