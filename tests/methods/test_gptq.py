"""Laws of GPTQ: what it may change (the codes, for a smaller output error), and what nothing may change."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, observe
from bitwright.errors import NumericsError
from bitwright.methods.gptq import gptq
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES, QTensor, QuantSpec

N, K = 24, 64
UNIFORM = [
    QuantSpec(bits=bits, symmetric=symmetric, group_size=group_size)
    for bits in (8, 4, 3, 2)
    for symmetric in (True, False)
    for group_size in (None, 16)
]
OTHERS = [
    QuantSpec(bits=4, grid="apot", group_size=16),
    QuantSpec(bits=4, grid="pot", group_size=16),
    QuantSpec(bits=4, grid="nf4"),
    QuantSpec(bits=4, grid="kmeans", group_size=16),
    QuantSpec(bits=2, grid="ternary", group_size=16),
    QuantSpec(bits=1, grid="binary", group_size=16),
    QuantSpec(bits=4, per_tensor=True),
]
every_grid = pytest.mark.parametrize("spec", UNIFORM + OTHERS, ids=str)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(seed: int = 1, m: int = 400) -> Tensor:
    """Correlated features of unequal sizes, as in a transformer."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(m, K, generator=generator) @ torch.randn(K, K, generator=generator)
    return mixed * torch.rand(K, generator=generator).square()


def stats_of(x: Tensor) -> LayerStats:
    return observe(None, x, gram=True, histogram=False)


def with_gram(gram_KK: Tensor) -> LayerStats:
    """Statistics of inputs that have this Gram matrix."""
    return replace(stats_of(tokens()), gram_KK=gram_KK, sum_sq_K=gram_KK.diagonal().double())


def output_error(w: Tensor, q: QTensor, stats: LayerStats) -> float:
    """tr(ΔW H ΔWᵀ), which is ‖X ΔWᵀ‖² over the calibration tokens."""
    assert stats.gram_KK is not None
    error_NK = w.double() - q.dequantize()
    return float((error_NK @ stats.gram_KK.double() * error_NK).sum())


def assert_equal(a: QTensor, b: QTensor) -> None:
    assert torch.equal(a.codes_NK, b.codes_NK)
    assert torch.equal(a.scale_NG, b.scale_NG)
    assert (a.zero_point_NG is None) == (b.zero_point_NG is None)
    assert a.zero_point_NG is None or torch.equal(a.zero_point_NG, b.zero_point_NG)


@every_grid
@pytest.mark.parametrize("act_order", [True, False])
def test_the_block_size_does_not_matter(spec: QuantSpec, act_order: bool) -> None:
    rounded = [
        gptq(weight(), stats_of(tokens()), spec, RANGES["absmax"], act_order=act_order, block_size=size).qtensor
        for size in (1, 7, 16, K, 1000)
    ]
    for other in rounded[1:]:
        assert_equal(rounded[0], other)


@every_grid
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_independent_inputs_of_one_size_leave_rounding_to_nearest(spec: QuantSpec, dtype: torch.dtype) -> None:
    w, stats = weight().to(dtype), with_gram(3 * torch.eye(K))
    assert_equal(gptq(w, stats, spec, RANGES["absmax"]).qtensor, rtn(w, stats, spec, RANGES["absmax"]).qtensor)


@every_grid
@pytest.mark.parametrize("act_order", [True, False])
def test_weights_move_further_and_outputs_less(spec: QuantSpec, act_order: bool) -> None:
    w, stats = weight(), stats_of(tokens())
    ours = gptq(w, stats, spec, RANGES["absmax"], act_order=act_order).qtensor
    nearest = rtn(w, stats, spec, RANGES["absmax"]).qtensor
    assert torch.equal(ours.scale_NG, nearest.scale_NG)
    assert (w - ours.dequantize()).norm() > (w - nearest.dequantize()).norm()
    assert output_error(w, ours, stats) < output_error(w, nearest, stats)


@pytest.mark.parametrize("act_order", [True, False])
def test_codes_are_those_of_the_paper(act_order: bool) -> None:
    """Algorithm 1 as it is written there: the inverse's Cholesky factor, and updates of all remaining columns."""
    spec, damping = QuantSpec(bits=4), 0.05
    w, stats = weight(), stats_of(tokens())
    assert stats.gram_KK is not None
    scale_N1, _ = RANGES["absmax"](w, spec)
    order = torch.argsort(stats.gram_KK.diagonal(), descending=True) if act_order else torch.arange(K)
    h = stats.gram_KK.double()[order][:, order]
    h += damping * h.diagonal().mean() * torch.eye(K)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    left, codes = w[:, order].clone(), torch.empty(N, K)
    for k in range(K):
        codes[:, order[k]] = (left[:, k] / scale_N1[:, 0]).round().clamp(-8, 7).float()
        error_N = (left[:, k] - codes[:, order[k]] * scale_N1[:, 0]) / upper[k, k]
        left[:, k:] -= torch.outer(error_N, upper[k, k:])
    ours = gptq(w, stats, spec, RANGES["absmax"], act_order=act_order, damping=damping).qtensor
    assert torch.equal(ours.codes_NK.float(), codes)


def test_large_inputs_first_is_better_where_inputs_differ_in_size() -> None:
    spec = QuantSpec(bits=3)
    both = dict.fromkeys((True, False), 0.0)
    for seed in range(8):
        w, stats = weight(seed), stats_of(tokens(seed + 100))
        for act_order in both:
            both[act_order] += output_error(
                w, gptq(w, stats, spec, RANGES["absmax"], act_order=act_order).qtensor, stats
            )
    assert both[True] < both[False]


