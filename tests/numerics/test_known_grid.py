"""Weights that are codes already are told from others, and their codes are found: in any dtype that rounded them."""

import numpy as np
import pytest
import torch

from bitwright.numerics.grids import quantize
from bitwright.numerics.known_grid import find_codes
from bitwright.numerics.ranges import absmax
from bitwright.numerics.spec import QuantSpec

SYMMETRIC, ASYMMETRIC = QuantSpec(4, group_size=32), QuantSpec(4, symmetric=False, group_size=32)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def q4_0(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes −8…7 (N, G, g) and fp16 scales (N, G) of llama.cpp: the largest value over −8, so of either sign."""
    random = np.random.default_rng(seed)
    w = torch.from_numpy(random.normal(size=(16, 3, 32)) * 10.0 ** random.uniform(-3, 1))
    largest = w.gather(2, w.abs().argmax(2, keepdim=True))
    scale = (largest / -8).half().double()
    return torch.round(w / scale).clamp(-8, 7), scale[..., 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_llama_cpp_are_found(dtype: torch.dtype) -> None:
    for seed in range(20):
        codes, scale = q4_0(seed)
        w_NK = (codes * scale[..., None]).to(dtype).reshape(16, 96)
        for given in (w_NK, w_NK.float()):  # a file may hold them wider than they were rounded to
            found = find_codes(given, ASYMMETRIC)
            assert found is not None
            assert torch.equal(found.dequantize().to(dtype), w_NK)
            assert find_codes(given, SYMMETRIC) is None  # half of the scales are negative
            steps = found.codes_NK.reshape(16, 3, 32) - found.zero_point_NG[..., None]
            whole = steps.abs().amax(2) == 8  # codes that are all even are also those of half as many steps
            assert torch.equal((steps * scale.sign()[..., None])[whole], codes[whole])


@pytest.mark.parametrize("half_steps", [7.0, 7.5])
def test_symmetric_codes_are_found_in_their_groups(half_steps: float) -> None:
    random = np.random.default_rng(1)
    for dtype in DTYPES:
        w_NK = torch.from_numpy(random.normal(size=(8, 128)).astype(np.float32))
        scale = w_NK.reshape(8, 2, 64).abs().amax(2) / half_steps
        codes = torch.round(w_NK.reshape(8, 2, 64) / scale[..., None]).clamp(-8, 7)
        codes[0, 0] = 0  # a group of zeros
        given = (codes * scale[..., None]).to(dtype).reshape(8, 128)
        for size in (64, 32):
            found = find_codes(given, QuantSpec(4, group_size=size))
            assert found is not None
            assert torch.equal(found.dequantize().to(dtype), given)
        assert find_codes(given, QuantSpec(4, group_size=128)) is None


def test_other_weights_are_no_codes() -> None:
    random = np.random.default_rng(2)
    w_NK = torch.from_numpy(random.normal(size=(4, 64)).astype(np.float32))
    for spec in (SYMMETRIC, ASYMMETRIC):
        for dtype in DTYPES:
            assert find_codes(w_NK.to(dtype), spec) is None
    on_grid = quantize(w_NK, absmax(w_NK, SYMMETRIC)[0], None, SYMMETRIC).dequantize()
    assert find_codes(on_grid, SYMMETRIC) is not None
    on_grid[3, 17] *= 1.01
    assert find_codes(on_grid, SYMMETRIC) is None
    on_grid[3, 17] = torch.nan
    assert find_codes(on_grid, SYMMETRIC) is None
