"""Laws of bias correction: the codes stay, the mean output comes back."""

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import observe
from bitwright.errors import NumericsError
from bitwright.methods.bias_correction import bias_correction, with_bias_correction
from bitwright.methods.gptq import gptq
from bitwright.methods.rtn import rtn
from bitwright.methods.slots import Rounding
from bitwright.numerics import RANGES, QuantSpec

SPEC = QuantSpec(bits=2, symmetric=False, group_size=16)


def weight() -> Tensor:
    return torch.randn(24, 32, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    return torch.randn(300, 32, generator=torch.Generator().manual_seed(1)) + torch.linspace(-2, 2, 32)


@pytest.mark.parametrize("rounding", [rtn, gptq])
def test_the_mean_output_error_on_the_calibration_data_is_0(rounding: Rounding) -> None:
    x, w = tokens(), weight()
    stats = observe(observe(None, x[:100], gram=True), x[100:], gram=True)
    rounded = with_bias_correction(rounding)(w, stats, SPEC, RANGES["absmax"])
    plain = rounding(w, stats, SPEC, RANGES["absmax"])
    assert torch.equal(rounded.qtensor.codes_NK, plain.qtensor.codes_NK)
    assert rounded.notes == plain.notes
    assert plain.bias_N is None
    assert rounded.bias_N is not None
    error_MN = x.double() @ (rounded.qtensor.dequantize() - w).T.double()
    assert error_MN.mean(0).abs().max() > 0.1
    assert (error_MN + rounded.bias_N).mean(0).abs().max() < 1e-5


def test_inputs_of_mean_0_need_none() -> None:
    x = tokens()
    stats = observe(None, torch.cat([x, -x]))
    q = rtn(weight(), stats, SPEC, RANGES["absmax"]).qtensor
    assert bias_correction(weight(), q, stats).abs().max() < 1e-5


def test_without_statistics_it_is_refused() -> None:
    with pytest.raises(NumericsError, match="mean of the layer's inputs"):
        with_bias_correction(rtn)(weight(), None, SPEC, RANGES["absmax"])
