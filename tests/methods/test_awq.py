"""Laws of AWQ scaling."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.methods.awq import awq
from bitwright.methods.slots import Transformed
from bitwright.numerics.grids import fake_quantize
from bitwright.numerics.ranges import absmax
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec

W4 = SCHEMES["w4a16_g32"]


def tokens(seed: int = 0, k: int = 64) -> Tensor:
    """Correlated features whose sizes range over two decades."""
    generator = torch.Generator().manual_seed(seed)
    sizes_K = 10 ** (2 * torch.rand(k, generator=generator) - 1)
    mixing_KK = torch.eye(k) + 0.3 * torch.randn(k, k, generator=generator) / k**0.5
    return torch.randn(256, k, generator=generator) @ mixing_KK * sizes_K


def readers(seed: int = 1, k: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, k, generator=generator) * 0.1 for n in (48, 16)]


def statistics(x_MK: Tensor, *, gram: bool = True) -> LayerStats:
    return observe(None, x_MK, gram=gram, histogram=False)


def measured_error(weights: list[Tensor], x_MK: Tensor, transformed: Transformed | None) -> float:
    """Squared output error per token of all readers, rounded to W4."""
    assert W4.weight is not None
    scale_K = torch.ones(x_MK.shape[1]) if transformed is None else transformed.scale_K
    rounded = [fake_quantize(w * scale_K, *absmax(w * scale_K, W4.weight), W4.weight) / scale_K for w in weights]
    return sum(float((x_MK @ (q - w).T).square().sum()) for q, w in zip(rounded, weights, strict=True)) / len(x_MK)


@pytest.mark.parametrize("duo", [True, False, "both"])
def test_the_float_function_is_unchanged(duo: bool | Literal["both"]) -> None:
    x = tokens()
    transformed = awq(readers(), statistics(x), W4, None, duo=duo)
    assert transformed is not None
    scale_K = transformed.scale_K.double()
    for w in (w.double() for w in readers()):
        torch.testing.assert_close((x.double() / scale_K) @ (w * scale_K).T, x.double() @ w.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("duo", [True, False, "both"])
def test_the_output_error_never_grows(seed: int, duo: bool | Literal["both"]) -> None:
    x, weights = tokens(seed), readers(seed + 100)
    transformed = awq(weights, statistics(x), W4, None, duo=duo)
    before, after = measured_error(weights, x, None), measured_error(weights, x, transformed)
    assert after <= before
    assert transformed is None or after < before
    if transformed is not None:
        assert transformed.notes["error_before"] == pytest.approx(before, rel=0.01)  # multiplied in bf16
        assert transformed.notes["error_after"] == pytest.approx(after, rel=0.01)


def test_uneven_inputs_gain_much() -> None:
    x = tokens()
    x[:, 7] *= 100
    transformed = awq(readers(), statistics(x), W4, None)
    assert measured_error(readers(), x, transformed) < measured_error(readers(), x, None) * 0.6


def test_trying_both_kinds_of_scale_is_no_worse_than_either() -> None:
    found = [awq(readers(), statistics(tokens()), W4, None, duo=duo) for duo in ("both", True, False)]
    both, *single = [float(t.notes["error_after"]) for t in found if t is not None]
    assert both == min(single)


def seen_candidates(*, duo: bool, grid: int = 20) -> list[Transformed]:
    seen: list[Transformed] = []

    def error(transformed: Transformed | None) -> float:
        if transformed is not None:
            seen.append(transformed)
        return 1.0

    assert awq(readers(), statistics(tokens()), W4, error, duo=duo, grid=grid) is None
    return seen


def test_exponent_0_scales_by_the_weights_alone() -> None:
    first, *_ = seen_candidates(duo=True)
    w_NGg = torch.cat(readers()).abs().reshape(64, 2, 32)
    w_K = (w_NGg / w_NGg.amax(-1, keepdim=True)).mean(0).flatten()
    evened = first.scale_K * (w_K + 1e-4)
    torch.testing.assert_close(evened, evened[:1].expand(64))


def test_without_the_weights_scales_are_powers_of_the_mean_magnitude() -> None:
    x_K = tokens().abs().mean(0)
    candidates = seen_candidates(duo=False, grid=8)
    assert [t.notes["exponent"] for t in candidates] == [step / 8 for step in range(1, 8)]
    for transformed in candidates:
        ratio = transformed.scale_K / x_K ** float(transformed.notes["exponent"])
        torch.testing.assert_close(ratio, ratio[:1].expand(64))


def test_scales_are_centred_on_1() -> None:
    for transformed in seen_candidates(duo=True) + seen_candidates(duo=False):
        assert float(transformed.scale_K.max() * transformed.scale_K.min()) == pytest.approx(1, rel=1e-5)


def test_a_given_error_decides() -> None:
    def error(transformed: Transformed | None) -> float:
        return 1.0 if transformed is None else abs(float(transformed.notes["exponent"]) - 0.25)

    found = awq(readers(), statistics(tokens()), W4, error, duo=False)
    assert found is not None
    assert found.notes["exponent"] == 0.25


def test_without_a_gram_matrix_the_diagonal_stands_in() -> None:
    x = tokens()
    transformed = awq(readers(), statistics(x, gram=False), W4, None)
    assert measured_error(readers(), x, transformed) < measured_error(readers(), x, None)


def test_dead_features_keep_scale_1() -> None:
    x = tokens()
    x[:, 5] = 0
    transformed = awq(readers(), statistics(x), W4, None)
    assert transformed is not None
    assert transformed.scale_K[5] == 1
    assert bool((torch.isfinite(transformed.scale_K) & (transformed.scale_K > 0)).all())
    assert awq(readers(), statistics(torch.zeros(8, 64)), W4, None) is None


def test_columns_of_zeros_leave_scales_finite() -> None:
    weights = readers()
    for w in weights:
        w[:, 7] = 0
        w[2] = 0
    transformed = awq(weights, statistics(tokens()), W4, None)
    assert transformed is not None
    assert bool((torch.isfinite(transformed.scale_K) & (transformed.scale_K > 0)).all())


def test_a_group_size_left_open_is_fitted() -> None:
    x, weights = tokens(k=96), readers(k=96)
    chosen, named = (awq(weights, statistics(x), SCHEMES[name], None) for name in ("w4a16", "w4a16_g32"))
    assert chosen is not None
    assert named is not None
    assert torch.equal(chosen.scale_K, named.scale_K)


def test_weights_in_16_bit_need_no_scale() -> None:
    assert awq(readers(), statistics(tokens()), SCHEMES["16bit"], None) is None


def test_the_range_function_is_used() -> None:
    seen: list[QuantSpec] = []

    def choose(values: Tensor, spec: QuantSpec, **options: torch.dtype) -> tuple[Tensor, Tensor | None]:
        seen.append(spec)
        return absmax(values, spec, **options)

    awq(readers(), statistics(tokens()), W4, None, duo=False, grid=4, range_function=choose)
    assert seen == [W4.weight] * 4  # once without a scale, and the exponents ¼, ½ and ¾


def test_bad_input_is_refused() -> None:
    stats, spoilt = statistics(tokens()), readers()
    spoilt[0][0, 0] = torch.inf
    with pytest.raises(NumericsError, match="1 of 3072"):
        awq(spoilt, stats, W4, None)
    with pytest.raises(NumericsError, match="grid = 0"):
        awq(readers(), stats, W4, None, grid=0)
    with pytest.raises(NumericsError, match="K = 64 features"):
        awq(readers(k=32), stats, W4, None)
