"""The modules that are swapped in: kernel and reference path agree, and nothing changes their numbers unasked."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from bitwright.errors import KernelError, NumericsError
from bitwright.kernels import dispatch, reference
from bitwright.kernels.linear import HalfLinear, QuantEmbedding, QuantLinear, runs_natively
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec

W8A8 = [scheme.input for scheme in SCHEMES.values() if scheme.input is not None]


def quantized(n=48, k=70, spec=None, dtype=torch.float32):
    """A random quantized weight."""
    spec = spec or QuantSpec()
    g = torch.Generator().manual_seed(n + k)
    codes = torch.randint(spec.code_min, spec.code_max + 1, (n, k), dtype=torch.int8, generator=g)
    shape = (1, 1) if spec.per_tensor else (n, k // (spec.group_size or k))
    zero = None if spec.symmetric else torch.randint(-8, 8, shape, dtype=torch.int8, generator=g)
    return QTensor(codes, (torch.rand(shape, generator=g) * 0.01 + 1e-3).to(dtype), zero, spec)


def input_grid(spec):
    """The scale and zero point of a static spec."""
    if spec is None or spec.dynamic:
        return None, None
    return torch.tensor([0.03]), None if spec.symmetric else torch.tensor([5], dtype=torch.int8)


def module(q, bias=None, spec=None, *, scale=None, shift=None, **how):
    """The module of a linear; a static input's grid is `input_grid`'s."""
    static = None
    if spec is not None and not spec.dynamic:
        static = StaticGrid(float(input_grid(spec)[0]), 0 if spec.symmetric else 5)
    transform = None if scale is None and shift is None else InputTransform(scale, shift)
    return QuantLinear(QuantizedLinear(q, bias, spec, static, transform), **how)


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("spec", W8A8)
@pytest.mark.parametrize("weight_spec", [QuantSpec(), QuantSpec(per_tensor=True), QuantSpec(full_range=True)])
@pytest.mark.parametrize("gelu", [False, True])
def test_w8a8_runs_the_kernel_and_equals_the_definition(spec, weight_spec, gelu):
    q, bias, x = quantized(spec=weight_spec), inputs(48), inputs(2, 5, 70)
    layer = module(q, bias, spec, gelu=gelu, name="a.b")
    before = dispatch.kernel_calls()
    y = layer(x)
    assert dispatch.kernel_calls() == before + 1
    codes = reference.quantize_rows(x.view(10, 70), spec, *input_grid(spec))
    scale_N = q.scale_NG.flatten().expand(48)
    want = reference.linear_w8a8(*codes, q.codes_NK, scale_N, bias, gelu=gelu).view(2, 5, 48)
    torch.testing.assert_close(y, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("weight_spec", "spec"),
    [
        (QuantSpec(), None),
        (QuantSpec(bits=4, group_size=10), None),
        (QuantSpec(bits=4, group_size=10, symmetric=False), None),
        (QuantSpec(bits=4, group_size=10), SCHEMES["w8a8"].input),
        (QuantSpec(symmetric=False), SCHEMES["w8a8"].input),
        (QuantSpec(), QuantSpec(dynamic=True, full_range=True)),
        (QuantSpec(), QuantSpec(bits=4, dynamic=True)),
    ],
)
def test_everything_else_runs_the_reference_path(weight_spec, spec):
    q, bias, x = quantized(spec=weight_spec), inputs(48), inputs(3, 70)
    before = dispatch.kernel_calls()
    y = module(q, bias, spec, gelu=True)(x)
    assert dispatch.kernel_calls() == before
    if spec is not None:
        codes, scale, zero = reference.quantize_rows(x, spec)
        x = (codes - zero).float() * scale
    torch.testing.assert_close(y, functional.gelu(functional.linear(x, q.dequantize(), bias)))


def scheme_layer(name, *, bias=True, transformed=False, gelu=False):
    """A linear of 384 inputs and 24 outputs in a scheme, and what it should compute, in float64 from x float64."""
    scheme = SCHEMES[name]
    g = torch.Generator().manual_seed(5)
    w = torch.randn(24, 384, generator=g)
    ends = torch.aminmax(grouped(w, scheme.weight), dim=-1)
    q = quantize(w, *scale_and_zero_point(ends.min, ends.max, scheme.weight), scheme.weight)
    transform = {}
    if transformed:
        transform["scale"] = torch.rand(384, generator=g) * 4 + 0.1
        transform["shift"] = torch.randn(384, generator=g)
    b = inputs(24) if bias else None
    layer = module(q, b, scheme.input, gelu=gelu, **transform)

    def expected(x):
        if transformed:
            x = (x.float() - transform["shift"]) * (1.0 / transform["scale"])
        if scheme.input is not None:
            codes, scale, zero = reference.quantize_rows(x, scheme.input, *input_grid(scheme.input))
            x = (codes - zero).double() * scale.double()
        y = functional.linear(x.double(), q.dequantize().double(), None if b is None else b.double())
        return functional.gelu(y) if gelu else y

    return layer, expected


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.weight is not None])
def test_every_scheme_computes_what_its_codes_say(name, transformed, gelu):
    layer, expected = scheme_layer(name, transformed=transformed, gelu=gelu)
    x = inputs(2, 3, 384)
    before = dispatch.kernel_calls()
    y = layer(x)
    assert dispatch.kernel_calls() - before == layer.native == runs_natively(SCHEMES[name].weight, SCHEMES[name].input)
    torch.testing.assert_close(y.double(), expected(x.view(6, 384)).view(2, 3, 24), rtol=1e-5, atol=1e-4)


def test_a_weight_with_minima_is_what_its_codes_say():
    spec = QuantSpec(bits=4, symmetric=False, group_size=35)
    held = quantized(spec=spec)
    q = QTensor(held.codes_NK, held.scale_NG, None, spec, minimum_NG=-5 * held.scale_NG.flip(0))
    layer, x = module(q, inputs(48)), inputs(4, 70)
    assert torch.equal(layer.qtensor().dequantize(), q.dequantize())
    torch.testing.assert_close(layer(x), functional.linear(x, q.dequantize(), inputs(48)))


@pytest.mark.parametrize("name", ["w4a16_g128", "w4a16_g32_asym", "nf4_g64", "ternary_channel", "w4a8_g128", "w8a8"])
@pytest.mark.parametrize("transformed", [False, True])
def test_bf16_in_bf16_out_within_its_rounding(name, transformed):
    layer, expected = scheme_layer(name, transformed=transformed)
    x = inputs(6, 384).bfloat16()
    y, want = layer(x), expected(x)
    assert y.dtype == torch.bfloat16
    # Of input, weight and output: three roundings of 2⁻⁹ each, the first two averaged over 384 products.
    assert (y.double() - want).norm() < 2**-8 * want.norm()


@pytest.mark.parametrize("half", ["scale", "shift"])
@pytest.mark.parametrize("spec", [None, W8A8[0]])
def test_scale_or_shift_alone(half, spec):
    q, x, values = quantized(), inputs(4, 70), inputs(70).abs() + 0.2
    y = module(q, None, spec, **{half: values})(x)
    by_hand = x - values if half == "shift" else x * (1.0 / values)
    assert torch.equal(y, module(q, None, spec)(by_hand))


@pytest.mark.parametrize("spec", [None, *W8A8])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_gives_its_quantized_weight_back(spec, weight_dtype):
    q = quantized(dtype=weight_dtype)
    back = module(q, None, spec).qtensor()
    assert torch.equal(back.codes_NK, q.codes_NK)
    assert torch.equal(back.scale_NG, q.scale_NG)
    assert back.scale_NG.dtype == weight_dtype
    assert back.spec == q.spec


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_input(dtype):
    layer, x = module(quantized(), None, W8A8[0]), inputs(4, 70).to(dtype)
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


def test_leading_dimensions_of_any_number():
    layer, x = module(quantized(), None, W8A8[0]), inputs(2, 3, 4, 70)
    flat = layer(x.view(24, 70))
    assert torch.equal(layer(x), flat.view(2, 3, 4, 48))
    assert torch.equal(layer(x[1, 2, 3]), flat[23])
    assert torch.equal(layer(x[:, 0]), flat.view(2, 3, 4, 48)[:, 0]), "a view that is not contiguous"
    assert layer(x[:0]).shape == (0, 3, 4, 48)


@pytest.mark.parametrize("change", ["half", "bfloat16", "double", "deepcopy", "pickle"])
def test_numbers_survive(change):
    layer, x = module(quantized(), inputs(48), W8A8[2]), inputs(4, 70)
    want = layer(x)
    if change == "deepcopy":
        layer = copy.deepcopy(layer)
    elif change == "pickle":
        layer = pickle.loads(pickle.dumps(layer))
    else:
        layer = getattr(nn.Sequential(layer), change)()[0]
    assert torch.equal(layer(x), want)


def test_state_dict_is_empty_since_checkpoints_come_from_qtensors():
    assert module(quantized(), inputs(48), W8A8[0]).state_dict() == {}


def test_gradient_stops_here():
    x = inputs(2, 70).requires_grad_()
    assert not module(quantized(), None, W8A8[0])(x).requires_grad


def test_the_default_dtype_of_torch_changes_nothing():
    """vLLM builds models with bfloat16 as the default."""
    x, statics = inputs(2, 70), [None if s.dynamic else StaticGrid(0.03, 0 if s.symmetric else 5) for s in W8A8]
    linears = [QuantizedLinear(quantized(), None, s, static) for s, static in zip(W8A8, statics, strict=True)]
    want = [QuantLinear(linear)(x) for linear in linears]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = [QuantLinear(linear)(x) for linear in linears]
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


def test_compiles_into_one_graph():
    torch.compiler.reset()
    layer, x = module(quantized(), inputs(48), W8A8[0], gelu=True), inputs(2, 5, 70)
    before = dispatch.kernel_calls()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
    assert dispatch.kernel_calls() == before + 2


def test_what_does_not_fit_says_so():
    layer = module(quantized(), None, W8A8[0], name="encoder.0.dense")
    with pytest.raises(KernelError, match=r"encoder.0.dense: the input has the shape \(2, 71\), but K = 70"):
        layer(torch.zeros(2, 71))
    with pytest.raises(NumericsError, match=r"bias must be float32 \(48,\), got torch.float32 \(47,\)"):
        module(quantized(), torch.zeros(47), W8A8[0], name="encoder.0.dense")
    with pytest.raises(NumericsError, match="dynamic = False, but input_scale is absent"):
        QuantizedLinear(quantized(), None, SCHEMES["w8a8_static"].input)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_linear_is_close_to_float(dtype):
    weight, bias, x = inputs(48, 70), inputs(48), inputs(3, 70)
    layer = HalfLinear(weight.to(dtype), bias)
    y, want = layer(x), functional.linear(x, weight, bias)
    assert y.dtype == x.dtype
    step = torch.finfo(dtype).eps
    assert (y - want).abs().max() < 4 * step * (x.abs() @ weight.abs().T).max()
    assert layer.half().weight.dtype == dtype
    assert layer(x.half()).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_linear_rounds_no_bias_of_the_files(dtype):
    """As every other reader: the same weight, and a bias that 16 bits cannot hold, is a sum in float32."""
    weight, bias, x = inputs(48, 70).to(dtype), inputs(48) + 1e-5, inputs(3, 70).to(dtype).float()
    layer, plain = HalfLinear(weight, bias), HalfLinear(weight, None)
    assert torch.allclose(layer(x), plain(x) + bias, rtol=0, atol=1e-6)
    assert HalfLinear(weight, bias.to(dtype).float()).bias.dtype == dtype


def test_half_linear_takes_16_bit_only():
    with pytest.raises(KernelError, match=r"got torch.float32"):
        HalfLinear(torch.zeros(2, 2), None)


def test_embedding_looks_up_dequantized_rows():
    table, ids = quantized(n=20, k=8), torch.tensor([[0, 3, 19], [7, 7, 1]])
    layer = QuantEmbedding(table, padding_idx=0)
    assert torch.equal(layer(ids), table.dequantize()[ids])
    assert torch.equal(layer.half()(ids), table.dequantize()[ids])
    assert layer.qtensor() is not table
    assert torch.equal(layer.qtensor().codes_NK, table.codes_NK)
    assert set(layer.state_dict()) == {"weight", "scale"}


def test_embedding_has_one_scale_per_row():
    with pytest.raises(KernelError, match="one scale per row"):
        QuantEmbedding(quantized(spec=QuantSpec(per_tensor=True)))


def test_print_says_what_runs():
    text = str(nn.Sequential(module(quantized(), None, W8A8[0], gelu=True), module(quantized(), None, None)))
    assert "70 -> 48, 8 bit, input 8 bit, int8 kernel, GELU" in text
    assert "70 -> 48, 8 bit, input float, reference" in text
