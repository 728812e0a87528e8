"""What the tests of linear_w4a8 and linear_w4a16 share: the weight that both multiply by, and what they may write."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bitwright.kernels import layouts, native


class Problem(Protocol):
    """A weight: its codes, its scales, its zero points or minima, or neither; a bias."""

    @property
    def weight_NK(self) -> Tensor: ...
    @property
    def bits(self) -> int: ...
    @property
    def scale_NG(self) -> Tensor: ...
    @property
    def zero_NG(self) -> Tensor | None: ...
    @property
    def minimum_NG(self) -> Tensor | None: ...
    @property
    def bias_N(self) -> Tensor: ...


def multiplied(
    name: str, variant: str, p: Problem, of_rows: Mapping[str, Any], *, m: int, group: int,
    levels: Tensor | None = None, gelu: bool = False, dtype: torch.dtype = torch.float32, rows: slice = slice(None),
    blocks: slice = slice(None), offset: int = 0,
) -> Tensor:  # fmt: skip
    """(M, N) of dtype, by a variant of one of the operators; NaN wherever it wrote nothing.

    name: "W4A8" or "W4A16". of_rows: what it takes of them. levels: int8, of the weight. rows, blocks: that are
    computed. offset: elements between an aligned address and y.
    """
    module, (n, k) = native.load(), p.weight_NK.shape
    weight, given = layouts.pack_wna8(p.weight_NK, p.bits), [p.scale_NG, p.minimum_NG]
    scale_n, *minima = layouts.pack_scales(*(x for x in given if x is not None))
    zero = None if p.zero_NG is None else layouts.pack_groups(p.zero_NG)
    bias = layouts.pad_columns(p.bias_N)
    y = torch.full((offset + m * (n + 3),), torch.nan, dtype=dtype)[offset:]
    wna8 = module.Wna8(
        codes=weight.data_ptr(),
        bits=p.bits,
        levels=0 if levels is None else levels.data_ptr(),
        scale=scale_n.data_ptr(),
        bf16_scale=scale_n.dtype == torch.bfloat16,
        zero=0 if zero is None else zero.data_ptr(),
        minimum=minima[0].data_ptr() if minima else 0,
        k=k,
        group=group,
        per=k // group // p.scale_NG.shape[1],
    )
    op = getattr(module, f"Linear{name}")(
        **of_rows,
        weight=wna8,
        bias=bias.data_ptr(),
        y=y.data_ptr(),
        out_stride=n + 3,
        n=n,
        activation=module.Activation["gelu" if gelu else "none"],
        output=module.Output["bf16" if dtype == torch.bfloat16 else "f32"],
    )
    getattr(module, f"linear_{name.lower()}")(variant, op, *rows.indices(m)[:2], *blocks.indices(-(-n // 16))[:2])
    assert y.view(m, n + 3)[:, n:].isnan().all(), "wrote past the last column"
    return y.view(m, n + 3)[:, :n]


def assert_only_the_asked_are_written(part: Callable[[slice, slice], Tensor], whole: Tensor) -> None:
    """part: computes some rows and blocks of a result of 40 rows and 100 columns, which is `whole`."""
    for rows, blocks in (
        (slice(0, 3), slice(1, 2)),
        (slice(5, 12), slice(2, 7)),
        (slice(7, 40), slice(1, 6)),
        (slice(39, 40), slice(6, 7)),
    ):
        inside = torch.zeros(40, 100, dtype=torch.bool)
        inside[rows, 16 * blocks.start : 16 * blocks.stop] = True
        found = part(rows, blocks)
        assert torch.equal(found[inside], whole[inside])
        assert found[~inside].isnan().all()


def assert_gelu_is_as_good_as_in_torch(found: Tensor, torchs: Tensor, want: Tensor) -> None:
    """found: of any float type. torchs: what torch's own function gives in it. want: float64."""
    error, allowed = (found - want).abs().max(), (torchs - want).abs().max()
    assert error <= 2 * allowed + torch.finfo(torch.float32).eps * want.abs().max()
