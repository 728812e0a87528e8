"""Our linears as operators of torch: `torch.ops.bitwright`, in C++ (csrc/torch), with what torch.compile must know.

They are defined through torch's stable C interface, looked up in the libtorch of the process: nothing links torch, and
a call of a tiny linear, its work included, takes 3 microseconds (Zen 5) where an empty operator in Python takes 6.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitwright.errors import KernelError
from bitwright.kernels import native
from bitwright.kernels.dispatch import native_isa

QUANTIZE_MODES = ("asymmetric", "symmetric", "static")
ACTIVATIONS = ("none", "gelu")


@functools.cache
def load() -> None:
    """Define the operators, once.

    Raises:
        KernelError: the native module does not load, or this torch has not what they need.
    """
    module = native.load()
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        module.register_torch(str(library), native_isa())
    except RuntimeError as error:
        raise KernelError(f"torch {torch.__version__}: {error}") from error
    for operator in ("linear_w8a8", "linear_wna8", "linear_wna16"):
        torch.library.register_fake(f"bitwright::{operator}", _shape_of_linear)
    for operator in ("experts_w8a8", "experts_wna8"):
        torch.library.register_fake(f"bitwright::{operator}", _shape_of_experts)


def _shape_of_linear(x: Tensor, *arguments: Any) -> Tensor:
    """(M, N) of x's dtype; N is the one number that all linears take first."""
    n = next(argument for argument in arguments if isinstance(argument, int | torch.SymInt))
    return x.new_empty((x.shape[0], n))


def _shape_of_experts(x: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
