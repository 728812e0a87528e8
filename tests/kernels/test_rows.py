"""The engine's elementwise operators against torch: as accurate, and every variant gives the same bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitwright.engine.executor import _FUNCTIONS
from bitwright.kernels import dispatch, native

ISAS = [row.name for row in dispatch.isa_table() if row.supported]
SIZES = [1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 100, 385]
EPS = torch.finfo(torch.float32).eps
TORCHS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def values(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n + 1000 * seed)) * 3


def within(row: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with four elements of poison behind it, and a view of what comes before those."""
    padded = torch.cat([row, torch.full((4,), 7.0, dtype=row.dtype)])
    return padded, padded[: len(row)]


def activated(isa: str, function: str, x: Tensor) -> Tensor:
    padded, row = within(x)
    bf16 = x.dtype == torch.bfloat16
    native.load().activate_row(
        dispatch.isa_index(isa), row.data_ptr(), bf16, _FUNCTIONS.index(function), len(row)
    )  # fmt: skip
    assert (padded[len(row) :] == 7.0).all(), "wrote past the end"
    return row


@pytest.mark.parametrize("function", _FUNCTIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_functions_are_nearly_as_accurate_as_torchs(isa: str, function: str) -> None:
    x = torch.cat([torch.linspace(-20, 20, 40_001), torch.logspace(-30, 30, 601), -torch.logspace(-30, 30, 601)])
    want = TORCHS[function](x.double())
    error = (activated(isa, function, x).double() - want).abs()
    torchs = (TORCHS[function](x).double() - want).abs()
    small = want.abs() < 1
    assert error[small].max() <= 2 * torchs[small].max() + 4 * EPS
    assert (error[~small] <= 4 * EPS * want[~small].abs()).all()
    assert (error[:40_001] <= 5e-7 * want[:40_001].abs().clamp(min=1)).all(), "as contract.h says"


@pytest.mark.parametrize("isa", ISAS)
def test_small_values_keep_their_tanh(isa: str) -> None:
    x = torch.logspace(-40, 0.5, 2001)
    x = torch.cat([x, -x, torch.zeros(1)])
    want = x.double().tanh()
    assert ((activated(isa, "tanh", x).double() - want).abs() <= 5e-7 * want.abs()).all()


@pytest.mark.parametrize("function", _FUNCTIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_functions_of_what_is_not_finite(isa: str, function: str) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -3e38, 1e-45])
    torch.testing.assert_close(activated(isa, function, x), TORCHS[function](x), equal_nan=True)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("function", _FUNCTIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_bf16_is_float32_rounded_and_variants_agree_bit_by_bit(isa: str, function: str, n: int) -> None:
    x = values(n).bfloat16()
    exact = activated(isa, function, x.float())
    assert torch.equal(exact, activated("scalar", function, x.float()))
    assert torch.equal(activated(isa, function, x), exact.bfloat16())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_round(isa: str, n: int) -> None:
    x = values(n)
    x[n // 2] = 1 + 2**-8  # halfway
    x[n // 3] = torch.nan
    padded, row = within(torch.zeros(n, dtype=torch.bfloat16))
    native.load().round_row(dispatch.isa_index(isa), x.data_ptr(), row.data_ptr(), n)
    assert torch.equal(row.nan_to_num(9), x.bfloat16().nan_to_num(9))
    assert (padded[n:] == 7.0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("isa", ISAS)
def test_gate(isa: str, n: int) -> None:
    both = torch.cat([values(n), values(n, 1)]).bfloat16()
    both[n // 2] = torch.inf
    padded, row = within(torch.zeros(n, dtype=torch.bfloat16))
    address = both.data_ptr()
    native.load().gate_row(dispatch.isa_index(isa), address, address + 2 * n, row.data_ptr(), n)
    assert torch.equal(row, both[:n] * both[n:])
    assert (padded[n:] == 7.0).all()


@pytest.mark.parametrize("size", [8, 16, 24, 32, 64, 72, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_rotate(isa: str, size: int) -> None:
    heads, half = 3, size // 2
    padded, row = within(values(heads * size).bfloat16())
    angle = values(half, 1)
    cos, sin = angle.cos(), angle.sin()
    a, b = row.float().reshape(heads, 2, half).unbind(1)
    want = torch.stack([a * cos - b * sin, b * cos + a * sin], 1).bfloat16().flatten()
    native.load().rotate_row(dispatch.isa_index(isa), row.data_ptr(), heads, size, cos.data_ptr(), sin.data_ptr())
    assert torch.equal(row, want)
    assert (padded[heads * size :] == 7.0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("positions", "types"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("isa", ISAS)
def test_embed(isa: str, n: int, kind: torch.dtype, positions: bool, types: bool) -> None:
    scale = 0.037 if kind == torch.int8 else 1.0
    word, position, type_ = (values(n) * 20).to(kind), values(n, 1), values(n, 2)
    padded, row = within(torch.zeros(n))
    native.load().embed_row(
        dispatch.isa_index(isa), word.data_ptr(), (torch.float32, torch.bfloat16, torch.int8).index(kind), scale,
        position.data_ptr() * positions, type_.data_ptr() * types, row.data_ptr(), n,
    )  # fmt: skip
    assert torch.equal(row, word.float() * scale + position * positions + type_ * types)
    assert (padded[n:] == 7.0).all()
