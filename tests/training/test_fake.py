"""A linear in training: codes of the file are codes of the forward, and gradients are those of LSQ."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.kernels.linear import QuantLinear
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.schemes import SCHEMES
from bitwright.training.fake import FakeLinear, begun_at, rounded_start

N, K = 24, 64
NAMES = [
    "w8a8", "w8a8_symmetric", "w8a16", "w4a8_channel", "w4a16_g32", "w4a16_g32_asym", "w3a16_g64", "w2a16_g32",
    "ternary_g32", "ternary_channel", "ternary_a8_tensor", "binary_g32", "nf4_g32", "log4_g64", "kmeans4_g32",
]  # fmt: skip


def float_linear(seed: int = 0, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(K, N, bias=bias)


def start_of(linear: nn.Linear, name: str) -> QuantizedLinear:
    scheme = SCHEMES[name]
    assert scheme.weight is not None
    return rounded_start(linear, scheme.weight, scheme.input)


def in_training(name: str, **options: bool) -> FakeLinear:
    linear = float_linear()
    return FakeLinear(linear, start_of(linear, name), **options)


def trained(fake: FakeLinear, steps: int = 8) -> FakeLinear:
    optimizer = torch.optim.AdamW(fake.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, K, generator=generator)
        optimizer.zero_grad()
        functional.mse_loss(fake(x), x[:, :N].tanh()).backward()
        optimizer.step()
    return fake


@pytest.mark.parametrize("name", NAMES)
def test_codes_of_the_file_are_codes_of_the_last_forward(name: str) -> None:
    fake = trained(in_training(name))
    seen = fake.fake_weight().detach()
    made = fake.quantized()
    assert torch.equal(made.weight.dequantize(), seen)
    assert not torch.equal(made.weight.codes_NK, in_training(name).quantized().weight.codes_NK)


@pytest.mark.parametrize("name", NAMES)
def test_training_begins_with_the_codes_and_scales_of_the_method(name: str) -> None:
    linear = float_linear()
    start = start_of(linear, name)
    made = FakeLinear(linear, start).quantized()
    assert torch.equal(made.weight.codes_NK, start.weight.codes_NK)
    assert torch.equal(made.weight.scale_NG, start.weight.scale_NG)


def test_training_begins_with_codes_that_are_not_the_nearest() -> None:
    linear = float_linear()
    spec = SCHEMES["w4a16_g32"].weight
    assert spec is not None
    nearest = rtn(linear.weight.detach(), None, spec, RANGES["absmax"]).qtensor
    moved = (nearest.codes_NK + torch.randint(-1, 2, (N, K), dtype=torch.int8)).clamp(spec.code_min, spec.code_max)
    start = QuantizedLinear(replace(nearest, codes_NK=moved))
    near = begun_at(linear.weight.detach(), start.weight)
    assert torch.equal(FakeLinear(linear, start).quantized().weight.codes_NK, moved)
    same = moved == nearest.codes_NK
    step = nearest.scale_NG.repeat_interleave(32, dim=1)
    away = (near - start.weight.dequantize()).abs()
    assert bool((away <= 0.26 * step).all()), "far from the edge, or the first steps of training move the codes back"
    assert bool((away[~same] > 0.24 * step[~same]).all()), "half way to the float weight, as far as the cell goes"


@pytest.mark.parametrize("name", ["w8a8", "w4a8_channel", "w4a16_g32", "ternary_g32"])
def test_the_forward_is_that_of_the_reference(name: str) -> None:
    fake = trained(in_training(name))
    x = torch.randn(5, 3, K)
    want = QuantLinear(fake.quantized())(x)
    torch.testing.assert_close(fake(x).detach(), want, rtol=1e-5, atol=1e-5)


def test_a_language_models_inputs_are_rounded_by_groups() -> None:
    linear = float_linear()
    fake = FakeLinear(linear, start_of(linear, "w4a16_g32"), rounds_groups=True)
    module = QuantLinear(fake.quantized())
    module.rounds_groups = True
    x = torch.randn(5, K)
    torch.testing.assert_close(fake(x).detach(), module(x), rtol=1e-5, atol=1e-5)
    assert not torch.equal(fake.fake_input(x), x)


def static_start(linear: nn.Linear) -> QuantizedLinear:
    scheme, scale_K = SCHEMES["w8a8_static"], torch.rand(K) + 0.5
    transform = InputTransform(scale_K, torch.randn(K) * 0.1)
    weight = transform.absorbed(linear.weight.detach())
    bias = transform.absorbed_bias(linear.weight.detach(), linear.bias.detach())
    assert scheme.weight is not None
    codes = rtn(weight, None, scheme.weight, RANGES["absmax"]).qtensor
    return QuantizedLinear(codes, bias, scheme.input, StaticGrid(0.03, 5), transform)


def test_a_static_input_keeps_its_transform_and_learns_its_scale() -> None:
    linear = float_linear()
    start = static_start(linear)
    fake = FakeLinear(linear, start)
    x = torch.randn(7, K)
    torch.testing.assert_close(fake(x).detach(), QuantLinear(start)(x), rtol=1e-5, atol=1e-5)
    made = trained(fake).quantized()
    torch.testing.assert_close(fake(x).detach(), QuantLinear(made)(x), rtol=1e-5, atol=1e-5)
    assert made.static is not None
    assert start.static is not None
    assert made.static.scale != start.static.scale
    assert made.static.zero_point == start.static.zero_point


def lsq(w: Tensor, s: Tensor, qn: int, qp: int) -> tuple[Tensor, Tensor]:
    """The gradients of sum(ŵ) by w and by s, as Esser et al. write them, of one scale."""
    v = w / s
    inside = (v > qn - 0.5) & (v < qp + 0.5)
    by_scale = torch.where(inside, v.round() - v, torch.where(v < 0, float(qn), float(qp)))
    return inside.float(), by_scale.sum() / (w.numel() * qp) ** 0.5


def test_gradients_are_those_of_lsq() -> None:
    linear = nn.Linear(K, 1, bias=False)
    start = start_of(linear, "w4a16_channel")
    fake = FakeLinear(linear, start)
    with torch.no_grad():
        fake.weight.mul_(3.0)  # so that some lie beyond the grid
    fake.fake_weight().sum().backward()
    scale = start.weight.scale_NG[0, 0]
    by_weight, by_scale = lsq(fake.weight.detach()[0], scale, -8, 7)
    assert fake.scale_gain is not None
    assert fake.weight.grad is not None
    assert torch.equal(fake.weight.grad[0], by_weight)
    assert 0 < int((by_weight == 0).sum()) < K
    torch.testing.assert_close(fake.scale_gain.grad, (by_scale * scale).reshape(1, 1))


def test_ternary_scales_follow_the_weights_by_rule() -> None:
    linear = float_linear()
    w = linear.weight.detach().clone()
    start = start_of(linear, "ternary_channel")
    by_mean = FakeLinear(linear, start, scale_rule="weights").quantized().weight
    torch.testing.assert_close(by_mean.scale_NG[:, 0], w.abs().mean(1))
    by_median = FakeLinear(float_linear(), start, scale_rule="median").quantized().weight
    torch.testing.assert_close(by_median.scale_NG[:, 0], w.abs().median(1).values)
    assert set(by_mean.codes_NK.unique().tolist()) == {-1, 0, 1}
    assert "scale_gain" not in dict(FakeLinear(float_linear(), start, scale_rule="weights").named_parameters())


@pytest.mark.parametrize("blend", [0.0, 1.0])
def test_one_scale_for_all_weights_trains_as_bitnet_does(blend: float) -> None:
    """Forward and gradients are those of b1.58's formulas (Ma et al. 2024), and of float before the switch to them."""
    linear, x = float_linear(), torch.randn(9, K, generator=torch.Generator().manual_seed(2))
    w = linear.weight.detach().clone().requires_grad_()
    fake = FakeLinear(linear, start_of(linear, "ternary_a8_tensor"), scale_rule="weights")
    fake.blend = blend
    scale, row = w.detach().abs().mean(), 127 / x.abs().amax(dim=1, keepdim=True)
    seen, held = (x * row).round() / row, (w.detach() / scale).round().clamp(-1, 1) * scale
    rounded = (functional.linear(seen, w + (held - w).detach(), fake.bias), functional.linear(x, w, fake.bias))
    want = rounded[0] if blend else rounded[1]
    torch.testing.assert_close(fake(x), want)
    (of_fake,) = torch.autograd.grad(fake(x).square().sum(), fake.weight)
    (wanted,) = torch.autograd.grad(want.square().sum(), w)
    torch.testing.assert_close(of_fake, wanted, rtol=1e-4, atol=1e-4)
    assert fake.quantized().weight.scale_NG.shape == (1, 1)


