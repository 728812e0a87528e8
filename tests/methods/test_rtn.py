"""Laws of rounding to nearest, and of the table of roundings."""

import pytest
import torch

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.methods import ROUNDINGS
from bitwright.numerics import RANGES, QuantSpec
from bitwright.numerics.grids import grouped

SPECS = [
    QuantSpec(bits=bits, symmetric=symmetric, group_size=group_size)
    for bits in (8, 4, 3, 2)
    for symmetric in (True, False)
    for group_size in (None, 8)
]


def stats() -> LayerStats:
    """Of inputs that differ in size, for the ranges that ask."""
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 32)
    return observe(None, x, gram=True)


def weight() -> torch.Tensor:
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", [name for name in RANGES if name != "entropy"])  # which wants thousands of values
def test_no_other_code_is_nearer(name: str, spec: QuantSpec) -> None:
    w = weight()
    q = ROUNDINGS["rtn"](w, stats(), spec, RANGES[name]).qtensor
    codes = torch.arange(spec.code_min, spec.code_max + 1).double()
    zero = 0 if q.zero_point_NG is None else q.zero_point_NG[..., None, None].double()
    every_value = (codes - zero) * q.scale_NG[..., None, None].double()  # (N, G, 1, codes)
    least = (every_value - grouped(w, spec)[..., None].double()).abs().amin(-1)
    ours = (grouped(q.dequantize(), spec) - grouped(w, spec)).abs().double()
    assert (ours <= least + 1e-5 * q.scale_NG[..., None]).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_inputs_do_not_matter_but_to_the_range(spec: QuantSpec) -> None:
    with_stats, without = (ROUNDINGS["rtn"](weight(), s, spec, RANGES["mse"]) for s in (stats(), None))
    assert torch.equal(with_stats.qtensor.codes_NK, without.qtensor.codes_NK)
    assert torch.equal(with_stats.qtensor.scale_NG, without.qtensor.scale_NG)
    if spec.bits < 8:  # else the widest range is the best of all, whatever the weights
        weighed = ROUNDINGS["rtn"](weight(), stats(), spec, RANGES["imatrix"])
        assert not torch.equal(weighed.qtensor.scale_NG, without.qtensor.scale_NG)


def test_the_weight_is_left_alone() -> None:
    w = weight()
    ROUNDINGS["rtn"](w, None, QuantSpec(bits=4), RANGES["absmax"])
    assert torch.equal(w, weight())


def test_infinite_weights_are_refused() -> None:
    w = weight()
    w[0, 0] = torch.inf
    with pytest.raises(NumericsError, match="1 of 192"):
        ROUNDINGS["rtn"](w, None, QuantSpec(), RANGES["absmax"])
