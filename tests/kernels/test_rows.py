"""The engine's elementwise operators against torch: as accurate, and every variant gives the same bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitwright.kernels import native

SIZES = [1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 100, 385]
EPS = torch.finfo(torch.float32).eps
KINDS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "int8"}
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.clone,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu2": lambda x: functional.relu(x).square(),
}


def values(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n + 1000 * seed)) * 3


def within(row: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with four elements of poison behind it, and a view of what comes before those."""
    padded = torch.cat([row, torch.full((4,), 7.0, dtype=row.dtype)])
    return padded, padded[: len(row)]


def activated(rows_variant: str, function: str, x: Tensor) -> Tensor:
    padded, row = within(x)
    bf16 = x.dtype == torch.bfloat16
    module = native.load()
    module.activate_row(rows_variant, row.data_ptr(), bf16, module.Function[function], len(row))
    assert (padded[len(row) :] == 7.0).all(), "wrote past the end"
    return row


@pytest.mark.parametrize("function", TORCHS)
def test_functions_are_nearly_as_accurate_as_torchs(rows_variant: str, function: str) -> None:
    far = torch.logspace(-30, 18 if function == "relu2" else 30, 601)  # the square of more is infinite
    x = torch.cat([torch.linspace(-20, 20, 40_001), far, -far])
    want = TORCHS[function](x.double())
    error = (activated(rows_variant, function, x).double() - want).abs()
    torchs = (TORCHS[function](x).double() - want).abs()
    small = want.abs() < 1
    assert error[small].max() <= 2 * torchs[small].max() + 4 * EPS
    assert (error[~small] <= 4 * EPS * want[~small].abs()).all()
    assert (error[:40_001] <= 5e-7 * want[:40_001].abs().clamp(min=1)).all(), "as contract.h says"


def test_small_values_keep_their_tanh(rows_variant: str) -> None:
    x = torch.logspace(-40, 0.5, 2001)
    x = torch.cat([x, -x, torch.zeros(1)])
    want = x.double().tanh()
    assert ((activated(rows_variant, "tanh", x).double() - want).abs() <= 5e-7 * want.abs()).all()


@pytest.mark.parametrize("function", TORCHS)
def test_functions_of_what_is_not_finite(rows_variant: str, function: str) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, 1e-45])
    torch.testing.assert_close(activated(rows_variant, function, x), TORCHS[function](x), equal_nan=True)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("function", TORCHS)
def test_bf16_is_float32_rounded_and_variants_agree_bit_by_bit(rows_variant: str, function: str, n: int) -> None:
    x = values(n).bfloat16()
    exact = activated(rows_variant, function, x.float())
    assert torch.equal(exact, activated("scalar", function, x.float()))
    assert torch.equal(activated(rows_variant, function, x), exact.bfloat16())


@pytest.mark.parametrize("n", SIZES)
def test_round(rows_variant: str, n: int) -> None:
    x = values(n)
    x[n // 2] = 1 + 2**-8  # halfway
    x[n // 3] = torch.nan
    padded, row = within(torch.zeros(n, dtype=torch.bfloat16))
    native.load().round_row(rows_variant, x.data_ptr(), row.data_ptr(), n)
    assert torch.equal(row.nan_to_num(9), x.bfloat16().nan_to_num(9))
    assert (padded[n:] == 7.0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("function", TORCHS)
def test_gate(rows_variant: str, function: str, n: int) -> None:
    both = torch.cat([values(n), values(n, 1)]).bfloat16()
    both[n // 2] = torch.inf
    padded, row = within(torch.zeros(n))
    address, module = both.data_ptr(), native.load()
    module.gate_row(rows_variant, address, address + 2 * n, module.Function[function], row.data_ptr(), n)
    assert torch.equal(row, activated(rows_variant, function, both[:n].float()) * both[n:])
    assert (padded[n:] == 7.0).all()


@pytest.mark.parametrize("size", [8, 16, 24, 32, 64, 72, 128])
@pytest.mark.parametrize("fixed", [0, 8])
def test_rotate(rows_variant: str, size: int, fixed: int) -> None:
    """fixed: values of a head that stay, after those that rotate."""
    heads, half = 3, size // 2
    padded, row = within(values(heads * (size + fixed)).bfloat16())
    angle = values(half, 1)
    cos, sin = angle.cos(), angle.sin()
    rotating, rest = row.clone().reshape(heads, -1).split([size, fixed], 1)
    a, b = rotating.float().reshape(heads, 2, half).unbind(1)
    rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], 1).bfloat16().reshape(heads, size)
    native.load().rotate_row(rows_variant, row.data_ptr(), heads, size + fixed, size, cos.data_ptr(), sin.data_ptr())
    assert torch.equal(row, torch.cat([rotated, rest], 1).flatten())
    assert (padded[len(row) :] == 7.0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("taps", [1, 3, 8])
@pytest.mark.parametrize("biased", [False, True])
def test_convolve(rows_variant: str, n: int, taps: int, biased: bool) -> None:
    """The rows before the text are left out, and stand for zeros."""
    module = native.load()
    b, c, x = (values(n, seed).bfloat16() for seed in range(3))
    weight, bias = values(taps * n, 3).reshape(taps, n), values(n, 4)
    earlier = values(taps * n, 5).reshape(taps, n)[1:].bfloat16()
    missing = (taps - 1) // 2
    before = [0 if tap < missing else row.data_ptr() for tap, row in enumerate(earlier)]
    (product_padded, product), (padded, y) = (within(torch.zeros(n, dtype=torch.bfloat16)) for _ in range(2))
    row = module.ConvolveRow(
        b=b.data_ptr(), c=c.data_ptr(), x=x.data_ptr(), weight=weight.data_ptr(), weight_stride=n,
        bias=bias.data_ptr() if biased else 0, product=product.data_ptr(), y=y.data_ptr(),
    )  # fmt: skip
    module.convolve_row(rows_variant, row, before, n)
    earlier[:missing] = 0
    assert torch.equal(product, (b.float() * x.float()).bfloat16())
    total = bias.clone() if biased else torch.zeros(n)
    for tap, products in enumerate([*earlier, product]):
        total += weight[tap] * products.float()
    assert torch.equal(y, (c.float() * total).bfloat16())
    assert (padded[n:] == 7.0).all()
    assert (product_padded[n:] == 7.0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("positions", "types"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("factor", [1.0, 5.5])
def test_embed(rows_variant: str, n: int, kind: torch.dtype, positions: bool, types: bool, factor: float) -> None:
    scale = 0.037 if kind == torch.int8 else 1.0
    word, position, type_ = (values(n) * 20).to(kind), values(n, 1), values(n, 2)
    padded, row = within(torch.zeros(n))
    module = native.load()
    op = module.EmbedRow(
        word=word.data_ptr(),
        kind=module.WordKind[KINDS[kind]],
        scale=scale,
        position=position.data_ptr() * positions,
        type=type_.data_ptr() * types,
        factor=factor,
    )
    module.embed_row(rows_variant, op, row.data_ptr(), n)
    assert torch.equal(row, word.float() * scale * factor + position * positions + type_ * types)
    assert (padded[n:] == 7.0).all()
