"""Every variant of attention over a paged cache against its definition in float64, and against exact attention."""

import pytest
import torch

from bitwright.kernels import native, reference
from tests.kernels.conftest import Cached
from tests.kernels.test_attention import same

KINDS = ("int8", "int4", "bf16")
CACHED = {"int8": reference.cached_int8, "int4": reference.cached_int4}
# Of the outputs' norm: rounding to bf16 is 0.0011 of it, a byte that is one off now and then the rest.
CLOSE = {"int8": 0.005, "int4": 0.005, "bf16": 0.004}
PASTS = [
    (0, 1),
    (0, 3),
    (1, 1),
    (63, 1),
    (63, 3),
    (64, 1),
    (65, 8),
    (0, 70),
    (1023, 1),
    (1023, 3),
    (1024, 1),
    (1500, 70),
]


def problem(past, rows, *, heads=2, group=3, size=64):
    """q of the new tokens, k and v of all, and the scale. A few keys stand out, a few values are small."""
    generator = torch.Generator().manual_seed(past * 1000 + rows * 10 + group)
    tokens = past + rows
    q = torch.randn(rows, heads * group, size, generator=generator)
    k, v = torch.randn(2, tokens, heads, size, generator=generator)
    k[:: max(tokens // 5, 1)] *= 2.5
    v[1::3] *= 0.1
    return q.bfloat16(), k.bfloat16(), v.bfloat16(), size**-0.5


def kept(rows):
    """What a cache keeps of keys and of values, rotated where it rotates them."""
    return (rows.k_codes * rows.k_scale).flatten(2), (rows.v_codes * rows.v_scale).flatten(2)


def query(q):
    """As the kernel rotates and rounds it."""
    codes, scale = reference._symmetric_codes(reference.hadamard(q.double()), dim=2)
    return codes * scale


def exact(q, k, v, scale, *, near=None, softcap=None, window=None, causal=True, sinks_H=None):
    """Attention in float64, by softmax. near: other k and v, and which queries see those."""
    group = q.shape[1] // k.shape[1]
    near_k, near_v, is_near = near or (k, v, torch.ones(len(q), len(k), dtype=torch.bool))
    k, v, near_k, near_v = (x.double().repeat_interleave(group, dim=1) for x in (k, v, near_k, near_v))
    far, close = (torch.einsum("thd,shd->hts", q.double(), keys) * scale for keys in (k, near_k))
    scores = torch.where(is_near, close, far)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    at, of = torch.arange(len(k) - len(q), len(k))[:, None], torch.arange(len(k))
    left_out = torch.zeros(len(q), len(k), dtype=torch.bool)
    if causal:
        left_out |= of > at
    if window is not None:
        left_out |= (of - at).abs() >= window
    scores = scores.masked_fill(left_out, -torch.inf)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H.double()[:, None, None].expand(-1, len(q), 1)], dim=2)
    weights = scores.softmax(dim=2)[..., : len(k)]
    return torch.einsum("hts,shd->thd", weights * ~is_near, v) + torch.einsum("hts,shd->thd", weights * is_near, near_v)


def filled(variant, kind, k, v, chunk=None):
    cache = Cached(variant, kind, k.shape[1], k.shape[2])
    for begin in range(0, len(k), chunk or len(k)):
        cache.append(k[begin : begin + (chunk or len(k))], v[begin : begin + (chunk or len(k))])
    return cache


def assert_as_defined(found, kind, q, k, v, scale, **options):
    """As close to the definition as rounding allows; and to exact attention over what the cache keeps."""
    found = found.double()
    if kind == "bf16":
        right = exact(q, k, v, scale, **options)
        assert (found - right).norm() <= CLOSE[kind] * right.norm()
        return
    rows = CACHED[kind](k.double(), v.double())
    want = reference.attention_cached(q.double(), rows, scale, **options)
    near = rows.near and (*kept(rows.near), reference.is_near(len(q), len(k)))
    right = exact(query(q), *kept(rows), scale, near=near, **options)
    right = reference.hadamard(right)
    assert (found - want).norm() <= CLOSE[kind] * right.norm()
    assert (want - right).norm() <= 0.02 * right.norm(), "what bytes as weights may cost"
    assert (found - right).norm() <= 2 * (want - right).norm() + CLOSE[kind] * right.norm()


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize(("past", "rows"), PASTS)
def test_as_defined(attention_cached_variant, kind, past, rows):
    q, k, v, scale = problem(past, rows)
    found = filled(attention_cached_variant, kind, k, v).attend(q, scale)
    assert_as_defined(found, kind, q, k, v, scale)


@pytest.mark.parametrize("group", [1, 3, 4, 8, 9])
@pytest.mark.parametrize("size", [16, 64, 80, 96, 128, 256])
def test_groups_and_head_sizes(attention_cached_variant, kind, group, size):
    q, k, v, scale = problem(66, 2, group=group, size=size)
    found = filled(attention_cached_variant, kind, k, v).attend(q, scale)
    assert_as_defined(found, kind, q, k, v, scale)


