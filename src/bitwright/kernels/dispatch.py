"""Which instruction set the CPU kernels run on. Imports no torch.

The best one that this processor and this operating system support is chosen at the first call;
BITWRIGHT_ISA=scalar|avx2|avxvnni|avx512vnni|amx forces one. There is no fallback: what cannot run raises KernelError.
Within an instruction set the native module chooses each operator's variant, from the one table that operator has.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from bitwright.errors import KernelError
from bitwright.kernels import native

if TYPE_CHECKING:
    from bitwright.kernels._native import Isa

ISAS = ("amx", "avx512vnni", "avxvnni", "avx2", "scalar")  # best first
_limit: str | None = None


class IsaRow(NamedTuple):
    """One instruction set: compiled into this build, supported by this machine, active in this process."""

    name: str
    compiled: bool
    supported: bool
    active: bool


class VariantRow(NamedTuple):
    """One variant of an operator: the instruction set it belongs to, and whether this machine runs it."""

    name: str
    isa: str
    supported: bool


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
        raise KernelError(f"BITWRIGHT_ISA={wanted} is unknown; known are {', '.join(ISAS)}")
    if wanted not in usable:
        raise KernelError(
            f"BITWRIGHT_ISA={wanted}: this machine does not have this instruction set; it has {', '.join(usable)}"
        )
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


@contextmanager
def without_amx() -> Iterator[None]:
    """What is loaded inside, by any thread, runs as on a processor without AMX, where this one has it.

    AMX computes an encoder's int8 attention in bf16 (`csrc/attention_int8/amx.cpp`), so it cannot tell what 8 bits
    cost on other processors.
    """
    global _limit
    before, _limit = _limit, "avx512vnni" if active_isa() == "amx" else None
    try:
        yield
    finally:
        _limit = before


def native_isa(name: str | None = None) -> "Isa":
    """An instruction set as native functions take it; by default the active one, or what `without_amx` leaves of it."""
    isa: Isa = native.load().Isa[name or _limit or active_isa()]
    return isa


def operators() -> list[str]:
    """The names of what has variants. Empty where the module does not load."""
    return list(native.load().operators()) if available() else []


def variants(operator: str) -> list[VariantRow]:
    """Every variant of an operator, best first. Empty where the module does not load."""
    if not available():
        return []
    return [VariantRow(name, isa.name, supported) for name, isa, supported in native.load().variants(operator)]


def chosen(operator: str, isa: str | None = None) -> str | None:
    """The variant that runs with an instruction set, by default the active one; None where the operator has none."""
    name: str | None = native.load().chosen(operator, native_isa(isa))
    return name
