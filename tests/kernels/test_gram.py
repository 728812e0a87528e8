"""Every variant of gram against float64 of the rounded rows, and what it says of the features against torch."""

import pytest
import torch
from torch import Tensor

from bitwright.errors import KernelError
from bitwright.kernels import cpu, dispatch, native, reference

KS = [1, 17, 31, 32, 100, 576, 1000]
SHAPES = [(m, k) for k in KS for m in (1, 7, 33)] + [(513, 100), (1025, 576), (2049, 31), (4500, 100), (2049, 1000)]


class Gram:
    """`add_gram` of one instruction set, into scratch that is NaN wherever nothing was written before."""

    def __init__(self, isa: str) -> None:
        self.isa = dispatch.native_isa(isa)
        if dispatch.chosen("gram", isa) is None:
            pytest.skip(f"{isa} does not multiply bf16 on this machine")

    def __call__(
        self, x_MK: Tensor, gram_KK: Tensor | None = None, threads: int = 1, seen: cpu.FeatureStats | None = None
    ) -> tuple[Tensor, cpu.FeatureStats]:
        (m, k), module = x_MK.shape, native.load()
        gram_KK = torch.zeros(k, k) if gram_KK is None else gram_KK
        low, high, zeros = torch.full((k,), torch.inf), torch.full((k,), -torch.inf), torch.zeros(2, k).double()
        seen = cpu.FeatureStats(low, high, *zeros) if seen is None else seen
        n_scratch = module.gram_scratch_bytes(m, k) // 2
        scratch = torch.full((n_scratch + 32,), torch.nan, dtype=torch.bfloat16)
        op = module.Gram(
            x=x_MK.data_ptr(),
            bf16=x_MK.dtype == torch.bfloat16,
            x_stride=x_MK.stride(0),
            m=m,
            k=k,
            packed=scratch.data_ptr(),
            low=seen.min_K.data_ptr(),
            high=seen.max_K.data_ptr(),
            sum=seen.sum_K.data_ptr(),
            sum_abs=seen.sum_abs_K.data_ptr(),
            gram=gram_KK.data_ptr(),
        )
        module.add_gram(self.isa, threads, op)
        assert scratch[n_scratch:].isnan().all(), "wrote past the scratch"
        if x_MK.isfinite().all():
            assert not scratch[:n_scratch].isnan().any(), "left scratch unwritten"
        return gram_KK, seen


@pytest.fixture
def gram(isa: str) -> Gram:
    """gram of one instruction set."""
    return Gram(isa)


def rows(m: int, k: int) -> Tensor:
    """Rows whose features have means and sizes of their own."""
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m + k)) + torch.linspace(-1, 1, k)
    return x * torch.logspace(-2, 1, k)


def assert_close(gram_KK: Tensor, x_MK: Tensor) -> None:
    """Within twice torch's own error, relative to the sizes of the two features; and symmetric to the bit."""
    exact = x_MK.bfloat16().double()
    want = exact.T @ exact
    size = want.diagonal().sqrt()
    error, torchs = (((g - want) / torch.outer(size, size)).abs().max() for g in (gram_KK, reference.gram(x_MK)))
    assert error <= 2 * torchs + torch.finfo(torch.float32).eps
    assert torch.equal(gram_KK, gram_KK.T)


@pytest.mark.parametrize(("m", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_is_as_good_as_the_definition(gram: Gram, m: int, k: int, dtype: torch.dtype) -> None:
    x = rows(m, k).to(dtype)
    found, _ = gram(x)
    assert_close(found, x)


@pytest.mark.parametrize(("m", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_those_of_the_rows_as_they_are(gram: Gram, m: int, k: int, dtype: torch.dtype) -> None:
    x = rows(m, k).to(dtype)
    _, seen = gram(x)
    assert torch.equal(seen.min_K, x.float().amin(0))
    assert torch.equal(seen.max_K, x.float().amax(0))
    wanted = x.double().abs().sum(0)
    torch.testing.assert_close(seen.sum_abs_K, wanted, rtol=1e-6, atol=0)
    assert ((seen.sum_K - x.double().sum(0)).abs() <= 1e-6 * wanted).all()


@pytest.mark.parametrize("k", [31, 100, 400])
def test_calls_add_up(gram: Gram, k: int) -> None:
    parts = [rows(m, k) for m in (7, 600, 1)]
    found, seen = torch.zeros(k, k), None
    for part in parts:
        found, seen = gram(part, found, seen=seen)
    assert_close(found, torch.cat(parts))
    assert seen is not None
    assert torch.equal(seen.min_K, torch.cat(parts).amin(0))
    torch.testing.assert_close(seen.sum_abs_K, torch.cat(parts).double().abs().sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_may_be_strided_and_unaligned(gram: Gram, dtype: torch.dtype) -> None:
    x = rows(70, 103).to(dtype)[:, 1:98]
    assert x.data_ptr() % 16 == x.element_size()
    around = torch.full((97 * 97 + 2,), torch.nan)
    inside = around[1:-1].view(97, 97).zero_()
    found, seen = gram(x, inside)
    plain, plain_seen = gram(x.contiguous())
    assert torch.equal(found, plain)
    assert all(map(torch.equal, seen, plain_seen))
    assert around[[0, -1]].isnan().all()


@pytest.mark.parametrize("shape", [(2100, 576), (300, 1000), (40, 33)])
def test_same_bits_on_any_number_of_threads(gram: Gram, shape: tuple[int, int]) -> None:
    x = rows(*shape)
    alone, seen = gram(x)
    for threads in (2, 3):
        together, also_seen = gram(x, threads=threads)
        assert torch.equal(alone, together)
        assert all(map(torch.equal, seen, also_seen))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (6, 36), (520, 17), (2100, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feature_that_is_not_finite_has_extremes_nan(
    gram: Gram, place: tuple[int, int], bad: float, dtype: torch.dtype
) -> None:
    x = rows(2101, 37).to(dtype)
    x[place] = bad
    _, seen = gram(x)
    for extremes in (seen.min_K, seen.max_K):
        assert extremes[place[1]].isnan()
        assert extremes.isnan().sum() == 1


def test_largest_values_are_finite(gram: Gram) -> None:
    x = torch.full((9, 5), 3e38)
    x[::2] = -3e38
    _, seen = gram(x)
    assert torch.equal(seen.max_K - 3e38, torch.zeros(5))
    assert torch.equal(seen.min_K + 3e38, torch.zeros(5))


def test_wrapper_copies_columns_and_checks_its_arguments() -> None:
    if not cpu.has_gram():
        pytest.skip("this machine does not multiply bf16")
    x = rows(40, 30)
    across, plain = torch.zeros(30, 30), torch.zeros(30, 30)
    cpu.add_gram(x.T.contiguous().T, across)
    cpu.add_gram(x, plain)
    assert torch.equal(across, plain)
    for wrong in (torch.zeros(30, 31), torch.zeros(30, 30).double(), torch.zeros(60, 60)[::2, ::2]):
        with pytest.raises(KernelError, match=r"contiguous float32 Gram matrix \(30, 30\)"):
            cpu.add_gram(x, wrong)
    with pytest.raises(KernelError, match="x must be float32 or bfloat16"):
        cpu.add_gram(x.half(), plain)
    with pytest.raises(KernelError, match=r"rows \(0, 30\)"):
        cpu.add_gram(x[:0], plain)


def test_cpu_that_does_not_multiply_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_gram", lambda: False)
    with pytest.raises(KernelError, match="does not multiply bf16"):
        cpu.add_gram(torch.ones(2, 3), torch.zeros(3, 3))
