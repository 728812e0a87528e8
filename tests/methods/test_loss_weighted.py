"""Laws of loss-weighted rounding: equal weights change nothing, others lower the error that they weigh."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.methods.gptq import gptq
from bitwright.methods.loss_weighted import observe_weighted, squared_gradients, with_loss_weights
from bitwright.numerics import RANGES, QTensor, QuantSpec

N, K, M, G = 26, 48, 600, 4
SPEC = QuantSpec(bits=3, group_size=16)


def weight() -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(M, K, generator=generator) @ torch.randn(K, K, generator=generator)


def weights(seed: int = 2) -> Tensor:
    """Of a few tokens far larger than of most, as squared gradients are; others in each group."""
    return torch.randn(M, G, generator=torch.Generator().manual_seed(seed)).mul(2).exp()


def stats_of(x: Tensor) -> LayerStats:
    return observe(None, x, gram=True, histogram=False)


def weighted_error(w: Tensor, q: QTensor) -> float:
    """Σ s (δy)² with the weights of each group of rows."""
    moved_MN = tokens().double() @ (w - q.dequantize()).double().T
    parts = moved_MN.square().tensor_split(G, dim=-1)
    return float(sum((s[:, None] * part).sum() for s, part in zip(weights().double().T, parts, strict=True)))


@pytest.mark.parametrize("groups", [1, 3, N])
def test_equal_weights_leave_gptq_to_the_bit(groups: int) -> None:
    seen = observe_weighted(None, tokens(), torch.ones(M, groups))
    ours = with_loss_weights(gptq, seen)(weight(), stats_of(tokens()), SPEC, RANGES["imatrix"]).qtensor
    plain = gptq(weight(), stats_of(tokens()), SPEC, RANGES["imatrix"]).qtensor
    assert torch.equal(ours.codes_NK, plain.codes_NK)
    assert torch.equal(ours.scale_NG, plain.scale_NG)


def test_the_weighted_error_is_smaller() -> None:
    w, seen = weight(), observe_weighted(None, tokens(), weights())
    ours = with_loss_weights(gptq, seen)(w, stats_of(tokens()), SPEC, RANGES["absmax"]).qtensor
    plain = gptq(w, stats_of(tokens()), SPEC, RANGES["absmax"]).qtensor
    assert weighted_error(w, ours) < 0.9 * weighted_error(w, plain)


def test_each_group_of_rows_is_rounded_by_its_own_weights() -> None:
    seen = observe_weighted(None, tokens(), weights())
    ours = with_loss_weights(gptq, seen)(weight(), None, SPEC, RANGES["imatrix"]).qtensor
    assert len(ours.codes_NK) == N
    for rows, s, q in zip(weight().tensor_split(G), weights().T, ours.codes_NK.tensor_split(G), strict=True):
        alone = gptq(rows, stats_of(tokens() * s.sqrt()[:, None]), SPEC, RANGES["imatrix"]).qtensor
        assert torch.equal(q, alone.codes_NK)


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_do_not_matter(size: int) -> None:
    seen = None
    for x, s in zip(tokens().split(size), weights().split(size), strict=True):
        seen = observe_weighted(seen, x, s)
    assert seen is not None
    for ours, whole in zip(seen, observe_weighted(None, tokens(), weights()), strict=True):
        assert ours.n_tokens == M
        assert ours.gram_KK is not None
        assert whole.gram_KK is not None
        assert torch.allclose(ours.gram_KK, whole.gram_KK, rtol=1e-4, atol=1e-3 * float(whole.gram_KK.max()))


def test_a_common_factor_of_the_weights_does_not_matter() -> None:
    rounded = [
        with_loss_weights(gptq, observe_weighted(None, tokens(), weights() * factor))(
            weight(), None, SPEC, RANGES["absmax"]
        ).qtensor
        for factor in (1.0, 2.0**-40)
    ]
    assert torch.equal(rounded[0].codes_NK, rounded[1].codes_NK)


@pytest.mark.parametrize("spec", [QuantSpec(bits=4, per_tensor=True), QuantSpec(bits=4, grid="kmeans", group_size=16)])
def test_rows_that_share_a_scale_or_levels_are_rounded_as_one(spec: QuantSpec) -> None:
    seen = observe_weighted(None, tokens(), torch.ones(M, G))
    ours = with_loss_weights(gptq, seen)(weight(), None, spec, RANGES["absmax"]).qtensor
    assert torch.equal(ours.codes_NK, gptq(weight(), stats_of(tokens()), spec, RANGES["absmax"]).qtensor.codes_NK)


def test_a_group_that_the_loss_does_not_depend_on_is_not_weighted() -> None:
    s = weights()
    s[:, 1] = 0
    rounding = with_loss_weights(gptq, observe_weighted(None, tokens(), s))
    ours = rounding(weight(), stats_of(tokens()), SPEC, RANGES["absmax"]).qtensor.codes_NK.tensor_split(G)[1]
    plain = gptq(weight(), stats_of(tokens()), SPEC, RANGES["absmax"]).qtensor.codes_NK.tensor_split(G)[1]
    assert torch.equal(ours, plain)


def test_a_bias_of_each_group_is_kept() -> None:
    from bitwright.methods.bias_correction import with_bias_correction

    seen = observe_weighted(None, tokens(), torch.ones(M, G))
    rounding = partial(gptq, damping=0.02)
    ours = with_loss_weights(with_bias_correction(rounding), seen)(weight(), None, SPEC, RANGES["absmax"])
    plain = with_bias_correction(rounding)(weight(), stats_of(tokens()), SPEC, RANGES["absmax"])
    assert ours.bias_N is not None
    assert plain.bias_N is not None
    assert torch.allclose(ours.bias_N, plain.bias_N, atol=1e-6)


def test_nan_weights_are_refused() -> None:
    s = weights()
    s[3, 2] = float("nan")
    with pytest.raises(NumericsError, match="the squared gradients: 1 of 2400 are NaN"):
        observe_weighted(None, tokens(), s)


def test_squared_gradients_are_means_over_the_outputs_of_a_group() -> None:
    gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(4))
    found = squared_gradients(gradient, 3)
    assert torch.allclose(found[:, 0], gradient[:, :3].square().mean(-1))
    assert torch.allclose(found[:, 2], gradient[:, 5:].square().mean(-1))
    assert torch.allclose(squared_gradients(gradient, 1)[:, 0], gradient.square().mean(-1))
