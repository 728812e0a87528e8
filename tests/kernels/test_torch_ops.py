"""Our operators in torch.ops: the numbers of the kernels they call, and what torch.compile must know of them."""

import pytest
import torch

from bitwright.kernels import cpu, layouts, reference, torch_ops
from bitwright.kernels.input_grid import InputGrid
from bitwright.numerics.spec import QuantSpec

SIZES = [(0, 40, 64), (1, 1, 8), (3, 17, 72), (5, 33, 576), (40, 70, 192), (200, 48, 96)]  # M, N, K


@pytest.fixture(scope="module", autouse=True)
def operators():
    torch_ops.load()


def rows(m, k, dtype):
    return torch.randn(m, k, generator=torch.Generator().manual_seed(m + k)).to(dtype)


def int8_linear(n, k, seed=0):
    """What the operator takes of a random linear."""
    draw = torch.Generator().manual_seed(seed)
    codes_NK = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=draw)
    scale_N, bias_N = torch.rand(n, generator=draw) / 100, torch.randn(n, generator=draw)
    columns = (layouts.column_sums(codes_NK), layouts.pad_columns(scale_N), layouts.pad_columns(bias_N))
    return layouts.pack(codes_NK), *columns


def grouped_linear(n, k, group, bits, *, zeros, seed=0):
    """Codes, scales, zero points and bias of a linear of groups, and what the operator of int8 inputs takes of them."""
    draw = torch.Generator().manual_seed(seed)
    codes_NK = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=draw)
    scale_NG = (torch.rand(n, k // group, generator=draw) / 100).bfloat16().float()
    zero_NG = torch.randint(0, 1 << bits, (n, k // group), dtype=torch.uint8, generator=draw) if zeros else None
    bias_N = torch.randn(n, generator=draw)
    inputs = layouts.input_group_w4a8(group)
    held = layouts.bits_wna8(bits, inputs)
    if held != bits and zero_NG is None:  # without zero points the middle of the held codes stands for 0
        codes_NK += (1 << held - 1) - (1 << bits - 1)
    (scale,) = layouts.pack_scales(scale_NG)
    zero = None if zero_NG is None else layouts.pack_groups(zero_NG)
    packed = (layouts.pack_wna8(codes_NK, held), scale, zero, None, None, layouts.pad_columns(bias_N))
    offset_NG = torch.full_like(scale_NG, 1 << held - 1) if zero_NG is None else zero_NG.float()
    weight_NK = ((codes_NK.float().view(n, -1, group) - offset_NG[..., None]) * scale_NG[..., None]).view(n, k)
    return (weight_NK, bias_N), packed, (n, held, inputs, group // inputs)


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_linear_is_the_one_of_the_modules(m, n, k, dtype):
    packed = int8_linear(n, k)
    x = rows(m, k, dtype)
    for mode, grid in enumerate((InputGrid("asymmetric"), InputGrid("symmetric", code_min=-127))):
        got = torch.ops.bitwright.linear_w8a8(x, *packed, None, None, n, mode, 1.0, 0, grid.code_min, 0)
        assert torch.equal(got, cpu.linear_w8a8(x, cpu.PackedLinear(*packed), n, grid))
    assert got.dtype == dtype
    assert got.shape == (m, n)


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("zeros", [False, True])
def test_linear_of_groups_is_the_reference(m, n, k, bits, zeros):
    group = next(size for size in (64, 32, 24, 8) if k % size == 0)
    (weight_NK, bias_N), packed, numbers = grouped_linear(n, k, group, bits, zeros=zeros)
    x = rows(m, k, torch.float32)
    got = torch.ops.bitwright.linear_wna8(x, *packed, None, None, *numbers)
    want = reference.rounded_groups(x, numbers[2]).double() @ weight_NK.double().T + bias_N
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)
    got = torch.ops.bitwright.linear_wna16(x, *packed, *numbers)
    want = x.bfloat16().double() @ weight_NK.double().T + bias_N
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_strided_rows_are_read_where_they_lie():
    _, packed, numbers = grouped_linear(48, 64, 32, 4, zeros=False)
    wide = rows(6, 200, torch.bfloat16)
    view = wide[::2, 10:74]
    for operator, more in ((torch.ops.bitwright.linear_wna8, (None, None)), (torch.ops.bitwright.linear_wna16, ())):
        got = operator(view, *packed, *more, *numbers)
        assert torch.equal(got, operator(view.contiguous(), *packed, *more, *numbers))


@pytest.mark.parametrize("m", [1, 7])
def test_torch_compile_knows_shapes_and_leaves_no_break(m):
    int8 = int8_linear(40, 64)
    _, grouped, numbers = grouped_linear(40, 64, 32, 4, zeros=True)
    int8 = (*int8, None, None, 40, 1, 1.0, 0, -127, 0)
    x = rows(m, 64, torch.bfloat16)
    for operator, arguments in (
        ("linear_w8a8", int8),
        ("linear_wna8", (*grouped, None, None, *numbers)),
        ("linear_wna16", (*grouped, *numbers)),
    ):
        call = getattr(torch.ops.bitwright, operator)
        torch.library.opcheck(call.default, (x, *arguments), test_utils=("test_schema", "test_faketensor"))
        compiled = torch.compile(lambda x, f=call, a=arguments: f(x * 2, *a) + 1, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), call(x * 2, *arguments) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 64, dtype=torch.float16)}, "float32 or bfloat16"),
        ({"x": torch.zeros(64)}, r"\(M, K\)"),
        ({"x": torch.zeros(2, 96)}, "weight: int8, packed"),
        ({"n": 80}, "weight: int8, packed"),
        ({"bias": torch.zeros(40)}, "bias: float32, N padded"),
    ],
)
def test_what_does_not_fit_raises(change, message):
    packed = int8_linear(40, 64)
    weight, colsum, scale, bias = packed
    x, n, bias = change.get("x", torch.zeros(2, 64)), change.get("n", 40), change.get("bias", bias)
    with pytest.raises(ValueError, match=message):
        torch.ops.bitwright.linear_w8a8(x, weight, colsum, scale, bias, None, None, n, 1, 1.0, 0, -127, 0)


