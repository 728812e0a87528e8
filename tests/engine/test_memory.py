"""Constants of a program lie where kernels can read them, and none over another."""

import numpy as np
import pytest

from bitwright.engine.memory import ALIGNMENT, Memory, aligned

SIZES = (1, 63, 64, 65, 1 << 20, 3 << 20, 31 << 20, 33 << 20, 7)  # bytes; chunks are of 32 MiB


def test_copies_are_aligned_and_none_lies_over_another() -> None:
    memory = Memory()
    given = [np.full(size, number, np.uint8) for number, size in enumerate(SIZES, 1)]
    copies = [memory.copy(values) for values in given]
    for values, copy in zip(given, copies, strict=True):
        assert copy.ctypes.data % ALIGNMENT == 0
        np.testing.assert_array_equal(copy, values)


@pytest.mark.parametrize("copy", [Memory().copy, aligned])
def test_a_view_is_copied_as_its_values(copy: object) -> None:
    assert callable(copy)
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).swapaxes(0, 2)
    found = copy(values)
    assert found.flags.c_contiguous
    assert found.ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(found, values)