def test_blending_goes_from_float_to_the_grid() -> None:
    fake = in_training("w4a8_channel")
    x = torch.randn(4, K)
    fake.blend = 0.0
    assert torch.equal(fake(x), functional.linear(x, fake.weight, fake.bias))
    fake.blend = 1.0
    full = fake(x)
    fake.blend = 0.5
    half = fake.fake_weight()
    torch.testing.assert_close(half, (fake.weight + fake.quantized().weight.dequantize()) / 2)
    assert not torch.equal(fake(x), full)


def test_it_keeps_the_parameters_and_their_names() -> None:
    linear = float_linear()
    weight, bias = linear.weight, linear.bias
    fake = FakeLinear(linear, start_of(linear, "w4a8_channel"))
    assert fake.weight is weight
    assert fake.bias is bias
    assert isinstance(fake, nn.Linear)
    assert set(dict(fake.named_parameters())) == {"weight", "bias", "scale_gain"}
    other = in_training("w4a8_channel")
    trained(fake)
    other.load_state_dict(fake.state_dict())
    assert torch.equal(other.quantized().weight.codes_NK, fake.quantized().weight.codes_NK)


def test_bf16_mixed_precision_leaves_codes_to_float32() -> None:
    fake = in_training("w4a8_channel")
    x = torch.randn(4, K)
    with torch.autocast("cpu", torch.bfloat16):
        y = fake(x)
        assert torch.equal(fake.fake_weight(), fake.quantized().weight.dequantize())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), fake(x), rtol=0.02, atol=0.02)
