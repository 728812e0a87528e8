"""Laws of observation: batches merge, and padding that the caller dropped leaves no trace."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.calibration.observers import LayerStats, merge, observe
from bitwright.errors import NumericsError


def tokens(seed: int, m: int, magnitude: float = 1.0) -> Tensor:
    return magnitude * torch.randn(m, 12, generator=torch.Generator().manual_seed(seed))


def assert_equal(a: LayerStats, b: LayerStats, *, same_batches: bool = True) -> None:
    """Exactly, but for the float64 sums."""
    assert a.n_tokens == b.n_tokens
    assert torch.equal(a.min_K, b.min_K)
    assert torch.equal(a.max_K, b.max_K)
    assert torch.equal(a.histogram.counts, b.histogram.counts)
    assert a.histogram.width == b.histogram.width
    torch.testing.assert_close(a.sum_abs_K, b.sum_abs_K, rtol=1e-12, atol=0)
    if same_batches:
        assert a.histogram.batch_ranges == b.histogram.batch_ranges


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-40, 40)), min_size=2, max_size=5))
@settings(derandomize=True, database=None, deadline=None, max_examples=40)
def test_observing_in_parts_equals_observing_at_once(sizes: list[tuple[int, int]]) -> None:
    parts = [tokens(i, m, 2.0**exponent) for i, (m, exponent) in enumerate(sizes)]
    apart = functools.reduce(merge, [observe(None, part) for part in parts])
    in_turn = functools.reduce(observe, parts[1:], observe(None, parts[0]))
    assert_equal(apart, in_turn)
    assert_equal(apart, observe(None, torch.cat(parts)), same_batches=False)


def test_statistics_are_those_of_the_tokens() -> None:
    x = tokens(0, 40)
    stats = observe(observe(None, x[:13]), x[13:])
    assert stats.n_tokens == 40
    assert torch.equal(stats.absmax_K, x.abs().amax(0))
    assert torch.equal(stats.min_K, x.amin(0))
    assert torch.equal(stats.max_K, x.amax(0))
    torch.testing.assert_close(stats.mean_abs_K, x.double().abs().mean(0), rtol=1e-12, atol=0)
    assert stats.histogram.counts.sum() == x.numel()


def test_dropped_padding_leaves_no_trace() -> None:
    x_BTK, mask_BT = tokens(1, 24).reshape(4, 6, 12), torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    poisoned = torch.where(mask_BT[..., None], x_BTK, torch.full_like(x_BTK, 1e30))
    assert_equal(observe(None, poisoned[mask_BT]), observe(None, x_BTK[mask_BT]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_float64(dtype: torch.dtype) -> None:
    """65 536 ones overflow float16, and stop growing at 256 in bfloat16."""
    stats = observe(None, torch.ones(65_536, 1, dtype=dtype))
    assert stats.sum_abs_K.item() == 65_536
    assert stats.mean_abs_K.item() == 1


def test_arguments_are_left_alone_and_gradients_are_not_kept() -> None:
    x = tokens(0, 5).requires_grad_()
    first = observe(None, x)
    counts = first.histogram.counts.clone()
    second = observe(first, x)
    assert torch.equal(first.histogram.counts, counts)
    assert first.n_tokens == 5
    assert not second.sum_abs_K.requires_grad


def test_what_cannot_be_observed_is_refused() -> None:
    with pytest.raises(NumericsError, match="rows of tokens"):
        observe(None, torch.ones(2, 3, 4))
    with pytest.raises(NumericsError, match="empty"):
        observe(None, torch.ones(0, 4))
    with pytest.raises(NumericsError, match="1 of 8 are NaN"):
        observe(None, torch.tensor([[1.0] * 7 + [torch.nan]]))
    with pytest.raises(NumericsError, match="K = 4 and K = 5"):
        observe(observe(None, torch.ones(1, 4)), torch.ones(1, 5))
