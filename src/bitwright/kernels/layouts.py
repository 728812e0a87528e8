"""How the kernels hold a weight in memory: defined here, once. Never written to disk.

N output features, K input features; both are padded, N to a multiple of 16, K to a multiple of 64 (int8) or 32 (bf16).
One layout serves every instruction set: four bytes of K (four codes, two bf16 values) of sixteen columns are 64
contiguous bytes, the operand of one vpdpbusd or vdpbf16ps; sixteen of those are the 16 x 64 byte B tile of one tdpbusd
or tdpbf16ps.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 16
GROUP = 4
PAD_K = 64
GROUP_BF16 = 2
PAD_K_BF16 = 32


def pack(codes_NK: Tensor) -> Tensor:
    """Weight codes int8 (N, K) -> int8 (N/16, K/4, 16, 4), zero where padded."""
    return _pack(codes_NK, GROUP, PAD_K)


def unpack(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack`: int8 (n, k), contiguous."""
    return _unpack(packed, n, k)


def pack_bf16(weight_NK: Tensor) -> Tensor:
    """A weight, rounded to bfloat16 if it is not that, (N, K) -> bfloat16 (N/16, K/2, 16, 2), zero where padded."""
    return _pack(weight_NK.to(torch.bfloat16), GROUP_BF16, PAD_K_BF16)


def unpack_bf16(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_bf16`: bfloat16 (n, k), contiguous."""
    return _unpack(packed, n, k)


def _pack(values_NK: Tensor, group: int, pad_k: int) -> Tensor:
    n, k = values_NK.shape
    padded = pad(values_NK, (0, -k % pad_k, 0, -n % BLOCK))
    blocks = padded.view(-1, BLOCK, padded.shape[1] // group, group)
    return blocks.permute(0, 2, 1, 3).contiguous()


def _unpack(packed: Tensor, n: int, k: int) -> Tensor:
    blocks, groups, _, group = packed.shape
    return packed.permute(0, 2, 1, 3).reshape(blocks * BLOCK, groups * group)[:n, :k].contiguous()


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
