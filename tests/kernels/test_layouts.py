"""The packed layout: unpack(pack(q)) = q, and it lies in memory as the kernels read it."""

import numpy as np
import pytest
import torch

from bitwright.errors import NumericsError
from bitwright.kernels import layouts


@pytest.mark.parametrize(("n", "k"), [(1, 1), (15, 3), (16, 64), (17, 65), (100, 385)])
def test_unpack_inverts_pack(n, k):
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    packed = layouts.pack(codes)
    assert torch.equal(layouts.unpack(packed, n, k), codes)
    assert packed.is_contiguous()
    assert packed.numel() == (n + -n % 16) * (k + -k % 64)
    assert int(packed.sum(dtype=torch.int32)) == int(codes.sum(dtype=torch.int32)), "padding is zero"


@pytest.mark.parametrize(("n", "k"), [(1, 1), (17, 65), (48, 128)])
def test_numpy_arrays_are_packed_as_tensors_are(n, k):
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    packed = layouts.pack(codes.numpy())
    assert np.array_equal(packed, layouts.pack(codes).numpy())
    assert packed.flags.c_contiguous
    assert np.array_equal(layouts.unpack(packed, n, k), codes.numpy())
    bits = torch.randn(n, k).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(layouts.unpack_bf16(layouts.pack_bf16(bits), n, k), bits)


def test_four_values_of_sixteen_columns_are_neighbours():
    n, k = 33, 70
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    flat = layouts.pack(codes).flatten()
    for row, column in ((0, 0), (5, 3), (16, 4), (32, 69)):
        block, group = divmod(row, 16)[0], column // 4
        assert flat[((block * 32 + group) * 16 + row % 16) * 4 + column % 4] == codes[row, column]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (15, 3), (16, 32), (17, 33), (100, 385)])
def test_bf16_unpack_inverts_pack(n, k):
    weight = torch.randn(n, k).bfloat16()
    packed = layouts.pack_bf16(weight)
    assert packed.dtype == torch.bfloat16
    assert packed.is_contiguous()
    assert torch.equal(layouts.unpack_bf16(packed, n, k), weight)
    assert packed.numel() == (n + -n % 16) * (k + -k % 32)
    assert packed.count_nonzero() == weight.count_nonzero(), "padding is zero"