def int8_experts(experts, n, k):
    """Dequantized weights (E, N, K), and what the operator takes of one linear of all experts."""
    packed = [int8_linear(n, k, seed) for seed in range(experts)]
    stacked = [torch.stack(parts) for parts in zip(*packed, strict=True)]
    codes = [layouts.unpack(weight, n, k) for weight, *_ in packed]
    scales = [scale[:n, None] for _, _, scale, _ in packed]
    return torch.stack([c.float() * s for c, s in zip(codes, scales, strict=True)]), stacked[3][:, :n], stacked


def grouped_experts(experts, n, k, group):
    made = [grouped_linear(n, k, group, 4, zeros=True, seed=seed) for seed in range(experts)]
    weight = torch.stack([weight for (weight, _), _, _ in made])
    bias = torch.stack([bias for (_, bias), _, _ in made])
    codes, scale, zero, _, _, held = (
        None if parts[0] is None else torch.stack(parts)
        for parts in zip(*[packed for _, packed, _ in made], strict=True)
    )
    return weight, bias, (codes, scale.float(), zero, held), made[0][2][-2:]


def mixture(x, weights, ids, up, up_bias, down, down_bias, round_up, round_down):
    """y of each token, expert by expert, in float64."""
    y = torch.zeros(len(x), x.shape[1], dtype=torch.float64)
    for t, (row, row_weights, row_ids) in enumerate(zip(x, weights, ids, strict=True)):
        for weight, e in zip(row_weights, row_ids, strict=True):
            gate, raised = (
                (round_up(row[None])[0].double() @ up[e].double().T + up_bias[e]).bfloat16().double().chunk(2)
            )
            inner = torch.nn.functional.silu(gate) * raised
            y[t] += weight * (round_down(inner.float()[None])[0].double() @ down[e].double().T + down_bias[e])
    return y


def routes(m, experts, choices):
    draw = torch.Generator().manual_seed(m)
    ids = torch.stack([torch.randperm(experts, generator=draw)[:choices] for _ in range(m)]).int()
    return torch.rand(m, choices, generator=draw), ids


def rounded_rows(x):
    codes, scale, zero = reference.quantize_rows(x, QuantSpec(bits=8, dynamic=True, symmetric=True))
    return (codes.float() - zero.float()) * scale


@pytest.mark.parametrize("m", [1, 5, 60])
def test_experts_in_int8_are_the_reference(m):
    k, inner, count = 72, 40, 6
    up, up_bias, up_packed = int8_experts(count, 2 * inner, k)
    down, down_bias, down_packed = int8_experts(count, k, inner)
    x, (weights, ids) = rows(m, k, torch.float32), routes(m, count, 2)
    got = torch.ops.bitwright.experts_w8a8(x, weights, ids, *up_packed, *down_packed, inner)
    want = mixture(x, weights, ids, up, up_bias, down, down_bias, rounded_rows, rounded_rows)
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2 * want.std().item())
    alone = [torch.ops.bitwright.experts_w8a8(x[i : i + 1], weights[i : i + 1], ids[i : i + 1], *up_packed,
                                              *down_packed, inner) for i in range(m)]  # fmt: skip
    assert torch.equal(got, torch.cat(alone))  # neighbours change no bit


@pytest.mark.parametrize("m", [1, 60])
def test_experts_of_groups_are_the_reference(m):
    k, inner, count = 96, 64, 5
    up, up_bias, up_packed, up_groups = grouped_experts(count, 2 * inner, k, 32)
    down, down_bias, down_packed, down_groups = grouped_experts(count, k, inner, 64)
    x, (weights, ids) = rows(m, k, torch.float32), routes(m, count, 3)
    got = torch.ops.bitwright.experts_wna8(
        x, weights, ids, *up_packed, *down_packed, inner, 4, *up_groups, *down_groups
    )
    want = mixture(
        x, weights, ids, up, up_bias, down, down_bias,
        lambda x: reference.rounded_groups(x, 32), lambda x: reference.rounded_groups(x, 64),
    )  # fmt: skip
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2 * want.std().item())
    wrong = ids.clone()
    wrong[0, 0] = count
    with pytest.raises(ValueError, match="topk_ids name an expert that there is not"):
        torch.ops.bitwright.experts_wna8(
            x, weights, wrong, *up_packed, *down_packed, inner, 4, *up_groups, *down_groups
        )
