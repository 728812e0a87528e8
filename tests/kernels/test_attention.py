"""Every variant of attention against its definition in float64, by the measure of torch's own bf16 attention."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bitwright.kernels import reference

SIZES = [8, 16, 24, 32, 40, 64, 80, 128]
TOKENS = [1, 2, 15, 16, 17, 31, 33, 100, 128, 200, 512, 600]
# Each size and each length, the most common of each with all of the other.
SHAPES = sorted({(t, d) for t in TOKENS for d in (32, 64)} | {(t, d) for t in (17, 128) for d in SIZES})
SHORT_AND_LONG = [(5, 32), (33, 32), (100, 40), (200, 64)]


def qkv(tokens, size, heads=3):
    """Same sizes, same numbers; scores of a standard deviation of about two."""
    g = torch.Generator().manual_seed(tokens * 1000 + size)
    q, k, v = torch.randn(3, tokens, heads, size, generator=g).bfloat16()
    return (q * 2).bfloat16(), k, v, size**-0.5


def biases(tokens, heads=3):
    """Exact in bf16, so that torch adds the same; ALiBi-like, and uneven."""
    distance = torch.arange(-tokens + 1, tokens)
    slope = -torch.tensor([0.25, 0.0, -0.03125])[:heads, None]
    noise = torch.randn(heads, 2 * tokens - 1, generator=torch.Generator().manual_seed(tokens))
    return (slope * distance.abs() + noise).bfloat16().float().contiguous()


def matrices(tokens, heads=3):
    """A bias for each query and key, exact in bf16; between rows and heads lies NaN."""
    g = torch.Generator().manual_seed(tokens)
    wider = torch.full((heads, tokens + 1, tokens + 3), torch.nan)
    wider[:, :tokens, :tokens] = torch.randn(heads, tokens, tokens, generator=g).mul(2).bfloat16().float()
    return wider[:, :tokens, :tokens]


def exact(q, k, v, scale, **options):
    options = {name: x.double() if torch.is_tensor(x) else x for name, x in options.items()}
    return reference.attention(q.double(), k.double(), v.double(), scale, **options)


def torchs(q, k, v, scale, *, bias_HR=None, bias_HQK=None, window=None):
    tokens = torch.arange(len(q))
    distance = tokens - tokens[:, None]
    mask = bias_HQK
    if bias_HR is not None:
        mask = bias_HR[:, distance + len(q) - 1]
    if mask is not None or window is not None:
        mask = torch.zeros(1, len(q), len(q)) if mask is None else mask
        if window is not None:
            mask = mask.masked_fill(distance.abs() > window, -torch.inf)
        mask = mask.bfloat16()[None]
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale)[0].transpose(0, 1)


def assert_as_good_as_torch(found, *problem, **options):
    want = exact(*problem, **options)
    assert (found - want).abs().max() <= 2 * (torchs(*problem, **options) - want).abs().max()


def same(a, b):
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


@pytest.mark.parametrize(("tokens", "size"), SHAPES)
def test_as_good_as_torch(attention, tokens, size):
    problem = qkv(tokens, size)
    assert_as_good_as_torch(attention(*problem), *problem)


@pytest.mark.parametrize(("tokens", "size"), SHORT_AND_LONG)
def test_bias_is_added_by_distance(attention, tokens, size):
    problem, bias = qkv(tokens, size), biases(tokens)
    assert_as_good_as_torch(attention(*problem, bias_HR=bias), *problem, bias_HR=bias)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("tokens", "size"), [(1, 32), *SHORT_AND_LONG])
def test_bias_of_each_query_and_key_is_added(attention, tokens, size, window):
    problem, options = qkv(tokens, size), {"bias_HQK": matrices(tokens), "window": window}
    whole = attention(*problem, **options)
    assert_as_good_as_torch(whole, *problem, **options)
    part = attention(*problem, **options, heads=slice(2, 3), queries=slice(tokens // 2, tokens))
    assert same(part[tokens // 2 :, 2], whole[tokens // 2 :, 2])


def test_a_bias_by_distance_is_one_of_each_query_and_key(attention):
    problem, bias = qkv(70, 32), biases(70)
    distance = torch.arange(70) - torch.arange(70)[:, None]
    assert same(attention(*problem, bias_HR=bias), attention(*problem, bias_HQK=bias[:, distance + 69].contiguous()))


@pytest.mark.parametrize("window", [0, 1, 7, 31, 64, 150])
@pytest.mark.parametrize(("tokens", "size"), [*SHORT_AND_LONG, (600, 32)])
def test_keys_outside_the_window_are_left_out(attention, tokens, size, window):
    problem, bias = qkv(tokens, size), biases(tokens)
    assert_as_good_as_torch(attention(*problem, window=window), *problem, window=window)
    both = {"window": window, "bias_HR": bias}
    assert_as_good_as_torch(attention(*problem, **both), *problem, **both)


def test_window_past_the_end_changes_nothing(attention):
    problem = qkv(40, 32)
    assert same(attention(*problem, window=39), attention(*problem))
    assert same(attention(*problem, window=2**62), attention(*problem))


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (100, 24), (200, 64)])
def test_part_of_the_range_has_the_same_bytes(attention, tokens, size, window):
    problem, options = qkv(tokens, size), {"window": window, "bias_HR": biases(tokens)}
    whole = attention(*problem, **options)
    for begin, end in ((0, 1), (3, 16), (5, tokens), (tokens - 1, tokens), (8, 8)):
        part = attention(*problem, **options, heads=slice(1, 2), queries=slice(begin, end))
        assert same(part[begin:end, 1], whole[begin:end, 1])
        part[begin:end, 1] = torch.nan
        assert part.isnan().all()


@pytest.mark.parametrize(("tokens", "size"), SHORT_AND_LONG)
def test_addresses_may_be_unaligned(attention, tokens, size):
    problem = qkv(tokens, size)
    assert all(same(attention(*problem, offset=offset), attention(*problem)) for offset in (1, 8, 31))


@pytest.mark.parametrize("magnitude", [1e4, -1e4, 1e6])
def test_large_scores_do_not_overflow(attention, magnitude):
    q, k, v, scale = qkv(70, 32)
    k[:, :, 1:] = 0
    q[:, :, 0] = 1
    k[:, :, 0] = torch.linspace(0.5, 1, 70).bfloat16()[
        torch.randperm(70, generator=torch.Generator().manual_seed(1)), None
    ]
    k[:, :, 0] *= magnitude
    problem = q, k, v, scale
    assert_as_good_as_torch(attention(*problem), *problem)
    bias = biases(70)
    bias[:, ::2] = torch.tensor(magnitude).bfloat16().float()
    assert attention(*problem, bias_HR=bias).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (70, 24), (70, 64)])
def test_query_that_is_not_finite_makes_its_row_nan(attention, tokens, size, bad):
    q, k, v, scale = qkv(tokens, size)
    want = attention(q, k, v, scale)
    q[9, 1, size - 1] = bad
    found = attention(q, k, v, scale)
    assert found[9, 1].isnan().all()
    found[9, 1] = want[9, 1]
    assert same(found, want)


@pytest.mark.parametrize("window", [None, 20, 3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (70, 24), (70, 64)])
def test_key_that_is_not_finite_makes_nan_of_the_rows_that_see_it(attention, tokens, size, bad, window):
    q, k, v, scale = qkv(tokens, size)
    want = attention(q, k, v, scale, window=window)
    k[9, 1, size - 1] = bad
    found = attention(q, k, v, scale, window=window)
    sees = slice(0, tokens) if window is None else slice(max(9 - window, 0), 9 + window + 1)
    assert found[sees, 1].isnan().all()
    found[sees, 1] = want[sees, 1]
    assert same(found, want)
    part = attention(q, k, v, scale, window=window, queries=slice(11, 15))
    part[sees, 1] = want[sees, 1]
    assert same(part[11:15], want[11:15])


@pytest.mark.parametrize("window", [None, 20, 3])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("tokens", "size"), [(17, 32), (70, 24), (70, 64)])
def test_value_that_is_not_finite_makes_nan_of_its_dimension(attention, tokens, size, bad, window):
    q, k, v, scale = qkv(tokens, size)
    want = attention(q, k, v, scale, window=window)
    v[9, 1, size - 1] = bad
    found = attention(q, k, v, scale, window=window)
    sees = slice(0, tokens) if window is None else slice(max(9 - window, 0), 9 + window + 1)
    assert found[sees, 1, size - 1].isnan().all()
    found[sees, 1, size - 1] = want[sees, 1, size - 1]
    assert same(found, want)


def test_bias_that_is_nan_makes_nan_of_the_rows_that_add_it(attention):
    problem, bias = qkv(40, 32), biases(40)
    bias[1, 39 - 30] = torch.nan  # thirty tokens before the query
    found = attention(*problem, bias_HR=bias)
    assert found[30:, 1].isnan().all()
    assert found.isnan().sum() == 10 * 32


def test_long_sequence(attention):
    q, k, v, scale = qkv(8192, 8, heads=1)
    rows = slice(8000, 8040)
    found = attention(q, k, v, scale, queries=rows)[rows]
    scores = torch.einsum("qhd,khd->hqk", q[rows].double(), k.double()) * scale
    want = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v.double())
    assert (found - want).abs().max() <= 2 * (torchs(q, k, v, scale)[rows] - want).abs().max()
