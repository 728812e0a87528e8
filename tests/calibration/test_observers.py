"""Laws of observation: batches merge, and padding that the caller dropped leaves no trace."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.calibration.observers import LayerStats, merge, observe, rescaled
from bitwright.errors import NumericsError
from bitwright.kernels import cpu
from bitwright.numerics.linear import InputTransform


def tokens(seed: int, m: int, magnitude: float = 1.0) -> Tensor:
    return magnitude * torch.randn(m, 12, generator=torch.Generator().manual_seed(seed))


def assert_equal(a: LayerStats, b: LayerStats, *, same_batches: bool = True) -> None:
    """Exactly, but for the sums."""
    assert a.n_tokens == b.n_tokens
    assert torch.equal(a.min_K, b.min_K)
    assert torch.equal(a.max_K, b.max_K)
    assert torch.equal(a.histogram.counts, b.histogram.counts)
    assert a.histogram.width == b.histogram.width
    assert_sums_close(a, b)
    if same_batches:
        assert a.histogram.batch_ranges == b.histogram.batch_ranges


def assert_sums_close(a: LayerStats, b: LayerStats) -> None:
    """To float32's rounding of what was added up."""
    torch.testing.assert_close(a.sum_abs_K, b.sum_abs_K, rtol=1e-6, atol=0)
    torch.testing.assert_close(a.sum_sq_K, b.sum_sq_K, rtol=1e-6, atol=0)
    assert bool(((a.sum_K - b.sum_K).abs() <= 1e-6 * a.sum_abs_K).all())
    assert (a.gram_KK is None) == (b.gram_KK is None)
    if a.gram_KK is not None:
        size = a.sum_sq_K.sqrt()
        assert bool(((a.gram_KK - b.gram_KK).abs() <= 2e-6 * torch.outer(size, size)).all())


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-40, 40)), min_size=2, max_size=5))
@settings(max_examples=40)
def test_observing_in_parts_equals_observing_at_once(sizes: list[tuple[int, int]]) -> None:
    parts = [tokens(i, m, 2.0**exponent) for i, (m, exponent) in enumerate(sizes)]
    observing = functools.partial(observe, gram=True)
    apart = functools.reduce(merge, [observing(None, part) for part in parts])
    in_turn = functools.reduce(observing, parts[1:], observing(None, parts[0]))
    assert_equal(apart, in_turn)
    assert_equal(apart, observing(None, torch.cat(parts)), same_batches=False)


@pytest.mark.parametrize("k", [12, 400, 800])  # one block of the Gram matrix; several, of which the last is narrower
@pytest.mark.parametrize("gram", [True, False])
def test_sums_are_those_of_float64(k: int, gram: bool) -> None:
    x = torch.randn(1100, k, generator=torch.Generator().manual_seed(3)) + torch.linspace(-2, 2, k)
    d = x.double()
    want = LayerStats(
        len(x), x.amin(0), x.amax(0), d.sum(0), d.abs().sum(0), d.square().sum(0), None, d.T @ d if gram else None
    )
    stats = observe(None, x, gram=gram, histogram=False)
    assert_sums_close(stats, want)
    assert torch.equal(stats.min_K, want.min_K)
    assert torch.equal(stats.max_K, want.max_K)
    assert (stats.sum_K.dtype, stats.sum_sq_K.dtype) == (torch.float64, torch.float64)
    if stats.gram_KK is not None:
        assert stats.gram_KK.dtype == torch.float32
        assert torch.equal(stats.gram_KK[:384, 384:], stats.gram_KK[384:, :384].T)


needs_bf16 = pytest.mark.skipif(not cpu.has_gram(), reason="this machine does not multiply bf16")


@needs_bf16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fast_statistics_are_those_of_tokens_rounded_for_the_gram_matrix_alone(dtype: torch.dtype) -> None:
    parts = [tokens(i, m, 2.0**exponent).to(dtype) for i, (m, exponent) in enumerate([(700, 0), (1, 3), (90, -4)])]
    fast = functools.reduce(functools.partial(observe, gram=True, fast=True), parts, None)
    plain = functools.reduce(functools.partial(observe, gram=True), parts, None)
    rounded = functools.reduce(functools.partial(observe, gram=True), [x.bfloat16() for x in parts], None)
    assert_equal(fast, replace(plain, gram_KK=rounded.gram_KK, sum_sq_K=rounded.sum_sq_K))
    assert torch.equal(fast.gram_KK, fast.gram_KK.T)
    assert torch.equal(fast.sum_sq_K, fast.gram_KK.diagonal().double())