@every_grid
def test_rows_do_not_influence_each_other(spec: QuantSpec) -> None:
    if spec.per_tensor or spec.grid == "kmeans":
        pytest.skip("one scale, or one set of levels, for all rows")
    w, stats = weight(), stats_of(tokens())
    whole = gptq(w, stats, spec, RANGES["absmax"]).qtensor
    part = gptq(w[5:9], stats, spec, RANGES["absmax"]).qtensor
    assert torch.equal(whole.codes_NK[5:9], part.codes_NK)


@pytest.mark.parametrize("name", [name for name in RANGES if name != "entropy"])  # which wants thousands of values
def test_every_range_will_do(name: str) -> None:
    w, stats, spec = weight().float(), stats_of(tokens()), QuantSpec(bits=3, symmetric=False, group_size=16)
    ours = gptq(w, stats, spec, RANGES[name]).qtensor
    nearest = rtn(w, stats, spec, RANGES[name]).qtensor
    assert torch.equal(ours.scale_NG, nearest.scale_NG)
    assert output_error(w, ours, stats) < output_error(w, nearest, stats)


def test_dead_inputs_get_no_weight_and_do_not_widen_the_range() -> None:
    x, w = tokens(), weight()
    x[:, [3, 40]] = 0
    w[:, 3] = 1000
    rounded = gptq(w, stats_of(x), QuantSpec(bits=4, group_size=16), RANGES["absmax"])
    assert rounded.notes["dead_inputs"] == 2
    assert not rounded.qtensor.codes_NK[:, [3, 40]].any()
    assert rounded.qtensor.scale_NG.max() < 1


@every_grid
def test_fewer_tokens_than_inputs_will_do(spec: QuantSpec) -> None:
    w, stats = weight(), stats_of(tokens(m=5))
    rounded = gptq(w, stats, spec, RANGES["absmax"])
    assert rounded.notes == {"dead_inputs": 0, "damping": 0.01}
    nearest = rtn(w, stats, spec, RANGES["absmax"]).qtensor
    assert output_error(w, rounded.qtensor, stats) < output_error(w, nearest, stats)


def indefinite(least: float) -> LayerStats:
    """A Gram matrix with diagonal 1 and `least` as its smallest eigenvalue: no sum of squares."""
    gram_KK = torch.eye(K)
    gram_KK[0, 1] = gram_KK[1, 0] = 1 - least
    return with_gram(gram_KK)


@pytest.mark.parametrize(
    ("least", "failed", "used"), [(-0.05, "0.01", 0.1), (-0.5, "0.01, 0.1", 1.0), (-5.0, "0.01, 0.1, 1", 10.0)]
)
def test_damping_is_raised_and_noted(least: float, failed: str, used: float) -> None:
    notes = gptq(weight(), indefinite(least), QuantSpec(bits=4), RANGES["absmax"]).notes
    assert notes == {"dead_inputs": 0, "damping_failed": failed, "damping": pytest.approx(used)}


def test_when_no_damping_helps_weights_are_rounded_to_nearest_and_it_is_noted() -> None:
    w, spec = weight(), QuantSpec(bits=4, group_size=16)
    for stats in (indefinite(-50.0), with_gram(torch.zeros(K, K))):
        rounded = gptq(w, stats, spec, RANGES["absmax"])
        assert_equal(rounded.qtensor, rtn(w, stats, spec, RANGES["absmax"]).qtensor)
        assert rounded.notes["gave_way_to"] == "rtn"
        assert rounded.notes["damping_failed"] == "0.01, 0.1, 1, 10"
        assert "calibrate on more tokens" in str(rounded.notes["reason"])
        assert "damping" not in rounded.notes


def test_float32_is_as_good_as_float64() -> None:
    spec = QuantSpec(bits=4, group_size=16)
    w, stats = weight().float(), stats_of(tokens())
    single, double = (gptq(v, stats, spec, RANGES["absmax"]).qtensor for v in (w, w.double()))
    assert output_error(w, single, stats) == pytest.approx(output_error(w, double, stats), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_arguments_are_left_alone(dtype: torch.dtype) -> None:
    w, stats = weight().to(dtype).requires_grad_(), stats_of(tokens())
    w_before, gram_before = w.detach().clone(), stats.gram_KK
    assert gram_before is not None
    gram_before = gram_before.clone()
    rounded = gptq(w, stats, QuantSpec(bits=4), RANGES["absmax"])
    assert torch.equal(w.detach(), w_before)
    assert stats.gram_KK is not None
    assert torch.equal(stats.gram_KK, gram_before)
    assert not rounded.qtensor.scale_NG.requires_grad


def test_what_cannot_be_rounded_is_refused() -> None:
    spec, stats = QuantSpec(bits=4), stats_of(tokens())
    refused = functools.partial(pytest.raises, NumericsError)
    for none in (None, replace(stats, gram_KK=None)):
        with refused(match="gram=True, or use rtn"):
            gptq(weight(), none, spec, RANGES["absmax"])
    with refused(match="K = 32, but the statistics have K = 64"):
        gptq(weight()[:, :32], stats, spec, RANGES["absmax"])
    w = weight()
    w[1, 2] = torch.nan
    with refused(match="1 of 1536 are NaN"):
        gptq(w, with_gram(torch.eye(K).index_fill(0, torch.tensor(2), 0)), spec, RANGES["absmax"])
    with refused(match="damping = 0"):
        gptq(weight(), stats, spec, RANGES["absmax"], damping=0)
    with refused(match="block_size = 0"):
        gptq(weight(), stats, spec, RANGES["absmax"], block_size=0)


def test_the_number_of_threads_is_left_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gptq(weight(), stats_of(tokens()), QuantSpec(bits=4), RANGES["absmax"])
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2
