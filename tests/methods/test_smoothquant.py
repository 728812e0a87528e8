"""Laws of SmoothQuant, and of the expected error that it is judged by."""

from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.methods.scaling import expected_error, input_error, input_noise
from bitwright.methods.slots import Transformed
from bitwright.methods.smoothquant import Alpha, Statistic, magnitudes, smoothing_scale, smoothquant
from bitwright.numerics.grids import fake_quantize, scale_and_zero_point
from bitwright.numerics.ranges import absmax, min_max
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec

W8A8 = SCHEMES["w8a8"]


def tokens(seed: int = 0, *, outlier: float = 1.0, m: int = 256, k: int = 64) -> Tensor:
    """Normal features; feature 3 is `outlier` times larger than the others."""
    x_MK = torch.randn(m, k, generator=torch.Generator().manual_seed(seed))
    x_MK[:, 3] *= outlier
    return x_MK


def readers(seed: int = 1, k: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, k, generator=generator) * 0.1 for n in (48, 16)]


def statistics(x_MK: Tensor, *, gram: bool = True) -> LayerStats:
    return observe(None, x_MK, gram=gram, histogram=False)


def quantized_inputs(x_MK: Tensor, spec: QuantSpec) -> Tensor:
    choose = absmax if spec.symmetric else min_max
    return fake_quantize(x_MK, *choose(x_MK, spec), spec)


def measured_error(weights: list[Tensor], x_MK: Tensor, scheme: Scheme, transformed: Transformed | None) -> float:
    """Squared output error per token, of all readers: what `expected_error` expects."""
    total = 0.0
    for w in weights:
        w_hat, x_hat = w, x_MK
        if transformed is not None:
            shift_K = 0 if transformed.shift_K is None else transformed.shift_K
            w_hat, x_hat = w * transformed.scale_K, (x_MK - shift_K) / transformed.scale_K
        y_MN = x_hat @ w_hat.T
        if scheme.input is not None:
            x_hat = quantized_inputs(x_hat, scheme.input)
        if scheme.weight is not None:
            w_hat = fake_quantize(w_hat, *absmax(w_hat, scheme.weight), scheme.weight)
        total += float((x_hat @ w_hat.T - y_MN).square().sum()) / len(x_MK)
    return total


def always(transformed: Transformed | None) -> float:
    """An error that any transform reduces."""
    return float(transformed is None)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0, None, "search"])
def test_the_float_function_is_unchanged(alpha: Alpha) -> None:
    x = tokens(outlier=100)
    transformed = smoothquant(readers(), statistics(x), W8A8, always, alpha=alpha)
    assert transformed is not None
    scale_K = transformed.scale_K.double()
    for w in readers():
        y = x.double() @ w.double().T
        torch.testing.assert_close((x.double() / scale_K) @ (w.double() * scale_K).T, y, rtol=1e-9, atol=1e-9)


def test_alpha_0_evens_the_weights_and_alpha_1_the_inputs() -> None:
    x_K, w_K = magnitudes(readers(), statistics(tokens(outlier=50)), "absmax")
    evened_w, evened_x = w_K * smoothing_scale(x_K, w_K, 0.0), x_K / smoothing_scale(x_K, w_K, 1.0)
    torch.testing.assert_close(evened_w, evened_w[:1].expand(64))
    torch.testing.assert_close(evened_x, evened_x[:1].expand(64))


@pytest.mark.parametrize("statistic", ["absmax", "rms"])
def test_at_alpha_one_half_inputs_and_weights_share_the_difficulty(statistic: Statistic) -> None:
    x, weights = tokens(outlier=50), readers()
    transformed = smoothquant(weights, statistics(x), W8A8, always, alpha=0.5, statistic=statistic)
    assert transformed is not None
    x_hat, w_hat = x / transformed.scale_K, torch.cat(weights) * transformed.scale_K
    if statistic == "absmax":
        ratio = x_hat.abs().amax(0) / w_hat.abs().amax(0)
    else:
        ratio = x_hat.norm(dim=0) / w_hat.norm(dim=0)
    torch.testing.assert_close(ratio, ratio[:1].expand(64))


def test_static_ranges_go_by_maxima_and_dynamic_ones_by_mean_squares() -> None:
    chosen = [smoothquant(readers(), statistics(tokens()), SCHEMES[n], always) for n in ("w8a8", "w8a8_static")]
    assert [t.notes["statistic"] for t in chosen if t is not None] == ["rms", "absmax"]


