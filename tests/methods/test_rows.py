"""Law: rounding weights of one input together gives each what it gets alone."""

from functools import partial

import pytest
import torch

from bitwright.calibration.observers import observe
from bitwright.methods.bias_correction import with_bias_correction
from bitwright.methods.gptq import gptq
from bitwright.methods.rows import round_together
from bitwright.methods.rtn import rtn
from bitwright.methods.slots import Rounding
from bitwright.numerics import RANGES, QuantSpec

SPECS = [
    QuantSpec(bits=4, group_size=16),
    QuantSpec(bits=3, symmetric=False),
    QuantSpec(bits=4, grid="nf4", group_size=8),
    QuantSpec(bits=4, grid="kmeans"),
    QuantSpec(bits=8, symmetric=False, per_tensor=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rounding", [rtn, gptq, with_bias_correction(partial(gptq, act_order=False))])
def test_together_is_as_apart(rounding: Rounding, spec: QuantSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    stats = observe(None, torch.randn(99, 32, generator=generator, dtype=torch.float64) + 1, gram=True)
    weights = [torch.randn(n, 32, generator=generator, dtype=torch.float64) for n in (5, 1, 8)]
    together = round_together(rounding, weights, stats, spec, RANGES["mse"])
    for w, ours in zip(weights, together, strict=True):
        alone = rounding(w, stats, spec, RANGES["mse"])
        assert ours.notes == alone.notes
        for field in ("codes_NK", "scale_NG", "zero_point_NG", "codebook"):
            one, other = getattr(ours.qtensor, field), getattr(alone.qtensor, field)
            assert (one is None and other is None) or torch.equal(one, other)
        assert (ours.bias_N is None) == (alone.bias_N is None)
        if ours.bias_N is not None:
            torch.testing.assert_close(ours.bias_N, alone.bias_N)
    assert len(together) == 3
    assert together[0].notes is not together[1].notes
    assert round_together(rounding, weights[:1], stats, spec, RANGES["mse"])[0].qtensor.shape == (5, 32)