@needs_bf16
def test_fast_takes_the_gram_matrix_over_and_leaves_the_rest() -> None:
    first = observe(None, tokens(0, 30), gram=True, fast=True)
    low_K, sum_K = first.min_K.clone(), first.sum_K.clone()
    second = observe(first, 4 * tokens(1, 30), gram=True, fast=True)
    assert second.gram_KK is first.gram_KK
    assert torch.equal(first.min_K, low_K)
    assert torch.equal(first.sum_K, sum_K)
    x = tokens(2, 5)
    before = x.clone()
    observe(None, x, gram=True, fast=True)
    assert torch.equal(x, before)


@needs_bf16
def test_fast_without_a_gram_matrix_to_add_to_lacks_it_as_a_merge_does() -> None:
    plain = observe(None, tokens(0, 30))
    assert observe(plain, tokens(1, 30), gram=True, fast=True).gram_KK is None
    assert_equal(observe(plain, tokens(1, 30), fast=True), observe(plain, tokens(1, 30)))


def test_fast_on_a_cpu_that_does_not_multiply_bf16_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_gram", lambda: False)
    first = observe(None, tokens(0, 30), gram=True)
    gram_KK = first.gram_KK.clone()
    fast, plain = (observe(first, tokens(1, 30), gram=True, fast=fast) for fast in (True, False))
    assert torch.equal(fast.gram_KK, plain.gram_KK)
    assert torch.equal(first.gram_KK, gram_KK)


@pytest.mark.parametrize("shifted", [True, False])
def test_rescaled_statistics_are_those_of_rescaled_tokens(shifted: bool) -> None:
    x, scale = tokens(4, 300) + 3, torch.rand(12, generator=torch.Generator().manual_seed(5)) + 0.5
    shift = torch.linspace(-4, 4, 12) if shifted else None
    moved = rescaled(observe(None, x, gram=True), InputTransform(scale, shift))
    want = observe(None, ((x.double() - (0 if shift is None else shift)) / scale).float(), gram=True, histogram=False)
    assert moved.histogram is None
    assert moved.n_tokens == want.n_tokens
    torch.testing.assert_close(moved.min_K, want.min_K)
    torch.testing.assert_close(moved.absmax_K, want.absmax_K)
    torch.testing.assert_close(moved.mean_K, want.mean_K, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved.sum_sq_K, want.sum_sq_K, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(moved.gram_KK, want.gram_KK, rtol=1e-5, atol=2e-2)
    if shifted:
        with pytest.raises(NumericsError, match="not known after a shift"):
            _ = moved.mean_abs_K
    else:
        torch.testing.assert_close(moved.mean_abs_K, want.mean_abs_K, rtol=1e-6, atol=0)


def test_what_one_side_lacks_the_merged_lack() -> None:
    full, plain = observe(None, tokens(6, 5), gram=True), observe(None, tokens(7, 5), histogram=False)
    both = merge(full, plain)
    assert both.gram_KK is None
    assert both.histogram is None
    assert both.n_tokens == 10


def test_statistics_are_those_of_the_tokens() -> None:
    x = tokens(0, 40)
    stats = observe(observe(None, x[:13]), x[13:])
    assert stats.n_tokens == 40
    assert torch.equal(stats.absmax_K, x.abs().amax(0))
    assert torch.equal(stats.min_K, x.amin(0))
    assert torch.equal(stats.max_K, x.amax(0))
    torch.testing.assert_close(stats.mean_abs_K, x.double().abs().mean(0), rtol=1e-6, atol=0)
    assert stats.histogram.counts.sum() == x.numel()


def test_dropped_padding_leaves_no_trace() -> None:
    x_BTK, mask_BT = tokens(1, 24).reshape(4, 6, 12), torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    poisoned = torch.where(mask_BT[..., None], x_BTK, torch.full_like(x_BTK, 1e30))
    assert_equal(observe(None, poisoned[mask_BT]), observe(None, x_BTK[mask_BT]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_more(dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("fast", [True, False])
def test_what_cannot_be_observed_is_refused(fast: bool) -> None:
    observing = functools.partial(observe, gram=True, fast=fast)
    with pytest.raises(NumericsError, match="rows of tokens"):
        observing(None, torch.ones(2, 3, 4))
    with pytest.raises(NumericsError, match=r"shape is \(0, 4\); remove"):
        observing(None, torch.ones(0, 4))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(NumericsError, match="1 of 8 are NaN"):
            observing(None, torch.tensor([[1.0] * 8, [1.0] * 7 + [bad]]))
    with pytest.raises(NumericsError, match="K = 4 and of K = 5"):
        observing(observing(None, torch.ones(1, 4)), torch.ones(1, 5))
