"""Bitwright: quantize a transformer within an accuracy budget, run it on fast CPU kernels, and prove what it cost."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bitwright.drift.watch import Watch
    from bitwright.errors import BitwrightError
    from bitwright.pipeline import analyze, quantize
    from bitwright.registry.follow import follow
    from bitwright.runtime.load import load

# Where each public name lives. Loaded on first use, so that `bitwright --help` need not import torch.
_HOMES = {
    "BitwrightError": "bitwright.errors",
    "Watch": "bitwright.drift.watch",
    "analyze": "bitwright.pipeline",
    "follow": "bitwright.registry.follow",
    "load": "bitwright.runtime.load",
    "quantize": "bitwright.pipeline",
}

__all__ = ["BitwrightError", "Watch", "__version__", "analyze", "follow", "load", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitwright' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
