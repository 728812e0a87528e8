"""The threads of torch's operators, which our kernels on the generic path take too (`torch.get_num_threads`)."""

import contextlib
import functools

import torch

from bitwright.kernels import openmp
from bitwright.kernels.processors import usable_processors


@functools.cache
def settle() -> None:
    """Once, before torch first computes for us: no more threads than `usable_processors`, and none lost in a fork.

    torch itself takes OMP_NUM_THREADS, or a thread for each processor of the affinity mask; it does not know a
    container's quota. What a user sets later with torch.set_num_threads stays.
    """
    with contextlib.suppress(OSError):  # a torch with another runtime, and then no kernels of ours
        openmp.load()
    if torch.get_num_threads() > usable_processors():
        torch.set_num_threads(usable_processors())
