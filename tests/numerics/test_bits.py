"""Packed codes: the order of bits, by a big integer; compressed-tensors' own packer agrees; unpack ∘ pack = id."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics import QuantSpec
from bitwright.numerics.bits import pack_awq, pack_bitnet, pack_bytes, pack_words, unpack_bytes, unpack_words

SIGNED = (8, 4, 3, 2)
COUNTS = (1, 7, 8, 11, 31, 32, 33, 96)
SPECS = [QuantSpec(bits=b) for b in SIGNED] + [
    QuantSpec(bits=b, grid=g)
    for g, b in (("apot", 4), ("pot", 3), ("nf4", 4), ("kmeans", 3), ("ternary", 2), ("binary", 1))
]


def codes(low: int, high: int, shape: tuple[int, int]) -> Tensor:
    """Every code occurs if there is room; then random ones."""
    flat = torch.randint(low, high + 1, (shape[0] * shape[1],), generator=torch.Generator().manual_seed(0))
    every = torch.arange(low, high + 1)[: len(flat)]
    return torch.cat([every, flat[len(every) :]]).to(torch.int8).reshape(shape)


def stream(row: list[int], bits: int, lowest: int, n_bytes: int) -> bytes:
    return sum((code - lowest) << (i * bits) for i, code in enumerate(row)).to_bytes(n_bytes, "little")


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", SIGNED)
def test_words_are_one_little_endian_number(bits: int, count: int) -> None:
    q, n_words = codes(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, (5, count)), -(-count * bits // 32)
    want = [np.frombuffer(stream(row, bits, -(2 ** (bits - 1)), 4 * n_words), "<i4").tolist() for row in q.tolist()]
    packed = pack_words(q, bits)
    assert (packed.dtype, packed.tolist()) == (torch.int32, want)
    assert torch.equal(unpack_words(packed, bits, count), q)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", SIGNED)
def test_columns_are_packed_as_rows_of_the_transpose(bits: int, count: int) -> None:
    q = codes(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, (count, 3))
    packed = pack_words(q, bits, dim=0)
    assert packed.is_contiguous()
    assert torch.equal(packed, pack_words(q.T, bits).T)
    assert torch.equal(unpack_words(packed, bits, count, dim=0), q)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", SIGNED)
def test_numpy_and_torch_are_packed_alike(bits: int, count: int) -> None:
    """What comes out is what went in; also of one row and of one column, whose strides are any."""
    for shape in ((5, count), (1, count), (count, 1)):
        q = codes(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, shape)
        for dim in (0, 1):
            packed, in_numpy = pack_words(q, bits, dim=dim), pack_words(q.numpy(), bits, dim=dim)
            assert isinstance(in_numpy, np.ndarray)
            assert np.array_equal(packed, in_numpy)
            back = unpack_words(in_numpy, bits, shape[dim], dim=dim)
            assert isinstance(back, np.ndarray)
            assert np.array_equal(back, q)
            assert torch.equal(unpack_words(packed, bits, shape[dim], dim=dim), q)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", SIGNED)
def test_words_are_those_of_compressed_tensors(bits: int, count: int, dim: int) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    q = codes(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, (5, count) if dim else (count, 5))
    theirs = helpers.pack_to_int32(q, bits, packed_dim=dim)
    assert torch.equal(pack_words(q, bits, dim=dim), theirs)
    assert torch.equal(unpack_words(theirs, bits, count, dim=dim), q)
    assert torch.equal(helpers.unpack_from_int32(pack_words(q, bits, dim=dim), bits, q.shape, packed_dim=dim), q)


@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bytes_take_no_more_than_they_need(spec: QuantSpec, k: int) -> None:
    q, n_bytes = codes(spec.code_min, spec.code_max, (5, k)), -(-k * spec.bits // 8)
    packed = pack_bytes(q, spec)
    assert packed.dtype == torch.uint8
    assert [bytes(row) for row in packed.tolist()] == [
        stream(row, spec.bits, spec.code_min, n_bytes) for row in q.tolist()
    ]
    assert torch.equal(unpack_bytes(packed, spec, k), q)


def test_transposed_codes_and_no_rows_are_packed_too() -> None:
    q = codes(-8, 7, (6, 10))
    for one in (q[:1], q[:1].T, q.T[:1], q[:, :1]):  # torch gives an axis of length 1 any stride
        assert torch.equal(unpack_words(pack_words(one, 4), 4, one.shape[1]), one)
        assert torch.equal(unpack_words(pack_words(one, 4, dim=0), 4, len(one), dim=0), one)
    assert torch.equal(pack_words(q.T, 4), pack_words(q.T.contiguous(), 4))
    assert pack_words(q[:0], 4).shape == (0, 2)
    assert unpack_words(pack_words(q[:0], 4), 4, 10).shape == (0, 10)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NumericsError, match=r"codes lie in \[8, 8\], and 4 bits hold \[-8, 7\]"):
        pack_words(torch.full((1, 8), 8, dtype=torch.int8), 4)
    with pytest.raises(NumericsError, match=r"codes lie in \[-1, -1\], and 1 bits hold \[0, 1\]"):
        pack_bytes(torch.full((1, 8), -1, dtype=torch.int8), QuantSpec(bits=1, grid="binary"))
    with pytest.raises(NumericsError, match=r"zero points lie in \[-9, -9\], and 4 bits hold \[-8, 7\]"):
        pack_words(torch.full((1, 8), -9, dtype=torch.int8), 4, dim=0, what="zero points")
    with pytest.raises(NumericsError, match=r"zero points lie in \[8, 8\], and 4 bits hold \[-8, 7\]"):
        pack_awq(np.full((1, 8), 8, np.int8), what="zero points")
    for code in (-2, 2, 127):  # 2 has two bits, but is no ternary code
        with pytest.raises(NumericsError, match=rf"codes lie in \[{code}, {code}\], and 2 bits of ternary codes"):
            pack_bitnet(np.full((4, 8), code, np.int8))
    with pytest.raises(NumericsError, match="codes to pack are int8"):
        pack_words(torch.zeros(1, 8), 4)


def test_words_and_bytes_of_another_count_are_refused() -> None:
    with pytest.raises(NumericsError, match="9 codes of 4 bits take 2 int32 words along axis 1"):
        unpack_words(torch.zeros(3, 1, dtype=torch.int32), 4, 9)
    with pytest.raises(NumericsError, match="8 codes of 4 bits take 1 int32 words along axis 0"):
        unpack_words(torch.zeros(2, 3, dtype=torch.int32), 4, 8, dim=0)
    with pytest.raises(NumericsError, match="9 codes of 2 bits take 3 bytes a row"):
        unpack_bytes(torch.zeros(3, 2, dtype=torch.uint8), QuantSpec(bits=2, grid="ternary"), 9)