def test_a_feature_that_is_seldom_large_is_left_to_its_tokens() -> None:
    """One token in 256 has one huge value. Its maximum says nothing about the ranges of the other tokens."""
    x, weights = tokens(m=4096), readers()
    x[::256, 3] = 500.0
    error = [
        measured_error(weights, x, W8A8, smoothquant(weights, statistics(x), W8A8, always, statistic=statistic))
        for statistic in ("rms", "absmax")
    ]
    assert error[0] < error[1]


@pytest.mark.parametrize("statistic", ["absmax", "rms"])
def test_columns_are_those_of_all_readers_together(statistic: Statistic) -> None:
    x, (a, b) = statistics(tokens()), readers()
    together, stacked, alone = (
        smoothquant(weights, x, W8A8, always, statistic=statistic) for weights in ([a, b], [torch.cat([a, b])], [a])
    )
    assert together is not None
    assert stacked is not None
    assert alone is not None
    torch.testing.assert_close(together.scale_K, stacked.scale_K)
    assert not torch.allclose(together.scale_K, alone.scale_K)


@pytest.mark.parametrize("name", ["w8a8", "w8a8_symmetric", "w8a8_static", "w8a8_static_symmetric"])
@pytest.mark.parametrize("alpha", [0.5, None, "search"])
def test_a_planted_outlier_feature_costs_far_less(name: str, alpha: Alpha) -> None:
    x, weights, scheme = tokens(outlier=200), readers(), SCHEMES[name]
    transformed = smoothquant(weights, statistics(x), scheme, None, alpha=alpha)
    before, after = (measured_error(weights, x, scheme, t) for t in (None, transformed))
    assert after < before / 20


@pytest.mark.parametrize("seed", range(8))
def test_a_search_is_at_least_as_good_as_any_fixed_alpha(seed: int) -> None:
    x, weights = tokens(seed, outlier=30), readers(seed + 100)

    def error(transformed: Transformed | None) -> float:
        return measured_error(weights, x, W8A8, transformed)

    found = smoothquant(weights, statistics(x), W8A8, error, alpha="search")
    assert found is not None
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        fixed = smoothquant(weights, statistics(x), W8A8, error, alpha=alpha)
        assert fixed is None or error(found) <= error(fixed)
    assert found.notes["error_after"] == error(found)
    assert found.notes["error_before"] == error(None)
    assert 0 <= float(found.notes["alpha"]) <= 1


def test_nothing_is_done_where_nothing_helps() -> None:
    stats = statistics(tokens())
    assert smoothquant(readers(), stats, W8A8, lambda t: float(t is not None), alpha="search") is None
    assert smoothquant(readers(), stats, SCHEMES["16bit"], None, alpha="search") is None


def test_dead_features_and_dead_columns_keep_finite_positive_scales() -> None:
    x, weights = tokens(outlier=100), readers()
    x[:, 5] = 0
    for w in weights:
        w[:, 7] = 0
    for alpha, statistic in product((0.0, 0.5, 1.0), get_args(Statistic)):
        scale_K = smoothing_scale(*magnitudes(weights, statistics(x), statistic), alpha)
        assert scale_K[5] == 1
        assert bool((torch.isfinite(scale_K) & (scale_K > 0)).all())
    assert torch.equal(smoothing_scale(torch.zeros(4), torch.ones(4), 0.5), torch.ones(4))
    assert torch.equal(smoothing_scale(torch.ones(4), torch.zeros(4), 0.5), torch.ones(4))


def test_scales_ignore_the_units_of_inputs_and_weights() -> None:
    x_K, w_K = magnitudes(readers(), statistics(tokens(outlier=50)), "absmax")
    torch.testing.assert_close(smoothing_scale(x_K * 1e-3, w_K * 1e4, 0.7), smoothing_scale(x_K, w_K, 0.7))


