"""Bias correction: what rounding does to the mean of each output is taken back (Nagel et al. 2019, 1906.04721).

    E[W x] − E[Ŵ x]  =  (W − Ŵ) E[x]

Banner et al. (2018, 1810.05723) found such a shift per channel and moved the weights instead; a bias costs nothing.
"""

from dataclasses import replace

from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.errors import NumericsError
from bitwright.methods.slots import Rounded, Rounding
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec


def bias_correction(w_NK: Tensor, qtensor: QTensor, stats: LayerStats | None) -> Tensor:
    """(W − Ŵ) E[x]: float32 (N,), to be added to the layer's bias.

    Args:
        w_NK: the float weight that qtensor stands for. stats: of the layer's inputs.

    Raises:
        NumericsError: no statistics.
    """
    if stats is None:
        raise NumericsError("bias correction needs the mean of the layer's inputs; calibrate, or leave it out")
    error_NK: Tensor = w_NK.detach().double() - qtensor.dequantize()
    return (error_NK @ stats.mean_K.to(error_NK)).float()


def with_bias_correction(rounding: Rounding) -> Rounding:
    """The same codes, with a `bias_N` that makes the mean output error on the calibration tokens 0."""

    def corrected(w_NK: Tensor, stats: LayerStats | None, spec: QuantSpec, range_function: RangeFunction) -> Rounded:
        rounded = rounding(w_NK, stats, spec, range_function)
        return replace(rounded, bias_N=bias_correction(w_NK, rounded.qtensor, stats))

    return corrected
