"""norm against its definition in float64; every variant gives the same bits."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bitwright.kernels import dispatch, native, reference

VARIANTS = [row.name for row in dispatch.variants("norm") if row.supported]


@dataclass(frozen=True)
class Problem:
    """Operands with rows `stride` apart, and what lies between them poisoned."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor | None
    n: int
    centred: bool = True

    def run(self, variant: str, rows: slice, *, keep_sum: bool) -> tuple[Tensor, Tensor]:
        y, total = torch.full_like(self.x, torch.nan), torch.full_like(self.x, torch.nan)
        op = native.load().Norm(
            x=self.x.data_ptr(),
            residual=_address(self.residual),
            sum=total.data_ptr() if keep_sum else 0,
            y=y.data_ptr(),
            weight=self.weight.data_ptr(),
            bias=_address(self.bias),
            stride=self.x.stride(0),
            n=self.n,
            eps=1e-5,
            centred=self.centred,
        )
        native.load().norm(variant, op, rows.start, rows.stop)
        return total, y


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def problem(n: int, *, residual: bool, bias: bool, offset: float = 0.0) -> Problem:
    generator = torch.Generator().manual_seed(n)
    shape = (7, n + 5)
    x = torch.randn(shape, generator=generator) + offset
    added = torch.randn(shape, generator=generator) if residual else None
    for values in (x, added):
        if values is not None:
            values[:, n:] = torch.nan
    weight = torch.randn(n, generator=generator)
    return Problem(x, added, weight, torch.randn(n, generator=generator) if bias else None, n)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 384, 1000])
@pytest.mark.parametrize(("residual", "keep_sum", "bias"), [(True, True, True), (True, False, True), (False,) * 3])
def test_definition(norm_variant: str, n: int, residual: bool, keep_sum: bool, bias: bool) -> None:
    given = problem(n, residual=residual, bias=bias, offset=3.0)
    total, y = given.run(norm_variant, slice(0, 7), keep_sum=keep_sum)
    operands = [None if t is None else t[..., :n].double() for t in (given.x, given.residual, given.weight, given.bias)]
    x, added, weight, bias_N = operands
    assert x is not None
    assert weight is not None
    want_sum, want = reference.norm(x, added, weight, bias_N, 1e-5)
    if keep_sum:
        assert torch.equal(total[:, :n], want_sum.float())
    single = [None if t is None else t.float() for t in operands]
    assert single[0] is not None
    assert single[2] is not None
    torchs = (reference.norm(single[0], single[1], single[2], single[3], 1e-5)[1] - want).abs().max()
    assert (y[:, :n] - want).abs().max() <= 2 * torchs + 4 * torch.finfo(torch.float32).eps * want.abs().max()
    assert y[:, n:].isnan().all(), "nothing is written beyond a row"


@pytest.mark.parametrize("n", [17, 384])
def test_every_variant_gives_the_same_bits(n: int) -> None:
    given = problem(n, residual=True, bias=True)
    results = [given.run(variant, slice(0, 7), keep_sum=True)[1][:, :n] for variant in VARIANTS]
    assert all(torch.equal(result, results[0]) for result in results)


def test_only_the_asked_rows_are_written_and_nan_stays_in_its_row(norm_variant: str) -> None:
    given = problem(40, residual=True, bias=True)
    whole = given.run(norm_variant, slice(0, 7), keep_sum=False)[1]
    part = given.run(norm_variant, slice(2, 5), keep_sum=False)[1]
    assert torch.equal(part[2:5, :40], whole[2:5, :40])
    assert part[:2].isnan().all()
    assert part[5:].isnan().all()
    given.x[3, 7] = torch.inf
    poisoned = given.run(norm_variant, slice(0, 7), keep_sum=False)[1]
    assert poisoned[3, :40].isnan().all()
    assert torch.equal(poisoned[4:, :40], whole[4:, :40])