def test_nothing_that_is_given_changes() -> None:
    x, weights = statistics(tokens()), readers()
    smoothquant(weights, x, W8A8, None, alpha="search")
    assert all(torch.equal(w, v) for w, v in zip(weights, readers(), strict=True))
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_bad_input_is_refused() -> None:
    stats, spoilt = statistics(tokens()), readers()
    spoilt[1][2, 3] = torch.nan
    with pytest.raises(NumericsError, match="1 of 1024"):
        smoothquant(spoilt, stats, W8A8, None)
    with pytest.raises(NumericsError, match=r"alpha = 1\.5"):
        smoothquant(readers(), stats, W8A8, None, alpha=1.5)
    with pytest.raises(NumericsError, match=r"K = 64 features.*\(48, 32\)"):
        smoothquant(readers(k=32), stats, W8A8, None)
    with pytest.raises(NumericsError, match="before a transform is nan"):
        smoothquant(readers(), stats, W8A8, lambda t: float("nan"))


@pytest.mark.parametrize("name", ["w4a16_g32", "w8a16", "w8a8", "w8a8_symmetric", "w8a8_static", "w4a8_g32_asym"])
@pytest.mark.parametrize("outlier", [1.0, 30.0])
def test_the_expected_error_is_near_the_measured_one(name: str, outlier: float) -> None:
    x, weights, scheme = tokens(outlier=outlier), readers(), SCHEMES[name]
    scale_K = smoothing_scale(statistics(x).absmax_K, torch.cat(weights).abs().amax(0), 0.5)
    for transformed in (None, Transformed(scale_K), Transformed(scale_K, torch.full_like(scale_K, 0.2))):
        expected = expected_error(weights, statistics(x), scheme)(transformed)
        assert expected == pytest.approx(measured_error(weights, x, scheme, transformed), rel=0.35)


def test_the_weights_part_of_the_expected_error_is_exact_in_what_it_measures() -> None:
    x, weights, scheme = tokens(outlier=30), readers(), SCHEMES["w4a16_g32"]
    expected = expected_error(weights, statistics(x), scheme)(None)
    assert expected == pytest.approx(measured_error(weights, x, scheme, None), rel=0.01)  # bf16 multiplication
    half = expected_error(weights, statistics(x), scheme, rows=32)(None)
    assert half == pytest.approx(expected, rel=0.3)
    assert half != expected


def test_without_a_gram_matrix_features_count_as_uncorrelated() -> None:
    x, weights, scheme = tokens(m=20_000), readers(), SCHEMES["w4a16_g32"]
    with_gram, without = (expected_error(weights, statistics(x, gram=g), scheme)(None) for g in (True, False))
    assert without == pytest.approx(with_gram, rel=0.05)


def test_rounding_to_zero_costs_no_more_than_the_value() -> None:
    x = tokens(outlier=1e6)
    noise_K = input_noise(statistics(x), QuantSpec(symmetric=False, per_tensor=True))
    mean_square_K = x.double().square().mean(0)
    torch.testing.assert_close(noise_K[:3], mean_square_K[:3], rtol=1e-5, atol=0)
    assert noise_K[3] < mean_square_K[3]


def test_without_alpha_dynamic_inputs_get_a_fixed_one_and_static_ones_the_best() -> None:
    stats = statistics(tokens(outlier=9))
    dynamic, static = (smoothquant(readers(), stats, SCHEMES[name], None) for name in ("w8a8", "w8a8_static"))
    searched = smoothquant(readers(), stats, SCHEMES["w8a8_static"], None, alpha="search")
    assert dynamic is not None
    assert static is not None
    assert searched is not None
    assert dynamic.notes["alpha"] == 0.4
    assert static.notes["alpha"] == searched.notes["alpha"]


@pytest.mark.parametrize(("largest", "least", "most"), [(1, 0.005, 0.03), (1000, 0.5, 2)])
def test_the_error_of_a_rounded_input_is_that_of_an_ordinary_token(largest: float, least: float, most: float) -> None:
    """Also where one token of a thousand is so large that it makes up all of the mean square."""
    x_MK, w_NK = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)), readers(64)[0]
    x_MK[::1000] *= largest
    spec = SCHEMES["w8a8_static_symmetric"].input
    assert spec is not None
    reach = x_MK.abs().max().reshape(1, 1)
    rounded = fake_quantize(x_MK, *scale_and_zero_point(-reach, reach, spec), spec)
    y_MN, moved_MN = x_MK @ w_NK.T, (rounded - x_MK) @ w_NK.T
    measured = float((moved_MN.norm(dim=1) / y_MN.norm(dim=1)).median())
    assert least < measured < most
    assert 0.7 < input_error(w_NK, statistics(x_MK), spec) / measured < 1.5
