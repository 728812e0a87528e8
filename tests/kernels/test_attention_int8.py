"""Every variant of attention in integers against its definition in float64."""

import pytest
import torch

from bitwright.kernels import reference
from tests.kernels.test_attention import SHAPES, SHORT_AND_LONG, biases, exact, matrices, qkv, same

# Of the outputs' norm: rounding to bf16 is 0.0011 of it, a weight that is one code off now and then the rest.
CLOSE = 0.004


def definition(q, k, v, scale, **options):
    options = {name: x.double() if torch.is_tensor(x) else x for name, x in options.items()}
    return reference.attention_int8(q.double(), k.double(), v.double(), scale, **options)


def assert_as_defined(found, *problem, **options):
    """As close to the definition as rounding allows, and no farther from exact attention than twice the definition."""
    found, want, right = found.double(), definition(*problem, **options), exact(*problem, **options)
    of_floats = (found - right).norm() <= CLOSE * right.norm()  # a short sequence may be computed in floats
    assert of_floats or (found - want).norm() <= CLOSE * right.norm()
    assert (found - right).norm() <= 2 * (want - right).norm() + CLOSE * right.norm()


@pytest.mark.parametrize(("tokens", "size"), SHAPES)
def test_as_defined(attention_int8, tokens, size):
    problem = qkv(tokens, size)
    assert_as_defined(attention_int8(*problem), *problem)


@pytest.mark.parametrize(("tokens", "size"), SHORT_AND_LONG)
def test_bias_is_added_by_distance(attention_int8, tokens, size):
    problem, bias = qkv(tokens, size), biases(tokens)
    assert_as_defined(attention_int8(*problem, bias_HR=bias), *problem, bias_HR=bias)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("tokens", "size"), [(1, 32), *SHORT_AND_LONG])
