"""Operators under vLLM's names: each is its own definition in floats, and torch.compile knows its shape."""

import pytest
import torch

from bitwright.errors import KernelError
from bitwright.kernels import named_ops
from bitwright.numerics.bits import pack_awq, pack_words

OPS = torch.ops.bitwright


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def grouped(n, k, group, seed=0):
    """Codes 0 to 15 (N, K), scales (N, G), zero points (N, G), and the weight that they stand for."""
    codes = torch.randint(0, 16, (n, k), generator=draw(seed))
    scale = (torch.rand(n, k // group, generator=draw(seed)) / 10).bfloat16().float()
    zero = torch.randint(1, 16, (n, k // group), generator=draw(seed))
    spread = (codes - zero.repeat_interleave(group, 1)).float() * scale.repeat_interleave(group, 1)
    return codes, scale, zero, spread


def words(codes_KN, bits):
    """GPTQ's, along the first axis."""
    shifts = torch.arange(0, 32, bits)[None, :, None]
    fields = codes_KN.long().view(-1, 32 // bits, codes_KN.shape[1]) << shifts
    return fields.sum(1).to(torch.int64).bitwise_and(0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def close(got, x, weight_NK):
    want = x.bfloat16().double() @ weight_NK.double().T
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * want.abs().max().item() if len(x) else 0.0)


@pytest.mark.parametrize("m", [0, 1, 5, 70])
def test_codes_of_inputs_and_their_products(m, monkeypatch):
    monkeypatch.setattr(named_ops, "_WORTH_THREADS", 2000)
    x, b = torch.randn(m, 50, generator=draw()), torch.randint(-128, 128, (50, 33), dtype=torch.int8, generator=draw())
    scale_b, bias = torch.rand(33, generator=draw()) / 100, torch.randn(33, generator=draw())
    codes, scale, azp = OPS.scaled_int8_quant(x)
    assert azp.numel() == 0
    assert codes.dtype == torch.int8
    sums = codes.double() @ b.double()
    got = OPS.scaled_mm(codes, b, scale, scale_b, torch.float32, bias)
    torch.testing.assert_close(got.double(), sums * scale * scale_b + bias, rtol=1e-5, atol=1e-4)
    codes, scale, azp = OPS.scaled_int8_quant(x, None, None, False)
    steps = codes.double() - azp
    assert (steps * scale - x).abs().max() < scale.max() if m else True
    columns = b.int().sum(0, dtype=torch.int32)
    got = OPS.scaled_mm_azp(codes, b, scale, scale_b, torch.float32, columns, azp, bias)
    torch.testing.assert_close(got.double(), (steps @ b.double()) * scale * scale_b + bias, rtol=1e-5, atol=1e-4)


def test_a_static_grid_is_the_one_given():
    x, scale, azp = torch.randn(3, 40, generator=draw()), torch.tensor([0.02]), torch.tensor([7], dtype=torch.int32)
    codes, same, zero = OPS.scaled_int8_quant(x, scale, azp, False)
    assert torch.equal(codes, ((x / 0.02).round() + 7).clamp(-128, 127).to(torch.int8))
    assert (same.item(), zero.item()) == (scale.item(), 7)
    b = torch.randint(-128, 128, (40, 16), dtype=torch.int8, generator=draw())
    adjusted = 7 * b.int().sum(0, dtype=torch.int32)
    got = OPS.scaled_mm_azp(codes, b, scale, torch.tensor([0.5]), torch.bfloat16, adjusted)
    want = (codes.double() - 7) @ b.double() * 0.02 * 0.5
    torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-2)
    with pytest.raises(KernelError, match="a static scale has a zero point"):
        OPS.scaled_int8_quant(x, scale, azp, True)


@pytest.mark.parametrize("m", [0, 1, 9, 64])
@pytest.mark.parametrize(("n", "k", "group"), [(24, 64, 32), (40, 96, 24), (8, 8, 8)])
def test_awq_is_what_it_stands_for(m, n, k, group):
    codes, scale, zero, weight_NK = grouped(n, k, group)
    qweight, qzeros = (
        torch.from_numpy(pack_awq((part.T - 8).to(torch.int8).contiguous().numpy())) for part in (codes, zero)
    )
    scales, x = scale.T.contiguous(), torch.randn(m, k, generator=draw(m))
    torch.testing.assert_close(OPS.awq_dequantize(qweight, scales, qzeros, 0, 0, 0), weight_NK.T)
    close(OPS.awq_gemm(x, qweight, scales, qzeros, 8), x, weight_NK)
    qweight.zero_()  # who writes to a weight gets the new one
    close(OPS.awq_gemm(x, qweight, scales, qzeros, 8), x, -(zero * scale).repeat_interleave(group, 1))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("v2", [False, True])
def test_gptq_is_what_it_stands_for_in_any_order(bits, v2):
    n, k, group, m = 24, 64, 16, 5
    codes, scale, zero, weight_NK = grouped(n, k, group)
    qzeros, scales = words((zero.T - (0 if v2 else 1)).T, bits).T.contiguous(), scale.T.contiguous()
    x, none = torch.randn(m, k, generator=draw()).bfloat16().float(), torch.empty(0, dtype=torch.int32)
    call = (qzeros, scales)
    close(OPS.gptq_gemm(x, words(codes.T, bits), *call, none, True, v2, bits), x, weight_NK)
    # Rows in an order of their own, each with the index of its group.
    order = torch.randperm(k, generator=draw(1))
    stored, g_idx = words(codes.T[order], bits), (torch.arange(k) // group)[order].int()
    close(OPS.gptq_gemm(x[:, order], stored, *call, g_idx, False, v2, bits), x, weight_NK)
    perm = g_idx.long().argsort(stable=True).int()
    OPS.gptq_shuffle(stored, perm, bits)
    close(OPS.gptq_gemm(x[:, order], stored, *call, perm, True, v2, bits), x, weight_NK)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("zeros", [False, True])
def test_packed_weights_are_what_they_stand_for(bits, zeros):
    n, k, group, middle = 32, 192, 96, 1 << bits - 1
    codes = torch.randint(-middle, middle, (n, k), generator=draw()).to(torch.int8)
    scale = (torch.rand(n, k // group, generator=draw()) / 10).bfloat16()
    zero = torch.randint(-middle, middle, (n, k // group), generator=draw()).to(torch.int8) if zeros else None
    packed = None if zero is None else pack_words(zero, bits, dim=0)
    spread = 0 if zero is None else zero.float().repeat_interleave(group, 1)
    weight_NK = (codes.float() - spread) * scale.float().repeat_interleave(group, 1)
    for m in (1, 30):
        x = torch.randn(m, k, generator=draw(m))
        close(OPS.wna16_gemm(x, pack_words(codes, bits), scale, packed, bits), x, weight_NK)
    with pytest.raises(KernelError, match="a group is a multiple of 8"):
        OPS.wna16_gemm(x[:, :4], pack_words(codes[:, :4].contiguous(), bits), scale[:, :1], None, bits)


def test_torch_compile_knows_their_shapes():
    codes, scale, zero, _ = grouped(16, 32, 8)
    x, a = torch.randn(3, 32), torch.ones(3, 32, dtype=torch.int8)
    awq = [torch.from_numpy(pack_awq((part.T - 8).to(torch.int8).contiguous().numpy())) for part in (codes, zero)]
    b, one, scales = torch.ones(32, 8, dtype=torch.int8), torch.ones(1), scale.T.contiguous()
    calls = [
        ("scaled_int8_quant", (x, None, None, False)),
        ("scaled_int8_quant", (x, one, None, True)),
        ("scaled_mm", (a, b, one, one, torch.bfloat16, None)),
        ("scaled_mm_azp", (a, b, one, one, torch.bfloat16, b.int().sum(0, dtype=torch.int32), None, None)),
        ("awq_dequantize", (awq[0], scales, awq[1], 0, 0, 0)),
        ("awq_gemm", (x, awq[0], scales, awq[1], 0)),
        ("wna16_gemm", (x, pack_words((codes - 8).to(torch.int8), 4), scale, None, 4)),
        ("gptq_gemm", (x, words(codes.T, 4), words(zero, 4).T.contiguous(), scales, torch.empty(0), True, True, 4)),
    ]
    for name, arguments in calls:
        torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=("test_schema", "test_faketensor"))
