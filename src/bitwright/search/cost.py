"""Estimates the arithmetic, time and memory of calibration from shapes alone."""

from collections.abc import Sequence
from dataclasses import dataclass

FORWARDS = 2  # of each block: one observes, one makes the next block's inputs
_SEARCH_CANDIDATES, _SEARCH_ROWS = 40, 512  # of AWQ's search: two products with the Gram matrix for each
_GRADIENT_FORWARDS = 3  # of a text whose gradients are taken: forward, and back with twice as many products
_WIDTH = 4  # bytes of a float32


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input that linears of one block read.

    n: output features of all its readers together. k: its features. share: of all tokens that reach it; less than 1 for
    an expert. block: index, None for heads. weighted: Gram matrices of its values weighted by the loss, beside its own.
    """

    n: int
    k: int
    block: int | None
    share: float = 1.0
    weighted: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a calibration.

    flops: of the forwards, the Gram matrices, the solves, and the search of a transform together; and of the gradients
    of the loss, where inputs are weighted. seconds: that at the measured speed. memory_bytes: one block in float32 with
    a working copy, its Gram matrices, and the hidden states of all tokens twice; and what is never emptied: embeddings
    and heads. Where the mismatch to the float model is corrected, also its hidden states, its weights of the block, and
    two more matrices beside each Gram matrix.
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
    tensors: Sequence[Tensor], *, n_tokens: int, hidden: int, resident_bytes: int, flops_per_second: float,
    again: bool = False, mismatch: bool = False,
) -> Cost:  # fmt: skip
    """The cost of the most thorough method: GPTQ after AWQ's search.

    Args:
        tensors: every input of the model, in forward order. n_tokens: of the calibration. hidden: features of a block's
            output. resident_bytes: of what is in memory all the time, whatever the method.
        again: whether inputs are observed again after each of a block. mismatch: whether what they are in the float
            model is observed beside.
    """
    flops = 0.0
    ahead: dict[int | None, float] = {}  # of the inputs of a block that come before: their part of its forward
    weights: dict[int | None, int] = {}
    grams: dict[int | None, int] = {}
    for tensor in tensors:
        n, k, block, weighted, tokens = tensor.n, tensor.k, tensor.block, tensor.weighted, n_tokens * tensor.share
        forward, gram = 2 * n * k * tokens, k * k * tokens  # the Gram matrix is symmetric: half a product
        looks = 2 if again and block in ahead else 1  # the second is a forward that ends at this input
        before = ahead.setdefault(block, 0.0)
        ahead[block] += forward
        flops += forward * (FORWARDS + mismatch) + (looks - 1) * before * (1 + mismatch)
        flops += gram * (looks * (1 + 4 * mismatch) + weighted)
        flops += k**3 * max(1, weighted) + n * k * k  # Cholesky factors, then each column takes from those behind it
        flops += 2 * _SEARCH_CANDIDATES * min(n, _SEARCH_ROWS) * k * k
        flops += mismatch * (k**3 / 3 + 4 * n * k * k)  # a factor and two solves give the weight that is aimed at
        if weighted:
            flops += forward * _GRADIENT_FORWARDS + (before if again else forward)
        weights[block] = weights.get(block, 0) + n * k
        grams[block] = grams.get(block, 0) + k * k * (1 + 2 * mismatch + weighted)
    copies, states = 2 + mismatch, 2 + 2 * mismatch
    largest = max((copies * weights[block] + grams[block] for block in weights if block is not None), default=0)
    memory = _WIDTH * (largest + states * n_tokens * hidden) + resident_bytes
    return Cost(n_tokens, flops, flops / flops_per_second, memory)
