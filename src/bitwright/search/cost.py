"""Estimates the arithmetic, time and memory of calibration from shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass

FORWARDS = 2  # of each block: one observes, one makes the next block's inputs
_SEARCH_CANDIDATES, _SEARCH_ROWS = 40, 512  # of AWQ's search: two products with the Gram matrix for each
_WIDTH = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input that linears of one block read.

    n: output features of all its readers together. k: its features. share: of all tokens that reach it; less than 1 for
    an expert. block: index, None for heads.
    """

    n: int
    k: int
    block: int | None
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a calibration.

    flops: of the forwards, the Gram matrices, the solves, and the search of a transform together. seconds: that at the
    measured speed. memory_bytes: one block in float32 with a working copy, its Gram matrices, and the hidden states of
    all tokens twice; and what is never emptied: embeddings and heads.
    """

    n_tokens: int
    flops: float
    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Resources:
    """The available memory, time and arithmetic per second."""

    memory_bytes: int
    seconds: float
    flops_per_second: float


def calibration_cost(
    tensors: Sequence[Tensor], *, n_tokens: int, hidden: int, resident_bytes: int, flops_per_second: float
) -> Cost:
    """The cost of the most thorough method: GPTQ after AWQ's search.

    Args:
        tensors: every input of the model. n_tokens: of the calibration. hidden: features of a block's output.
        resident_bytes: of what is in memory all the time, whatever the method.
    """
    flops = 0.0
    weights: dict[int | None, int] = {}
    grams: dict[int | None, int] = {}
    for tensor in tensors:
        n, k = tensor.n, tensor.k
        flops += 2 * n * k * n_tokens * tensor.share * FORWARDS  # forwards
        flops += k * k * n_tokens * tensor.share  # the Gram matrix is symmetric
        flops += k**3 + n * k * k  # the Cholesky factor, then each column takes from those behind it
        flops += 2 * _SEARCH_CANDIDATES * min(n, _SEARCH_ROWS) * k * k
        weights[tensor.block] = weights.get(tensor.block, 0) + n * k
        grams[tensor.block] = grams.get(tensor.block, 0) + k * k
    largest = max((2 * weights[block] + grams[block] for block in weights if block is not None), default=0)
    memory = _WIDTH * (largest + 2 * n_tokens * hidden) + resident_bytes
    return Cost(n_tokens, flops, flops / flops_per_second, memory)
