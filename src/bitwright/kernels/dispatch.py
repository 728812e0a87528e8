"""Which instruction set the CPU kernels run on. Imports no torch.

The best one that this processor and this operating system support is chosen at the first call;
BITWRIGHT_ISA=scalar|avx2|avx512vnni|amx forces one. There is no fallback: what cannot run raises KernelError.
"""

import functools
import os
from typing import NamedTuple

from bitwright.errors import KernelError
from bitwright.kernels import native

ISAS = ("amx", "avx512vnni", "avx2", "scalar")  # best first


class IsaRow(NamedTuple):
    """One instruction set: compiled into this build, supported by this machine, active in this process."""

    name: str
    compiled: bool
    supported: bool
    active: bool


def available() -> bool:
    """Whether the native module loads. Where it does not, `load_error` says why, and every kernel call raises."""
    return native.load_error() is None


def load_error() -> str | None:
    """Why the native module does not load, or None."""
    return native.load_error()


def isa_table() -> list[IsaRow]:
    """Every instruction set, best first."""
    supported = _supported() if available() else {}
    active = active_isa() if available() else None
    return [IsaRow(name, name in supported, supported.get(name, False), name == active) for name in ISAS]


@functools.cache
def active_isa() -> str:
    """The instruction set in use.

    Raises:
        KernelError: BITWRIGHT_ISA names one that is unknown, or that this machine lacks; or the module does not load.
    """
    supported = _supported()
    usable = [name for name in ISAS if supported[name]]
    wanted = os.environ.get("BITWRIGHT_ISA")
    if wanted is None:
        return usable[0]
    if wanted not in ISAS:
        raise KernelError(f"BITWRIGHT_ISA={wanted}: unknown; known are {', '.join(ISAS)}")
    if wanted not in usable:
        raise KernelError(f"BITWRIGHT_ISA={wanted}: this machine lacks it; it supports {', '.join(usable)}")
    return wanted


def cpu_features() -> dict[str, bool]:
    """The processor features that kernels, here and in torch, are chosen by. Empty where the module does not load."""
    return dict(native.load().cpu_features()) if available() else {}


def kernel_calls() -> int:
    """How many native linear kernels this process has run so far."""
    return native.load().kernel_calls() if available() else 0


@functools.cache
def _supported() -> dict[str, bool]:
    return dict(native.load().isas())


@functools.cache
def isa_index(name: str | None = None) -> int:
    """The number by which native functions know an instruction set; of the active one by default."""
    return [isa for isa, _ in native.load().isas()].index(name or active_isa())
