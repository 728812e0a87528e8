"""The conditions that a QTensor promises are checked when it is built."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import QTensor, QuantSpec


def valid(group_size: int | None = 4) -> QTensor:
    groups = 1 if group_size is None else 8 // group_size
    return QTensor(
        torch.arange(-12, 12, dtype=torch.int8).reshape(3, 8),
        torch.rand(3, groups) + 0.5,
        torch.zeros(3, groups, dtype=torch.int8) + 2,
        QuantSpec(symmetric=False, group_size=group_size),
    )


def lifted() -> QTensor:
    """With a minimum for each group."""
    q = valid()
    return replace(q, zero_point_NG=None, minimum_NG=torch.linspace(-3, 2, q.scale_NG.numel()).view_as(q.scale_NG))


def fitted(codebook: Tensor | None) -> QTensor:
    spec = QuantSpec(bits=4, grid="kmeans", group_size=4)
    return QTensor(torch.arange(16, dtype=torch.int8).reshape(2, 8), torch.rand(2, 2) + 0.5, None, spec, codebook)


def test_dequantize_is_level_times_scale() -> None:
    q = fitted(torch.linspace(-0.9, 1, 16))
    assert q.codebook is not None
    want = [[q.codebook[8 * n + k] * q.scale_NG[n, k // 4] for k in range(8)] for n in range(2)]
    assert q.dequantize().tolist() == torch.tensor(want).tolist()


@pytest.mark.parametrize("group_size", [None, 2, 4, 8])
def test_dequantize_is_code_minus_zero_times_scale(group_size: int | None) -> None:
    q = valid(group_size)
    assert q.zero_point_NG is not None
    for n in range(3):
        for k in range(8):
            g = 0 if group_size is None else k // group_size
            want = (q.codes_NK[n, k].float() - q.zero_point_NG[n, g]) * q.scale_NG[n, g]
            assert q.dequantize()[n, k] == want


def test_a_minimum_is_what_the_smallest_code_stands_for() -> None:
    q, low = lifted(), -128
    assert q.minimum_NG is not None
    for n in range(3):
        for k in range(8):
            want = (q.codes_NK[n, k].float() - low) * q.scale_NG[n, k // 4] + q.minimum_NG[n, k // 4]
            assert q.dequantize()[n, k] == want
    half = replace(q, scale_NG=q.scale_NG.half(), minimum_NG=q.minimum_NG.half())
    wide = replace(half, scale_NG=half.scale_NG.float(), minimum_NG=q.minimum_NG.half().float())
    assert torch.equal(half.dequantize(), wide.dequantize())
    assert torch.equal(q.rows(1, 3).dequantize(), q.dequantize()[1:3])
    bare = QTensor(*(x.numpy() for x in (q.codes_NK, q.scale_NG)), None, q.spec, minimum_NG=q.minimum_NG.numpy())
    assert torch.equal(bare.torch().dequantize(), q.dequantize())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda q: replace(q, codes_NK=q.codes_NK.int()), "codes must be int8"),
        (lambda q: replace(q, codes_NK=q.codes_NK[0]), "codes must be int8"),
        (lambda q: replace(q, scale_NG=q.scale_NG[:, :1]), "scale must be floating of shape"),
        (lambda q: replace(q, scale_NG=q.scale_NG * 0), "finite and positive"),
        (lambda q: replace(q, scale_NG=q.scale_NG / 0), "finite and positive"),
        (lambda q: replace(q, zero_point_NG=None), "zero_point is absent"),
        (lambda q: replace(q, zero_point_NG=q.zero_point_NG.int()), "zero_point must be int8"),
        (lambda q: replace(q, minimum_NG=q.scale_NG), "zero_point is given; minimum is given"),
        (lambda q: replace(lifted(), spec=replace(q.spec, symmetric=True)), "minimum is given"),
        (lambda q: replace(lifted(), minimum_NG=q.scale_NG[:, :1]), "minimum must be float32 of shape"),
        (lambda q: replace(lifted(), minimum_NG=q.scale_NG.half()), "minimum must be float32 of shape"),
        (lambda q: replace(lifted(), minimum_NG=q.scale_NG * torch.nan), "every minimum must be finite"),
        (lambda q: replace(q, spec=replace(q.spec, symmetric=True)), "zero_point is given"),
        (lambda q: replace(q, spec=replace(q.spec, bits=4)), "outside"),
        (lambda q: replace(q, spec=replace(q.spec, group_size=3)), "not a multiple"),
        (lambda q: replace(q, codebook=torch.linspace(-1, 1, 16)), "grid is uniform, but a codebook is given"),
        (lambda q: fitted(None), "grid is kmeans, but a codebook is absent"),
        (lambda q: fitted(torch.linspace(-1, 1, 15)), r"float32 \(16,\), got torch.float32 \(15,\)"),
        (lambda q: fitted(torch.linspace(-1, 1, 16).double()), r"float32 \(16,\), got torch.float64"),
        (lambda q: fitted(torch.linspace(1, -1, 16)), "finite and ascending"),
        (lambda q: fitted(torch.full((16,), torch.nan)), "finite and ascending"),
    ],
)
def test_broken_conditions_are_refused(spoil: Callable[[QTensor], QTensor], message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        spoil(valid())
