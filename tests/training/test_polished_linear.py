"""A linear whose codes are frozen computes what the file will, and its floats get the gradients of that."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitwright.kernels import reference
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.training.polished_linear import PolishedLinear, stored

N, K, M = 24, 64, 7
DYNAMIC = QuantSpec(symmetric=False, dynamic=True)
STATIC = QuantSpec(symmetric=False, per_tensor=True)
SPECS = {
    "4 bits": QuantSpec(bits=4, group_size=16),
    "4 bits, zero points": QuantSpec(bits=4, group_size=16, symmetric=False),
    "3 bits, by row": QuantSpec(bits=3),
    "8 bits": QuantSpec(),
    "8 bits, zero points": QuantSpec(symmetric=False),
    "kmeans": QuantSpec(bits=3, grid="kmeans", group_size=32),
    "nf4": QuantSpec(bits=4, grid="nf4", group_size=16),
    "ternary": QuantSpec(bits=2, grid="ternary"),
}


def rounded(spec: QuantSpec, seed: int = 0) -> QTensor:
    w_NK = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    return rtn(w_NK, None, spec, RANGES["min_max"]).qtensor


def rows(seed: int = 1) -> Tensor:
    return torch.randn(M, K, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SPECS)
def test_computes_what_the_codes_stand_for(name: str) -> None:
    weight, x_MK, bias_N = rounded(SPECS[name]), rows(), torch.linspace(-1, 1, N)
    module = PolishedLinear(QuantizedLinear(weight, bias_N))
    torch.testing.assert_close(module(x_MK), x_MK @ weight.dequantize().T + bias_N, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_untrained_floats_are_those_it_began_with(name: str) -> None:
    linear = QuantizedLinear(rounded(SPECS[name]), torch.linspace(-1, 1, N))
    after = PolishedLinear(linear).trained()
    assert torch.equal(after.weight.scale_NG, linear.weight.scale_NG)
    assert torch.equal(after.bias_N, linear.bias_N)
    assert after.form == linear.form


@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_those_of_torch(name: str) -> None:
    """Against a weight that torch itself makes of scales; the logarithm's chain rule is scale · gradient."""
    weight, x_MK = rounded(SPECS[name]), rows().requires_grad_()
    module = PolishedLinear(QuantizedLinear(weight))
    module(x_MK).square().sum().backward()
    scale_NG, plain_MK = weight.scale_NG.clone().requires_grad_(), rows().requires_grad_()
    steps = module.steps.float().reshape(*scale_NG.shape, -1)
    (plain_MK @ (steps * scale_NG[..., None]).reshape(N, K).T).square().sum().backward()
    assert x_MK.grad is not None
    assert scale_NG.grad is not None
    torch.testing.assert_close(x_MK.grad, plain_MK.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(module.log_scale.grad, scale_NG.grad * weight.scale_NG, rtol=1e-4, atol=1e-3)


def test_a_minimum_is_trained_too() -> None:
    plain = rounded(QuantSpec(bits=4, group_size=16, symmetric=False))
    minimum_NG = -plain.scale_NG * 7.5
    weight = replace(plain, zero_point_NG=None, minimum_NG=minimum_NG)
    module = PolishedLinear(QuantizedLinear(weight))
    x_MK = rows()
    torch.testing.assert_close(module(x_MK), x_MK @ weight.dequantize().T, rtol=1e-5, atol=1e-4)
    module(x_MK).square().sum().backward()
    assert module.minimum is not None
    assert module.minimum.grad is not None
    with torch.no_grad():
        module.minimum += 0.25
    moved = module.trained().weight.minimum_NG
    torch.testing.assert_close(moved, minimum_NG + 0.25 * weight.scale_NG)


def test_scales_of_few_bits_are_stored_in_16() -> None:
    module = PolishedLinear(QuantizedLinear(rounded(SPECS["4 bits"])))
    with torch.no_grad():
        module.log_scale += 0.0123
    after = module.trained().weight
    assert torch.equal(after.scale_NG, after.scale_NG.bfloat16().float())
    assert not torch.equal(after.scale_NG, rounded(SPECS["4 bits"]).scale_NG)
    assert torch.equal(after.codes_NK, rounded(SPECS["4 bits"]).codes_NK)
    torch.testing.assert_close(module(rows()), rows() @ after.dequantize().T, rtol=1e-5, atol=1e-4)


def test_scales_of_8_bits_stay_float32() -> None:
    scale_NG = torch.full((N, 1), 0.1234567)
    assert torch.equal(stored(scale_NG, torch.ones(N, 1), SPECS["8 bits"]), scale_NG)


def test_scales_that_were_no_16_bits_stay_float32() -> None:
    scale_NG = torch.full((N, 1), 0.1234567)
    assert torch.equal(stored(scale_NG, scale_NG, SPECS["4 bits"]), scale_NG)


def test_no_scale_becomes_zero() -> None:
    weight = replace(rounded(SPECS["4 bits"]), scale_NG=torch.full((N, K // 16), 2.0**-126))
    module = PolishedLinear(QuantizedLinear(weight))
    with torch.no_grad():
        module.log_scale -= 5.0
    assert float(module.trained().weight.scale_NG.min()) > 0


def test_dynamic_inputs_are_rounded_as_the_reference_rounds() -> None:
    weight, x_MK = rounded(SPECS["8 bits"]), rows().requires_grad_()
    y_MN = PolishedLinear(QuantizedLinear(weight, input_spec=DYNAMIC))(x_MK)
    codes, scale, zero = reference.quantize_rows(x_MK.detach(), DYNAMIC)
    want = reference.linear_w8a8(codes, scale, zero, weight.codes_NK, weight.scale_NG[:, 0], None)
    torch.testing.assert_close(y_MN, want, rtol=1e-5, atol=1e-4)
    y_MN.sum().backward()
    assert x_MK.grad is not None
    torch.testing.assert_close(x_MK.grad, weight.dequantize().sum(0).expand(M, K), rtol=1e-5, atol=1e-4)


def test_float_inputs_are_rounded_by_group_for_the_engine() -> None:
    weight, x_MK = rounded(SPECS["4 bits"]), rows()
    y_MN = PolishedLinear(QuantizedLinear(weight), group=16)(x_MK)
    codes, scale, _ = reference.quantize_groups(x_MK, 16)
    unsigned = (weight.codes_NK.int() + 8).to(torch.uint8)
    want = reference.linear_w4a8(codes, scale, unsigned, weight.scale_NG, 8, None)
    torch.testing.assert_close(y_MN, want, rtol=1e-5, atol=1e-4)


def test_a_static_grid_gets_a_gradient() -> None:
    """∂x̂/∂scale inside the grid is code − x / scale, outside the end of the grid (LSQ, equation 3)."""
    grid, x_MK = StaticGrid(0.01, 5), torch.linspace(-2, 2, K).expand(M, K).clone().requires_grad_()
    linear = QuantizedLinear(rounded(SPECS["8 bits"]), input_spec=STATIC, static=grid)
    module = PolishedLinear(linear)
    y_MN = module(x_MK)
    codes, scale, zero = reference.quantize_rows(x_MK.detach(), STATIC, torch.tensor([0.01]), torch.tensor([5]))
    weight = linear.weight
    want = reference.linear_w8a8(codes, scale, zero, weight.codes_NK, weight.scale_NG[:, 0], None)
    torch.testing.assert_close(y_MN, want, rtol=1e-5, atol=1e-4)
    y_MN.sum().backward()
    steps, clipped = x_MK.detach() / 0.01, codes.float() - 5
    inside = steps.round() == clipped
    by_scale = torch.where(inside, clipped - steps, clipped)
    assert module.log_input is not None
    assert module.log_input.grad is not None
    expected = float((by_scale * weight.dequantize().sum(0)).sum()) * 0.01
    assert float(module.log_input.grad) == pytest.approx(expected, rel=0.02)
    assert x_MK.grad is not None
    assert bool((x_MK.grad[~inside] == 0).all())
    with torch.no_grad():
        module.log_input += 0.1
    after = module.trained().static
    assert after is not None
    assert after.scale == pytest.approx(0.01 * 1.10517, rel=1e-4)
    assert after.zero_point == 5


def test_an_input_transform_stays() -> None:
    transform = InputTransform(torch.linspace(0.5, 2.0, K))
    linear = QuantizedLinear(rounded(SPECS["8 bits"]), transform=transform)
    weight_NK, _ = linear.effective()
    torch.testing.assert_close(PolishedLinear(linear)(rows()), rows() @ weight_NK.T, rtol=1e-4, atol=1e-4)
    after = PolishedLinear(linear).trained().transform
    assert after is not None
    assert torch.equal(after.scale_K, transform.scale_K)


def test_products_are_bf16_under_autocast() -> None:
    module = PolishedLinear(QuantizedLinear(rounded(SPECS["4 bits"])))
    with torch.autocast("cpu", torch.bfloat16):
        y_MN = module(rows())
    assert y_MN.dtype == torch.bfloat16
    torch.testing.assert_close(y_MN.float(), module(rows()), rtol=0.05, atol=0.15)
