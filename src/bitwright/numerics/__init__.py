"""Numbers: what a quantized tensor is, how ranges are chosen and how values become codes.

Specs are plain data; the rest is imported on first use, so that loading a model does not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitwright.numerics.spec import QuantSpec

if TYPE_CHECKING:
    from bitwright.numerics.codebooks import codebook_of, fit_codebook
    from bitwright.numerics.grids import fake_quantize, nearest_codes, quantize, scale_and_zero_point
    from bitwright.numerics.histogram import Histogram
    from bitwright.numerics.importance import Importance
    from bitwright.numerics.qtensor import QTensor, code_values
    from bitwright.numerics.ranges import RANGES, WEIGHT_RANGES, RangeFunction
    from bitwright.numerics.schemes import SCHEMES, Scheme

__all__ = [
    "RANGES",
    "SCHEMES",
    "WEIGHT_RANGES",
    "Histogram",
    "Importance",
    "QTensor",
    "QuantSpec",
    "RangeFunction",
    "Scheme",
    "code_values",
    "codebook_of",
    "fake_quantize",
    "fit_codebook",
    "nearest_codes",
    "quantize",
    "scale_and_zero_point",
]

_HOME = {
    "RANGES": "ranges",
    "SCHEMES": "schemes",
    "Histogram": "histogram",
    "Importance": "importance",
    "QTensor": "qtensor",
    "RangeFunction": "ranges",
    "Scheme": "schemes",
    "WEIGHT_RANGES": "ranges",
    "code_values": "qtensor",
    "codebook_of": "codebooks",
    "fake_quantize": "grids",
    "fit_codebook": "codebooks",
    "nearest_codes": "grids",
    "quantize": "grids",
    "scale_and_zero_point": "grids",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
