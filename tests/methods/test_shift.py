"""Laws of the shift (Outlier Suppression+)."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.methods.scaling import expected_error
from bitwright.methods.shift import shift
from bitwright.methods.slots import Transformed
from bitwright.methods.smoothquant import smoothquant
from bitwright.numerics.schemes import SCHEMES

STATIC = SCHEMES["w8a8_static_symmetric"]
SEARCH = partial(smoothquant, alpha="search")


def tokens(seed: int = 0) -> Tensor:
    """Normal features around 0, but for two outliers, each on one side only."""
    x_MK = torch.randn(256, 64, generator=torch.Generator().manual_seed(seed))
    x_MK[:, 3] += 80
    x_MK[:, 9] -= 50
    return x_MK


def weights(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 64, generator=generator) * 0.1 for n in (48, 16)]


def statistics(x_MK: Tensor) -> LayerStats:
    return observe(None, x_MK, gram=True, histogram=False)


@pytest.mark.parametrize("then", [None, SEARCH], ids=["alone", "scaled"])
def test_the_float_function_is_unchanged(then: partial[Transformed | None] | None) -> None:
    x = tokens()
    transformed = shift(weights(), statistics(x), STATIC, None, then=then)
    assert transformed is not None
    assert transformed.shift_K is not None
    scale_K, shift_K = transformed.scale_K.double(), transformed.shift_K.double()
    for w in (w.double() for w in weights()):
        y = ((x.double() - shift_K) / scale_K) @ (w * scale_K).T + w @ shift_K
        torch.testing.assert_close(y, x.double() @ w.T, rtol=1e-9, atol=1e-9)


def test_every_feature_lies_evenly_around_zero_afterwards() -> None:
    x = tokens()
    transformed = shift(weights(), statistics(x), STATIC, None)
    assert transformed is not None
    assert transformed.shift_K is not None
    moved = x - transformed.shift_K
    torch.testing.assert_close(moved.amax(0), -moved.amin(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(transformed.scale_K, torch.ones(64))


def test_each_step_reduces_the_error() -> None:
    error = expected_error(weights(), statistics(tokens()), STATIC)
    alone = shift(weights(), statistics(tokens()), STATIC, None)
    both = shift(weights(), statistics(tokens()), STATIC, None, then=SEARCH)
    assert error(both) < error(alone) < error(None) / 20
    assert both is not None
    assert both.notes["error_after"] == error(both)
    assert both.notes["error_before"] == error(None)
    assert "alpha" in both.notes


def test_the_other_transform_sees_the_shifted_input() -> None:
    seen: list[LayerStats] = []

    def then(weights_: object, stats: LayerStats, *_: object) -> None:
        seen.append(stats)

    shift(weights(), statistics(tokens()), STATIC, None, then=then)
    assert any(torch.allclose(stats.max_K, -stats.min_K, atol=1e-4) for stats in seen)


def test_no_shift_where_scaling_alone_is_better() -> None:
    def error(transformed: Transformed | None) -> float:
        return 2.0 if transformed is None else 3.0 if transformed.shift_K is not None else 1.0

    found = shift(weights(), statistics(tokens()), STATIC, error, then=smoothquant)
    assert found is not None
    assert found.shift_K is None
    assert shift(weights(), statistics(tokens()), STATIC, error) is None


def test_a_constant_feature_vanishes_and_keeps_scale_1() -> None:
    x = tokens()
    x[:, 5] = 7.0
    found = shift(weights(), statistics(x), STATIC, None, then=SEARCH)
    assert found is not None
    assert found.shift_K is not None
    assert found.shift_K[5] == 7
    assert found.scale_K[5] == 1


def test_nan_is_refused() -> None:
    spoilt = weights()
    spoilt[0][0, 0] = torch.nan
    with pytest.raises(NumericsError, match="1 of 3072"):
        shift(spoilt, statistics(tokens()), STATIC, None)
