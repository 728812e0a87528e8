"""Numbers: what a quantized tensor is, how ranges are chosen and how values become codes.

Specs are plain data, read by recipes, plans and reports; the rest needs torch and is imported on first use, so that
`bitwright --help` does not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitwright.numerics.spec import SCHEMES, QuantSpec, Scheme

if TYPE_CHECKING:
    from bitwright.numerics.grids import fake_quantize, quantize, scale_and_zero_point
    from bitwright.numerics.histogram import Histogram
    from bitwright.numerics.qtensor import QTensor
    from bitwright.numerics.ranges import RANGES, RangeFunction

__all__ = [
    "RANGES",
    "SCHEMES",
    "Histogram",
    "QTensor",
    "QuantSpec",
    "RangeFunction",
    "Scheme",
    "fake_quantize",
    "quantize",
    "scale_and_zero_point",
]

_HOME = {
    "RANGES": "ranges",
    "Histogram": "histogram",
    "QTensor": "qtensor",
    "RangeFunction": "ranges",
    "fake_quantize": "grids",
    "quantize": "grids",
    "scale_and_zero_point": "grids",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