def test_two_bf16_values_of_sixteen_columns_are_neighbours():
    weight = torch.randn(33, 70).bfloat16()
    flat = layouts.pack_bf16(weight).flatten()
    for row, column in ((0, 0), (5, 3), (16, 4), (32, 69)):
        assert flat[((row // 16 * 48 + column // 2) * 16 + row % 16) * 2 + column % 2] == weight[row, column]


def test_columns_are_padded_copies():
    values = torch.arange(17.0)
    padded = layouts.pad_columns(values)
    assert torch.equal(padded, torch.cat([values, torch.zeros(15)]))
    aligned = torch.arange(16.0)
    assert layouts.pad_columns(aligned).data_ptr() != aligned.data_ptr()


def test_column_sums_do_not_wrap():
    assert torch.equal(layouts.column_sums(torch.full((16, 1000), -128, dtype=torch.int8)), torch.full((16,), -128_000))


def test_inputs_are_padded_by_zeros_in_float32():
    padded = layouts.pad_inputs(torch.arange(1.0, 71.0).bfloat16())
    assert padded.dtype == torch.float32
    assert torch.equal(padded, torch.cat([torch.arange(1.0, 71.0), torch.zeros(58)]))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (15, 3), (16, 32), (17, 33), (100, 385)])
def test_int4_unpack_inverts_pack(n, k):
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    packed = layouts.pack_int4(codes)
    assert packed.is_contiguous()
    assert packed.numel() == (n + -n % 16) * (k + -k % 32) // 2
    assert torch.equal(layouts.unpack_int4(packed, n, k), codes)
    assert int(((packed & 15) + (packed >> 4)).sum()) == int(codes.sum()), "padding is zero"
    assert np.array_equal(layouts.pack_int4(codes.numpy()), packed.numpy())
    assert np.array_equal(layouts.unpack_int4(packed.numpy(), n, k), codes.numpy())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_that_do_not_fit_are_refused(bits):
    """They would change their neighbours."""
    codes = torch.zeros(16, 64, dtype=torch.uint8)
    codes[3, 5] = 1 << bits
    message = rf"codes lie in \[0, {1 << bits}\], and {bits} bits hold \[0, {(1 << bits) - 1}\]"
    for given in (codes, codes.numpy()):
        with pytest.raises(NumericsError, match=message):
            layouts.pack_wna8(given, bits)
        if bits == 4:
            with pytest.raises(NumericsError, match=message):
                layouts.pack_int4(given)


def test_eight_codes_of_a_column_are_four_bytes():
    codes = torch.randint(0, 16, (33, 70), dtype=torch.uint8)
    flat = layouts.pack_int4(codes).flatten()
    for row, column in ((0, 0), (5, 3), (16, 4), (32, 69)):
        byte = int(flat[((row // 16 * 12 + column // 8) * 16 + row % 16) * 4 + column % 8 // 2])
        assert (byte >> 4 if column % 2 else byte & 15) == codes[row, column]


def test_groups_of_sixteen_columns_are_neighbours():
    values = torch.randn(33, 3)
    packed = layouts.pack_groups(values)
    assert packed.shape == (3, 3, 16)
    assert packed.is_contiguous()
    assert packed[2, 1, 0] == values[32, 1]
    assert not packed[2, :, 1:].any()


@pytest.mark.parametrize(
    ("bits", "n", "k"),
    [(4, 1, 8), (4, 15, 40), (4, 33, 96), (3, 1, 32), (3, 33, 96), (2, 1, 16), (2, 33, 80), (1, 33, 96)],
)
def test_wna8_unpack_inverts_pack(bits, n, k):
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8)
    packed = layouts.pack_wna8(codes, bits)
    assert packed.shape == (-(-n // 16), k * bits // 32, 16, 4)
    assert packed.is_contiguous()
    assert torch.equal(layouts.unpack_wna8(packed, n, k, bits), codes)
    assert np.array_equal(layouts.pack_wna8(codes.numpy(), bits), packed.numpy())
    assert np.array_equal(layouts.unpack_wna8(packed.numpy(), n, k, bits), codes.numpy())


@pytest.mark.parametrize(("bits", "values"), [(4, 8), (2, 16), (3, 32), (1, 32)])
def test_wna8_runs_of_four_values_share_the_bytes_of_a_column(bits, values):
    codes = torch.randint(0, 1 << bits, (33, 3 * values), dtype=torch.uint8)
    flat, fields = layouts.pack_wna8(codes, bits).flatten().tolist(), 8 // bits
    for row, column in ((0, 0), (5, 3), (16, 4), (20, values + 5), (31, 2 * values - 5), (32, 3 * values - 1)):
        word, place = divmod(column, values)
        run, length = place // 4, values * bits // 32
        first = ((row // 16 * 3 + word) * length * 16 + row % 16) * 4 + place % 4
        vectors = flat[first : first + length * 64 : 64]
        if run < fields * length:
            held = vectors[run // fields] >> run % fields * bits & (1 << bits) - 1
        else:
            held = vectors[run - 6] >> 6 | (vectors[2] >> run & 1) << 2
        assert held == codes[row, column]


def test_codes_are_held_in_their_bits_where_groups_are_whole_words():
    groups = ((4, 8), (3, 32), (3, 48), (2, 48), (2, 40), (1, 128), (1, 48))
    found = [layouts.bits_wna8(bits, group) for bits, group in groups]
    assert found == [4, 3, 4, 2, 4, 1, 4]


def test_scales_are_bf16_where_that_holds_them():
    narrow = torch.rand(17, 3).bfloat16().float()
    (packed,) = layouts.pack_scales(narrow)
    assert packed.dtype == torch.bfloat16
    assert torch.equal(packed.float(), layouts.pack_groups(narrow))
    (bits,) = layouts.pack_scales(narrow.numpy())
    assert np.array_equal(bits, packed.view(torch.uint16).numpy())
    wide = narrow.clone()
    wide[16, 2] = torch.tensor(0.1, dtype=torch.float16)
    for values in ((narrow, wide), (wide, narrow)):  # both, or none
        packed = layouts.pack_scales(*values)
        assert all(torch.equal(a, layouts.pack_groups(b)) for a, b in zip(packed, values, strict=True))
        assert all(held.dtype == np.float32 for held in layouts.pack_scales(*(x.numpy() for x in values)))