@pytest.mark.parametrize(("past", "rows"), [(0, 70), (70, 3), (1100, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 20},
        {"window": 64},
        {"window": 100, "causal": False},
        {"causal": False},
        {"softcap": 2.0},
        {"softcap": 50.0, "window": 70},
        {"sinks_H": torch.tensor([-3.0, 0.0, 2.0, 5.0, 9.0, -torch.inf])},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(attention_cached_variant, kind, past, rows, options):
    q, k, v, scale = problem(past, rows)
    found = filled(attention_cached_variant, kind, k, v).attend(q, scale, **options)
    assert_as_defined(found, kind, q, k, v, scale, **options)


@pytest.mark.parametrize("options", [{}, {"window": 90}, {"softcap": 5.0}], ids=lambda options: "-".join(options))
@pytest.mark.parametrize(("past", "group"), [(30, 3), (61, 1), (1000, 9)])
def test_same_bytes_however_tokens_come(attention_cached_variant, kind, past, group, options):
    """All rows at once, in chunks, one by one; and cut by lines."""
    rows = 40
    q, k, v, scale = problem(past, rows, group=group)
    cache = filled(attention_cached_variant, kind, k, v)
    want = cache.attend(q, scale, **options)
    assert want.isfinite().all()
    for lines in (1, 31):
        assert same(cache.attend(q, scale, lines=lines, **options), want)
    for chunk in (1, 13):
        cache = filled(attention_cached_variant, kind, k[:past], v[:past], chunk=29)
        for begin in range(past, past + rows, chunk):
            new = slice(begin, begin + chunk)
            cache.append(k[new], v[new])
            found = cache.attend(q[begin - past : begin - past + chunk], scale, **options)
            assert same(found, want[begin - past : begin - past + chunk])


def test_heads_are_appended_apart(attention_cached_variant, kind):
    q, k, v, scale = problem(60, 9, heads=3)
    want = filled(attention_cached_variant, kind, k, v)
    found = Cached(attention_cached_variant, kind, 3, 64)
    for heads in (slice(2, 3), slice(0, 2)):
        found.past = 0
        found.append(k, v, heads=heads)
    assert torch.equal(found.memory[: found.memory.numel() - 64], want.memory[: want.memory.numel() - 64]) or same(
        found.attend(q, scale), want.attend(q, scale)
    )


def test_every_variant_writes_the_same_cache(attention_cached_variant, kind):
    _, k, v, _ = problem(0, 70, size=80)
    k[3, 1, 5], v[66, 0, 79], v[7] = torch.inf, torch.nan, 0.0
    found, want = (filled(variant, kind, k, v) for variant in (attention_cached_variant, "scalar"))
    assert torch.equal(aligned(found), aligned(want))


def aligned(cache):
    begin = -cache.memory.data_ptr() % 64
    return cache.memory[begin : begin + len(cache.table) * cache._block_bytes]


def test_int8_codes_and_scales_are_those_of_the_definition(attention_cached_variant):
    """Where contract.h says that they lie."""
    tokens, size = 64, 32
    _, k, v, _ = problem(0, tokens, heads=1, size=size)
    cache = filled(attention_cached_variant, "int8", k, v)
    assert_int8_as_defined(aligned(cache).view(cache.blocks, -1)[cache.table[0]], k, v)


def assert_int8_as_defined(block, k, v):
    tokens, _, size = k.shape
    k, v = (reference.hadamard(x.float() / (size & -size)) for x in (k, v))
    keys = block[: tokens * size].view(4, size // 4, 16, 4).transpose(1, 2).reshape(tokens, size).int() - 128
    values = (
        block[tokens * size : 2 * tokens * size]
        .view(torch.int8)
        .view(16, size, 4)
        .transpose(1, 2)
        .reshape(tokens, size)
    )
    scales = block[2 * tokens * size : 2 * tokens * size + 512].view(torch.float32).view(2, tokens)
    for x, codes, scale in ((k, keys, scales[0]), (v, values, scales[1])):
        largest = x[:, 0].abs().amax(dim=1)
        inverse = torch.where(largest > 0, torch.tensor(127.0) / largest, 0.0)
        assert torch.equal(scale, largest * torch.tensor(1 / 127))
        assert torch.equal(codes.float(), (x[:, 0] * inverse[:, None]).round())


@pytest.mark.parametrize("size", [16, 64, 80, 128])
def test_int4_codes_and_scales_are_those_of_the_definition(attention_cached_variant, size):
    """Where contract.h says that they lie."""
    tokens = 64
    _, k, v, _ = problem(0, tokens, heads=1, size=size)
    k[3], v[5], v[7] = 0.0, 0.0, v[7].abs()
    cache = filled(attention_cached_variant, "int4", k, v)
    blocks = aligned(cache).view(len(cache.table), -1)
    block, keys, values = (blocks[cache.table[form * cache.blocks]] for form in range(3))
    half = 64 * size
    eight = [keys[:half], values[:half], keys[half : half + 256], values[half : half + 256]]
    assert_int8_as_defined(torch.cat(eight), k, v)
    k_codes, k_scale, v_codes, v_scale = (x[:, 0] for x in reference.cached_int4(k.float(), v.float())[:4])
    n_keys, n_values = k_scale.shape[1], v_scale.shape[1]

    def halves(nibbles):
        return torch.stack([nibbles & 15, nibbles >> 4])

    ends = torch.tensor([32 * size, 32 * size, 128 * n_keys, 128 * n_values, 64 * n_values]).cumsum(0).tolist()
    keys, values, key_scales, value_scales, zeros = block[: ends[-1]].tensor_split(ends[:-1])
    keys = halves(keys.view(4, size // 8, 16, 4)).permute(1, 3, 2, 0, 4).reshape(tokens, size).int() - 8
    values = halves(values.view(8, size, 4)).permute(1, 0, 3, 2).reshape(tokens, n_values, -1).int()
    values -= zeros.view(n_values, tokens).T[..., None].int()
    assert torch.equal(keys.float(), k_codes.flatten(1))
    assert torch.equal(values.float(), v_codes)
    assert torch.equal(key_scales.view(torch.bfloat16).view(n_keys, tokens).T.float(), k_scale[..., 0])
    assert torch.equal(value_scales.view(torch.bfloat16).view(n_values, tokens).T.float(), v_scale[..., 0])


def test_int4_takes_about_half_of_int8():
    module = native.load()
    for size, most in ((64, 0.53), (80, 0.63), (96, 0.56), (128, 0.54), (256, 0.55)):
        int4, int8 = (module.cache_head_bytes(module.CacheKind[kind], size) for kind in ("int4", "int8"))
        assert 0.5 < int4 / int8 <= most


def test_rows_behind_a_rollback_are_overwritten(attention_cached_variant, kind):
    """Nothing stays of them, though they were not finite."""
    q, k, v, scale = problem(50, 30)
    want = filled(attention_cached_variant, kind, k, v).attend(q, scale)
    cache = filled(attention_cached_variant, kind, k[:50], v[:50])
    cache.append(torch.full_like(k[:40], torch.nan), torch.full_like(v[:40], torch.inf))
    cache.past = 50
    for new in range(30):
        cache.append(k[50 + new, None], v[50 + new, None])
        assert same(cache.attend(q[new, None], scale), want[new, None])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_what_is_not_finite_makes_nan_of_those_that_see_it(attention_cached_variant, kind, part, bad):
    q, k, v, scale = problem(10, 80, heads=2, group=3)
    want = filled(attention_cached_variant, kind, k, v).attend(q, scale, window=40)
    {"q": q, "k": k, "v": v}[part][20 if part == "q" else 30, 1, 7] = bad
    found = filled(attention_cached_variant, kind, k, v).attend(q, scale, window=40)
    poisoned = torch.zeros(80, 6, dtype=torch.bool)
    poisoned[(20, 1) if part == "q" else (slice(20, 60), slice(3, 6))] = True
    assert found[poisoned].isnan().all()
    assert same(found[~poisoned], want[~poisoned])


@pytest.mark.parametrize("tiny", [0.0, 1e-39, -1e-39, 1e-36])
def test_zeros_and_subnormals_are_no_nan(attention_cached_variant, kind, tiny):
    for part in range(3):
        q, k, v, scale = problem(0, 70)
        (q, k, v)[part][:] = tiny
        assert filled(attention_cached_variant, kind, k, v).attend(q, scale).isfinite().all()


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_large_scores_do_not_overflow(attention_cached_variant, kind, magnitude):
    q, k, v, scale = problem(130, 3)
    k[:, :, 1:], q[:, :, 0] = 0, 1
    k[:, :, 0] = magnitude * torch.linspace(0.5, 1, 133)[:, None].bfloat16()
    found = filled(attention_cached_variant, kind, k, v).attend(q, scale)
    assert found.isfinite().all()
    assert_as_defined(found, kind, q, k, v, scale)


def test_a_sink_of_small_value_keeps_its_weight(attention_cached_variant):
    """The first token has nine tenths of the weight and a value near zero, as in most language models."""
    q, k, v, scale = problem(200, 1, heads=1, group=1)
    q[:], k[:] = 1.0, 0.0
    k[0], v[0] = (torch.tensor(9.0 * 200).log() / scale / 64).bfloat16(), v[0] * 0.002
    found = filled(attention_cached_variant, "int8", k, v).attend(q, scale).double()
    right = exact(q, k, v, scale)
    assert (found - right).norm() <= 0.02 * right.norm()
