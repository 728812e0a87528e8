"""Ranges that are searched: each minimizes what it says, and none is worse than the full range."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import RANGES, WEIGHT_RANGES, Histogram, Importance, QuantSpec, quantize, scale_and_zero_point
from bitwright.numerics.ranges import absmax, awq_clip, imatrix, min_max, mse, percentile, range_named

N, K = 12, 64
GRANULARITIES: list[dict[str, Any]] = [{}, {"group_size": 16}]
UNIFORM = [QuantSpec(bits=b, symmetric=s, **g) for b in (8, 4, 3, 2) for s in (True, False) for g in GRANULARITIES]
OTHER = [
    QuantSpec(bits=bits, grid=grid, **g)
    for grid, bits in (("pot", 4), ("apot", 4), ("nf4", 4), ("kmeans", 4), ("ternary", 2), ("binary", 1))
    for g in GRANULARITIES
]
on_every_spec = pytest.mark.parametrize("spec", UNIFORM + OTHER, ids=str)
on_mean_scaled = pytest.mark.parametrize("spec", [spec for spec in OTHER if spec.is_mean_scaled], ids=str)
APPROXIMATE = 1 + 1e-3  # codebook grids: the search reads 8192 bins, and kmeans fits its levels again afterwards


def weight(seed: int = 0) -> Tensor:
    """(N, K): normal rows of different sizes, some heavy-tailed, one with an outlier."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(N, K, generator=g) * (0.01 + torch.rand(N, 1, generator=g))
    w[: N // 2] /= torch.rand(N // 2, K, generator=g)
    w[-1, 5] = 30
    return w


def importance(seed: int = 0) -> Importance:
    """Of correlated inputs whose sizes differ a hundredfold."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, K, generator=g) @ torch.randn(K, K, generator=g) * torch.logspace(-1, 1, K)
    gram = x.T @ x / len(x)
    return Importance(gram.diagonal().clone(), gram)


def difference(w: Tensor, grid: tuple[Tensor, Tensor | None], spec: QuantSpec) -> Tensor:
    return quantize(w, *grid, spec).dequantize().double() - w.double()


def squared(w: Tensor, grid: tuple[Tensor, Tensor | None], spec: QuantSpec) -> float:
    return float(difference(w, grid, spec).square().sum())


def weighted(w: Tensor, grid: tuple[Tensor, Tensor | None], spec: QuantSpec) -> float:
    return float((difference(w, grid, spec).square() * importance().mean_square_K).sum())


def change_of_output(w: Tensor, grid: tuple[Tensor, Tensor | None], spec: QuantSpec) -> float:
    """Summed over the groups, each with its own block of the Gram matrix."""
    error, gram, size = difference(w, grid, spec), importance().gram_KK, spec.group_size or K
    assert gram is not None
    blocks = [slice(k, k + size) for k in range(0, K, size)]
    return sum(float(((error[:, b] @ gram[b, b].double()) * error[:, b]).sum()) for b in blocks)


def full_range(w: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor | None]:
    return (absmax if spec.symmetric else min_max)(w, spec)


@on_every_spec
@pytest.mark.parametrize(("name", "measure"), [("mse", squared), ("imatrix", weighted), ("awq_clip", change_of_output)])
def test_never_worse_than_the_full_range_by_its_own_measure(
    name: str, measure: Callable[..., float], spec: QuantSpec
) -> None:
    w = weight()
    ours, full = RANGES[name](w, spec, importance=importance()), full_range(w, spec)
    assert measure(w, ours, spec) <= measure(w, full, spec) * (APPROXIMATE if spec.has_codebook else 1 + 1e-6)


@pytest.mark.parametrize("spec", [spec for spec in UNIFORM if spec.bits == 3], ids=str)
def test_what_a_range_measures_it_makes_smallest(spec: QuantSpec) -> None:
    w, g = weight(), importance()
    by_mse, by_imatrix, by_clip = (choose(w, spec, importance=g) for choose in (mse, imatrix, awq_clip))
    assert squared(w, by_mse, spec) < squared(w, by_imatrix, spec)
    assert weighted(w, by_imatrix, spec) < weighted(w, by_mse, spec)
    assert change_of_output(w, by_clip, spec) < change_of_output(w, full_range(w, spec), spec)


@pytest.mark.parametrize("spec", UNIFORM, ids=str)
def test_coarse_to_fine_finds_nearly_what_trying_all_does(spec: QuantSpec) -> None:
    w = weight()
    lo, hi = (end.double() for end in torch.aminmax(w.reshape(N, -1, spec.group_size or K), dim=-1))
    losses = [
        difference(w, scale_and_zero_point(lo.clamp(max=0) * p / 100, hi.clamp(min=0) * p / 100, spec), spec)
        .square()
        .reshape(*lo.shape, -1)
        .sum(-1)
        for p in range(100, 0, -1)
    ]
    assert squared(w, mse(w, spec), spec) <= float(torch.stack(losses).amin(0).sum()) * 1.02


@pytest.mark.parametrize("spec", [spec for spec in UNIFORM if spec.bits == 4], ids=str)
def test_awq_clip_equals_the_obvious_one(spec: QuantSpec) -> None:
    w, gram, size = weight(), importance().gram_KK, spec.group_size or K
    assert gram is not None
    scale, zero = awq_clip(w, spec, importance=importance())
    alone = QuantSpec(bits=spec.bits, symmetric=spec.symmetric)
    for n in range(N):
        for g in range(K // size):
            here = slice(g * size, (g + 1) * size)
            x, block = w[n : n + 1, here], gram[here, here]
            candidates = []
            for i in range(10):
                ends = (end.double().reshape(1, 1) * (1 - i / 20) for end in torch.aminmax(x))
                candidates.append(scale_and_zero_point(*ends, alone))
            errors = [difference(x, grid, alone) for grid in candidates]
            losses = torch.stack([(e @ block.double() @ e.T).squeeze() for e in errors])
            chosen = min(range(10), key=lambda i: abs(float(candidates[i][0] / scale[n, g]) - 1))
            assert losses[chosen] <= losses.min() * (1 + 1e-5)
            torch.testing.assert_close(candidates[chosen][0][0, 0], scale[n, g])
            chosen_zero = candidates[chosen][1]
            assert (zero is None) == (chosen_zero is None)
            if zero is not None and chosen_zero is not None:
                assert zero[n, g] == chosen_zero


@on_every_spec
def test_importance_of_ones_is_none(spec: QuantSpec) -> None:
    for size in (1.0, 1e-30, 1e30):  # whatever the unit
        for ours, want in zip(
            imatrix(weight(), spec, importance=Importance(torch.full((K,), size))), mse(weight(), spec), strict=True
        ):
            assert (ours is None) == (want is None)
            if ours is not None and want is not None:
                assert torch.equal(ours, want)


@on_every_spec
def test_without_a_gram_matrix_inputs_count_as_uncorrelated(spec: QuantSpec) -> None:
    mean_square = importance().mean_square_K
    diagonal = awq_clip(weight(), spec, importance=Importance(mean_square, mean_square.diag()))
    torch.testing.assert_close(awq_clip(weight(), spec, importance=Importance(mean_square)), diagonal)


@on_every_spec
@pytest.mark.parametrize("name", ["mse", "imatrix", "awq_clip"])
def test_inputs_that_are_always_zero_decide_nothing(name: str, spec: QuantSpec) -> None:
    dead = Importance(torch.zeros(K), torch.zeros(K, K))
    for values in (weight(), torch.zeros(N, K)):
        scale, zero = RANGES[name](values, spec, importance=dead)
        if name != "mse" or not values.any():
            torch.testing.assert_close((scale, zero), full_range(values, spec))


@pytest.mark.parametrize("spec", [spec for spec in UNIFORM + OTHER if spec.grid != "kmeans"], ids=str)
@pytest.mark.parametrize("name", ["mse", "imatrix", "awq_clip"])
def test_rows_do_not_depend_on_each_other(name: str, spec: QuantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight()
    whole = RANGES[name](w, spec, importance=importance())
    assert torch.equal(RANGES[name](w[3:7], spec, importance=importance())[0], whole[0][3:7])
    monkeypatch.setattr("bitwright.numerics.least_error._CHUNK", 5 * K)
    for ours, want in zip(RANGES[name](w, spec, importance=importance()), whole, strict=True):
        assert ours is want is None or torch.equal(ours, want)  # type: ignore[arg-type]


@on_mean_scaled
def test_the_best_mean_beats_every_scale_tried(spec: QuantSpec) -> None:
    w, g = weight(), importance()
    best = imatrix(w, spec, importance=g)[0]
    error = difference(w, (best, None), spec).square() * g.mean_square_K
    for factor in torch.linspace(0.05, 4, 80):
        other = difference(w, (best * factor, None), spec).square() * g.mean_square_K
        by_group = [e.reshape(*best.shape, -1).sum(-1) for e in (error, other)]
        assert (by_group[0] <= by_group[1] * (1 + 1e-6)).all()


@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
@on_every_spec
def test_scales_follow_the_unit_of_the_values(spec: QuantSpec, factor: float) -> None:
    """Also where squares in float32 would vanish or overflow."""
    w = weight()
    for choose in (mse, imatrix, awq_clip):
        scale, scaled = (choose(x, spec, importance=importance())[0] for x in (w, w * factor))
        assert torch.equal(scaled, scale * factor)


@pytest.mark.parametrize("name", ["mse", "imatrix", "awq_clip"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_are_stored_as_asked_and_other_dtypes_read(name: str, dtype: torch.dtype) -> None:
    for spec in (QuantSpec(bits=4, group_size=16), *OTHER[::2]):
        w = weight().to(dtype)
        assert RANGES[name](w, spec, dtype=dtype, importance=importance())[0].dtype == dtype
        same = (RANGES[name](x, spec, importance=importance())[0] for x in (w, w.float()))
        torch.testing.assert_close(*same)
        assert torch.equal(w, weight().to(dtype))


@pytest.mark.parametrize("name", WEIGHT_RANGES)
def test_ranges_that_weigh_errors_want_something_to_weigh_them_by(name: str) -> None:
    with pytest.raises(NumericsError, match="calibrate, or use mse"):
        RANGES[name](weight(), QuantSpec())
    with pytest.raises(NumericsError, match="importance has K = 64, but the weight has K = 32"):
        RANGES[name](weight()[:, :32], QuantSpec(), importance=importance())
    with pytest.raises(NumericsError, match="for weights with a scale per row or group"):
        RANGES[name](Histogram.of(weight()), QuantSpec(per_tensor=True), importance=importance())
    with pytest.raises(NumericsError, match="for weights with a scale per row or group"):
        RANGES[name](weight(), QuantSpec(per_tensor=True), importance=importance())
    with pytest.raises(NumericsError, match="1 of 768 are NaN or infinite"):
        RANGES[name](
            weight().index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan)),
            QuantSpec(),
            importance=importance(),
        )


@on_mean_scaled
@pytest.mark.parametrize("name", ["percentile", "entropy"])
def test_shares_of_the_values_make_no_mean(name: str, spec: QuantSpec) -> None:
    with pytest.raises(NumericsError, match="needs a mean magnitude as its scale; use the absmax"):
        RANGES[name](weight(), spec)


@pytest.mark.parametrize(
    ("mean_square", "gram", "message"),
    [
        (torch.ones(2, 2), None, "floating"),
        (torch.ones(4, dtype=torch.int32), None, "floating"),
        (torch.tensor([1.0, torch.nan]), None, "finite and not negative"),
        (torch.tensor([1.0, -1.0]), None, "finite and not negative"),
        (torch.ones(4), torch.ones(3, 3), r"K = 4 but the Gram matrix has shape \(3, 3\)"),
    ],
)
def test_importance_is_checked(mean_square: Tensor, gram: Tensor | None, message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        Importance(mean_square, gram)


def test_a_share_bounds_how_far_awq_clips() -> None:
    spec = QuantSpec(bits=4, group_size=16)
    full, default = min_max(weight(), spec)[0], awq_clip(weight(), spec, importance=importance())[0]
    for least in (1.0, 0.9, 0.7):
        scale = awq_clip(weight(), spec, least=least, importance=importance())[0]
        assert (scale >= 0.995 * least * full).all()
        assert (scale >= default).all()
    assert torch.equal(awq_clip(weight(), spec, least=1.0, importance=importance())[0], full)
    with pytest.raises(NumericsError, match="clip = 0"):
        awq_clip(weight(), spec, least=0.0, importance=importance())


def test_a_range_by_name_has_its_options() -> None:
    spec = QuantSpec(bits=8, symmetric=True)
    bound = range_named("percentile", percent=90.0)(weight(), spec)
    assert torch.equal(bound[0], percentile(weight(), spec, percent=90.0)[0])
    assert range_named("mse", percent=90.0) is mse
