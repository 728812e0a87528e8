"""How the kernels hold an int8 weight in memory: defined here, once. Never written to disk.

N output features, K input features; both are padded, N to a multiple of 16, K to a multiple of 64. One layout serves
every instruction set: four K values of sixteen columns are 64 contiguous bytes, the operand of one vpdpbusd; sixteen of
those are the 16 x 64 byte B tile of one tdpbusd.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 16
GROUP = 4
PAD_K = 64


def pack(codes_NK: Tensor) -> Tensor:
    """Weight codes int8 (N, K) -> int8 (N/16, K/4, 16, 4), zero where padded."""
    n, k = codes_NK.shape
    padded = pad(codes_NK, (0, -k % PAD_K, 0, -n % BLOCK))
    blocks = padded.view(-1, BLOCK, padded.shape[1] // GROUP, GROUP)
    return blocks.permute(0, 2, 1, 3).contiguous()


def unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack`: int8 (n, k), contiguous."""
    blocks, groups = packed.shape[:2]
    return packed.permute(0, 2, 1, 3).reshape(blocks * BLOCK, groups * GROUP)[:n, :k].contiguous()


def column_sums(codes_NK: Tensor) -> Tensor:
    """Sum over K of each feature's codes: int32, (N padded to 16,). With it the input's zero point is taken off."""
    return pad_columns(codes_NK.sum(dim=1, dtype=torch.int32))


def pad_columns(values_N: Tensor) -> Tensor:
    """One value per feature, padded by zeros to a multiple of 16; a copy, so that it is aligned as torch allocates."""
    n = values_N.shape[0]
    padded = values_N.new_zeros(n + -n % BLOCK)
    padded[:n] = values_N
    return padded


def pad_inputs(values_K: Tensor) -> Tensor:
    """One value per input feature, padded by zeros to a multiple of 64: float32."""
    return pad(values_K.float(), (0, -values_K.shape[0] % PAD_K))
