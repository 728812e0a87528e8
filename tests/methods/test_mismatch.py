"""Laws of mismatch correction: nothing where inputs are the float model's, else outputs nearer to the float model's."""

import pytest
import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, merge, observe, observe_beside, rescaled
from bitwright.errors import NumericsError
from bitwright.methods.gptq import gptq
from bitwright.methods.mismatch import towards_float, with_mismatch_correction
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES, QTensor, QuantSpec
from bitwright.numerics.linear import InputTransform

N, K, M = 24, 48, 600
SPECS = [QuantSpec(bits=bits, group_size=16, symmetric=symmetric) for bits in (4, 3) for symmetric in (True, False)]
corrected = with_mismatch_correction(gptq, share=1.0)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int = 1, off: float = 0.3) -> tuple[Tensor, Tensor]:
    """What a linear reads after rounding, and in the float model: correlated features of unequal sizes. Half of the
    difference follows from the features, as that of an earlier linear does."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(K, K, generator=generator) * torch.rand(K, generator=generator).square()
    original = torch.randn(M, K, generator=generator) @ mixed
    drift = original @ torch.randn(K, K, generator=generator) / K**0.5 + torch.randn(M, K, generator=generator)
    return original + off * original.std() * drift / drift.std(), original


def seen(x: Tensor, original: Tensor) -> LayerStats:
    return observe_beside(None, x, original, histogram=False)


def output_error(w: Tensor, q: QTensor, x: Tensor, original: Tensor) -> float:
    """‖W x₀ − Q x‖² over the tokens."""
    return float((original.double() @ w.double().T - x.double() @ q.dequantize().double().T).square().sum())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_float_models_own_inputs_leave_gptq_to_the_bit(spec: QuantSpec) -> None:
    x, _ = inputs()
    ours = corrected(weight(), seen(x, x), spec, RANGES["imatrix"]).qtensor
    plain = gptq(weight(), observe(None, x, gram=True, histogram=False), spec, RANGES["imatrix"]).qtensor
    assert torch.equal(ours.codes_NK, plain.codes_NK)
    assert torch.equal(ours.scale_NG, plain.scale_NG)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rounding", [gptq, rtn])
def test_outputs_come_nearer_to_the_float_models(spec: QuantSpec, rounding: object) -> None:
    for seed in range(4):
        (x, original), w = inputs(seed), weight(seed)
        stats = seen(x, original)
        aimed = with_mismatch_correction(rounding, share=1.0)(w, stats, spec, RANGES["absmax"])
        plain = rounding(w, stats, spec, RANGES["absmax"])
        half = with_mismatch_correction(rounding, share=0.5)(w, stats, spec, RANGES["absmax"])
        errors = [output_error(w, rounded.qtensor, x, original) for rounded in (aimed, half, plain)]
        assert errors[0] < errors[1] < errors[2]


def test_it_is_the_least_squares_solution() -> None:
    x, original = inputs()
    w, damping = weight().double(), 0.02
    stats = seen(x, original)
    assert stats.even_KK is not None
    root = (damping * stats.even_KK.diagonal().mean().double()).sqrt() * torch.eye(K)
    x, original = (values / x.norm(dim=-1, keepdim=True) for values in (x, original))
    solved = torch.linalg.lstsq(
        torch.cat((x.double(), root.double())), torch.cat((original.double() @ w.T, root.double() @ w.T))
    ).solution.T  # fmt: skip
    found = towards_float(w, stats, damping=damping)
    assert found is not None
    assert torch.allclose(found, solved, atol=1e-4)
    half = towards_float(w, stats, damping=damping, share=0.5)
    assert half is not None
    assert torch.allclose(half, (w + found) / 2)


def test_a_few_huge_tokens_do_not_decide() -> None:
    """They have another mismatch than all others, whose outputs still come nearer to the float model's."""
    (x, original), w = inputs(), weight()
    x[:3], original[:3] = 1000 * x[3:6], 1000 * original[5:8]
    found = towards_float(w, seen(x, original))
    assert found is not None
    before, after = (((original - x)[3:] @ w.T).norm(), (original[3:] @ w.T - x[3:] @ found.T).norm())
    assert after < 0.95 * before


@pytest.mark.parametrize("size", [1, 7, 100])
def test_batches_do_not_matter(size: int) -> None:
    x, original = inputs()
    stats = None
    for part, beside in zip(x.split(size), original.split(size), strict=True):
        stats = observe_beside(stats, part, beside, histogram=False)
    whole = seen(x, original)
    halves = merge(seen(x[:300], original[:300]), seen(x[300:], original[300:]))
    assert stats is not None
    for found in (stats, halves):
        assert found.mismatch_KK is not None
        assert whole.mismatch_KK is not None
        assert torch.allclose(found.mismatch_KK, whole.mismatch_KK, rtol=1e-4, atol=1e-2)


def test_a_scaled_input_has_the_scaled_mismatch() -> None:
    x, original = inputs()
    scale = torch.rand(K, generator=torch.Generator().manual_seed(9)) + 0.5
    found = rescaled(seen(x, original), InputTransform(scale, None)).mismatch_KK
    size_M1 = x.norm(dim=-1, keepdim=True)  # the weights stay those of the input as it was
    wanted = ((original - x) / size_M1 / scale).T @ (x / size_M1 / scale)
    assert found is not None
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert rescaled(seen(x, original), InputTransform(scale, scale)).mismatch_KK is None


def test_without_a_mismatch_the_weight_stays() -> None:
    x, _ = inputs()
    stats = observe(None, x, gram=True, histogram=False)
    for known in (stats, None):
        rounding = gptq if known else rtn
        ours = with_mismatch_correction(rounding, share=1.0)(weight(), known, SPECS[0], RANGES["absmax"])
        assert torch.equal(
            ours.qtensor.codes_NK, rounding(weight(), known, SPECS[0], RANGES["absmax"]).qtensor.codes_NK
        )
        assert "mismatch_moved" not in ours.notes


def test_inputs_that_were_always_zero_are_rounded_to_nearest_and_it_is_noted() -> None:
    x = torch.zeros(M, K)
    rounded = corrected(weight(), seen(x, inputs()[1]), SPECS[0], RANGES["absmax"])
    assert rounded.notes["mismatch_failed"] == "no Cholesky factor"
    assert rounded.notes["gave_way_to"] == "rtn"


def test_one_dead_input_changes_nothing_else() -> None:
    x, original = inputs()
    x[:, 3] = original[:, 3] = 0
    found = towards_float(weight(), seen(x, original))
    assert found is not None
    assert torch.allclose(found[:, 3], weight()[:, 3])


def test_nan_and_other_shapes_are_refused() -> None:
    x, original = inputs()
    original[5, 7] = float("nan")
    with pytest.raises(NumericsError, match="the inputs of the float model: 1 of 48 are NaN or infinite"):
        seen(x, original)
    with pytest.raises(NumericsError, match=r"inputs are \(600, 48\), but the float model's \(600, 47\)"):
        seen(x, original[:, 1:])
    with pytest.raises(NumericsError, match="with every batch, or with none"):
        observe_beside(observe(None, x, gram=True), x, x)