def test_bias_of_each_query_and_key_is_added(attention_int8, tokens, size, window):
    problem, options = qkv(tokens, size), {"bias_HQK": matrices(tokens), "window": window}
    whole = attention_int8(*problem, **options)
    assert_as_defined(whole, *problem, **options)
    part = attention_int8(*problem, **options, heads=slice(2, 3), queries=slice(tokens // 2, tokens))
    assert same(part[tokens // 2 :, 2], whole[tokens // 2 :, 2])


@pytest.mark.parametrize("window", [0, 1, 7, 31, 63, 64, 65, 150])
@pytest.mark.parametrize(("tokens", "size"), [*SHORT_AND_LONG, (600, 32)])
def test_keys_outside_the_window_are_left_out(attention_int8, tokens, size, window):
    problem, bias = qkv(tokens, size), biases(tokens)
    assert_as_defined(attention_int8(*problem, window=window), *problem, window=window)
    both = {"window": window, "bias_HR": bias}
    assert_as_defined(attention_int8(*problem, **both), *problem, **both)


def test_window_past_the_end_changes_nothing(attention_int8):
    problem = qkv(90, 32)
    assert same(attention_int8(*problem, window=89), attention_int8(*problem))
    assert same(attention_int8(*problem, window=2**62), attention_int8(*problem))


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (100, 24), (200, 64)])
def test_part_of_the_range_has_the_same_bytes(attention_int8, tokens, size, window):
    problem, options = qkv(tokens, size), {"window": window, "bias_HR": biases(tokens)}
    whole = attention_int8(*problem, **options)
    for begin, end in ((0, 1), (3, 16), (5, tokens), (tokens - 1, tokens), (8, 8)):
        part = attention_int8(*problem, **options, heads=slice(1, 2), queries=slice(begin, end))
        assert same(part[begin:end, 1], whole[begin:end, 1])
        part[begin:end, 1] = torch.nan
        assert part.isnan().all()


@pytest.mark.parametrize(("tokens", "size"), SHORT_AND_LONG)
def test_addresses_may_be_unaligned(attention_int8, tokens, size):
    problem = qkv(tokens, size)
    assert all(same(attention_int8(*problem, offset=offset), attention_int8(*problem)) for offset in (1, 8, 31))


def test_equal_scores_average_the_codes_exactly(attention_int8):
    """Keys that are all alike are zero once their mean is taken, and each weight is 255."""
    q, k, v, scale = qkv(192, 32)
    k = k[:1].expand(192, -1, -1)
    v = torch.randint(-127, 128, v.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    v[0] = 127
    mean = v.double().mean(dim=0)
    assert ((attention_int8(q, k, v, scale) - mean).abs() <= 2**-8 * mean.abs()).all()


@pytest.mark.parametrize("tokens", [4096, 8192])
def test_a_flat_tail_beside_a_sink_keeps_its_weight(attention_int8, tokens):
    """The first key has half of a query's weight, and each of the others so little that one byte for the whole row
    would round it to zero."""
    size, rows = 32, slice(tokens // 2, tokens // 2 + 5)
    q, k, v = torch.zeros(3, tokens, 1, size).bfloat16()
    q[:, :, 0], k[0, :, 0], v[1:] = size**0.5, torch.tensor(tokens - 1).log(), 1.0
    found = attention_int8(q, k, v, size**-0.5, queries=rows)[rows]
    score = (q[rows.start, 0].double() @ k[:, 0].double().T) * size**-0.5
    want = score.softmax(dim=0) @ v[:, 0].double()
    assert 0.4 < want[0] < 0.6
    assert (found[:, 0] - want).abs().max() < 0.01


@pytest.mark.parametrize("magnitude", [1e4, -1e4, 1e6])
def test_large_scores_do_not_overflow(attention_int8, magnitude):
    q, k, v, scale = qkv(70, 32)
    k[:, :, 1:] = 0
    q[:, :, 0] = 1
    order = torch.randperm(70, generator=torch.Generator().manual_seed(1))
    k[:, :, 0] = magnitude * torch.linspace(0.5, 1, 70).bfloat16()[order, None]
    assert_as_defined(attention_int8(q, k, v, scale), q, k, v, scale)
    bias = biases(70)
    bias[:, ::2] = torch.tensor(magnitude).bfloat16().float()
    assert attention_int8(q, k, v, scale, bias_HR=bias).isfinite().all()


@pytest.mark.parametrize("part", range(3))
def test_zeros_and_subnormals_are_no_nan(attention_int8, part):
    problem = [x.clone() for x in qkv(70, 32)[:3]]
    for tiny in (0.0, 1e-39, -1e-39):
        problem[part][:, 1] = tiny
        assert attention_int8(*problem, 0.2).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (70, 24), (70, 64)])
def test_query_that_is_not_finite_makes_its_row_nan(attention_int8, tokens, size, biased, bad):
    q, k, v, scale = qkv(tokens, size)
    bias = biases(tokens) if biased else None
    want = attention_int8(q, k, v, scale, bias_HR=bias)
    q[9, 1, size - 1] = bad
    found = attention_int8(q, k, v, scale, bias_HR=bias)
    assert found[9, 1].isnan().all()
    found[9, 1] = want[9, 1]
    assert same(found, want)


@pytest.mark.parametrize("window", [None, 20, 3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (70, 24), (130, 64)])
def test_head_with_a_key_or_value_that_is_not_finite_is_computed_in_floats(
    attention_int8, tokens, size, part, bad, window
):
    q, k, v, scale = qkv(tokens, size)
    want = attention_int8(q, k, v, scale, window=window)
    (k if part == "keys" else v)[9, 1, size - 1] = bad
    found = attention_int8(q, k, v, scale, window=window)
    assert same(found[:, ::2], want[:, ::2])
    sees = slice(0, tokens) if window is None else slice(max(9 - window, 0), 9 + window + 1)
    dimensions = slice(0, size) if part == "keys" else slice(size - 1, size)
    assert found[sees, 1, dimensions].isnan().all()
    rest = torch.ones(tokens, size, dtype=torch.bool)
    rest[sees, dimensions] = False
    right = exact(q, k.where(k.isfinite(), 0), v.where(v.isfinite(), 0), scale, window=window)[:, 1]
    assert (found[:, 1][rest] - right[rest]).abs().max() < 0.05 if rest.any() else True


def test_bias_that_is_nan_makes_nan_of_the_rows_that_add_it(attention_int8):
    problem, bias = qkv(90, 32), biases(90)
    bias[1, 89 - 30] = torch.nan  # thirty tokens before the query
    found = attention_int8(*problem, bias_HR=bias)
    assert found[30:, 1].isnan().all()
    assert found.isnan().sum() == 60 * 32


def test_long_sequence(attention_int8):
    q, k, v, scale = qkv(8192, 8, heads=1)
    rows = slice(8000, 8040)
    found = attention_int8(q, k, v, scale, queries=rows)[rows]
    right = torch.einsum("qhd,khd->hqk", q[rows].double(), k.double()).mul(scale).softmax(dim=-1)
    right = torch.einsum("hqk,khd->qhd", right, v.double())
    assert (found - right).norm() < 0.05 * right.norm()
