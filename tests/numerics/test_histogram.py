"""Laws of the histogram: it merges exactly, counts everything, and knows its extremes."""

import functools
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import Histogram

# Batches whose magnitudes may differ by eighty orders.
largest = float(torch.finfo(torch.float32).max)
batches = st.lists(
    npst.arrays(np.float32, st.integers(1, 9), elements=st.floats(-largest, largest, width=32)).map(torch.from_numpy),
    min_size=2,
    max_size=4,
)


def merged(parts: list[Tensor]) -> Histogram:
    return functools.reduce(operator.add, [Histogram.of(part) for part in parts])


@given(batches)
def test_merging_equals_counting_at_once(parts: list[Tensor]) -> None:
    at_once, in_parts = Histogram.of(torch.cat(parts)), merged(parts)
    assert torch.equal(in_parts.counts, at_once.counts)
    assert (in_parts.width, in_parts.minimum, in_parts.maximum) == (at_once.width, at_once.minimum, at_once.maximum)


@given(batches)
def test_order_and_grouping_do_not_matter(parts: list[Tensor]) -> None:
    assert torch.equal(merged(parts).counts, merged(parts[::-1]).counts)
    head, tail = merged(parts[:1]), merged(parts[1:])
    assert torch.equal((head + tail).counts, merged(parts).counts)


@given(batches)
def test_each_value_lies_in_its_bin(parts: list[Tensor]) -> None:
    h = merged(parts)
    values = torch.cat(parts).double().numpy()
    index = np.searchsorted(h.edges.numpy(), values, side="right") - 1
    assert np.array_equal(np.bincount(index, minlength=len(h.counts)), h.counts.numpy())


@given(batches)
def test_extremes_are_exact_and_batches_keep_their_order(parts: list[Tensor]) -> None:
    h = merged(parts)
    assert h.batch_ranges == tuple((float(part.min()), float(part.max())) for part in parts)
    assert h.minimum == torch.cat(parts).min()
    assert h.maximum == torch.cat(parts).max()
    assert h.absmax == torch.cat(parts).abs().max()


@given(batches)
def test_magnitudes_use_thousands_of_bins(parts: list[Tensor]) -> None:
    h = merged(parts)
    assert h.magnitude_counts.sum() == sum(part.numel() for part in parts)
    if h.absmax:
        assert 2048 <= len(h.magnitude_counts) <= 4096
        assert (len(h.magnitude_counts) - 1) * h.width <= h.absmax <= len(h.magnitude_counts) * h.width


def test_zeros_fit_any_width() -> None:
    zeros, tiny = Histogram.of(torch.zeros(5)), Histogram.of(torch.tensor([1e-45]))
    assert zeros.absmax == 0
    assert zeros.magnitude_counts.tolist() == [5]
    assert torch.equal((zeros + tiny).counts, Histogram.of(torch.tensor([1e-45] + [0.0] * 5)).counts)


def test_memory_does_not_grow_with_the_data() -> None:
    few = Histogram.of(torch.randn(10))
    many = functools.reduce(operator.add, [Histogram.of(torch.randn(1000) * 2**i) for i in range(20)])
    assert few.counts.shape == many.counts.shape
    assert many.counts.sum() == 20_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_and_shape_is_read_as_float32(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(Histogram.of(x).counts, Histogram.of(x.float().flatten()).counts)


def test_merging_leaves_its_arguments_alone() -> None:
    a, b = Histogram.of(torch.ones(3)), Histogram.of(torch.full((2,), 1e6))
    before = a.counts.clone(), b.counts.clone()
    _ = a + b
    assert torch.equal(a.counts, before[0])
    assert torch.equal(b.counts, before[1])


def test_nan_infinity_and_nothing_are_refused() -> None:
    with pytest.raises(NumericsError, match="2 of 3 are NaN or infinite"):
        Histogram.of(torch.tensor([1.0, torch.nan, -torch.inf]))
    with pytest.raises(NumericsError, match="empty"):
        Histogram.of(torch.ones(0, 8))
