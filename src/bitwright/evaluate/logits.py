"""Reduces the logits of a language model to the values that are kept, one window at a time.

The logits of 40 windows of 1024 tokens over 150,000 of vocabulary are 25 GB; what is kept is a few numbers per token.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwright.errors import DataError
from bitwright.evaluate.kinds import Window
from bitwright.progress import Track

Logits = Callable[[Window], Tensor]  # token ids -> logits (T, V)

_Float32 = NDArray[np.float32]

_ROWS_AT_ONCE = 128  # of logits; temporaries are that times the vocabulary


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outputs of two models for the same windows, one array per window.

    float_outputs, quant_outputs: float32 (2, T − 1), as `language` describes them. kl: float32 (T − 1,), of each
    prediction KL(float ‖ quantized) = Σ p_float · log(p_float / p_quant) over the vocabulary, in nats; infinite where a
    logit is NaN. It is exact to about 10⁻⁶.
    """

    float_outputs: list[_Float32]
    quant_outputs: list[_Float32]
    kl: list[_Float32]

    @property
    def mean_kl(self) -> float:
        """KL per token, in nats."""
        return float(np.concatenate(self.kl).mean(dtype=np.float64))


def compare_windows(
    windows: Iterable[Window], float_logits: Logits, quant_logits: Logits, *, track: Track = iter
) -> Comparison:
    """Run two language models over the same windows. Memory holds the logits of one window per model.

    Args:
        track: wraps the loop over windows, for a progress bar.

    Raises:
        DataError: logits that are not one row per token, or of vocabularies of different size.
    """
    result = Comparison([], [], [])
    for ids in track(windows):
        # A function of its own, so that this window's logits are gone before the next one's are computed.
        float_output, quant_output, kl = _compared(ids, float_logits(ids), quant_logits(ids))
        result.float_outputs.append(float_output)
        result.quant_outputs.append(quant_output)
        result.kl.append(kl)
    return result


def token_outputs(logits_TV: Tensor, ids: Sequence[int]) -> _Float32:
    """The kept values of a window, float32 (2, T − 1): NLL in nats of each token after the first, and the likeliest id.

    Args:
        logits_TV: row t predicts token t + 1; the last row predicts nothing that is there.
        ids: the T token ids.

    Raises:
        DataError: not one row of logits per token.
    """
    if logits_TV.ndim != 2 or len(logits_TV) != len(ids):
        raise DataError(
            f"the logits have the shape {tuple(logits_TV.shape)} for {len(ids)} tokens, but (tokens, vocabulary) is "
            "needed"
        )
    next_ids = torch.tensor(ids[1:])
    kept = torch.empty(2, len(next_ids))
    for start in range(0, len(next_ids), _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, len(next_ids)))
        some = logits_TV[rows].float()
        kept[0, rows] = torch.logsumexp(some, dim=1) - some.gather(1, next_ids[rows, None]).squeeze(1)
        kept[1, rows] = some.argmax(dim=1).float()  # exact up to 2²⁴, a hundred times the largest vocabulary
    return kept.numpy()


def _compared(ids: Window, left_TV: Tensor, right_TV: Tensor) -> tuple[_Float32, _Float32, _Float32]:
    if left_TV.shape != right_TV.shape:
        raise DataError(
            f"the logits have the shape {tuple(left_TV.shape)} in the float model, but {tuple(right_TV.shape)} in "
            "the quantized one. The two have different vocabularies, so they cannot be compared"
        )
    return token_outputs(left_TV, ids), token_outputs(right_TV, ids), _kl(left_TV[:-1], right_TV[:-1])


def _kl(left_TV: Tensor, right_TV: Tensor) -> _Float32:
    pieces = []
    for some, others in zip(*(torch.split(side, _ROWS_AT_ONCE) for side in (left_TV, right_TV)), strict=True):
        p, q = some.float().log_softmax(dim=1), others.float().log_softmax(dim=1)
        terms = (p - q).mul_(p.exp()).masked_fill_(p == -math.inf, 0)  # 0 · log 0 is 0
        pieces.append(terms.sum(dim=1).clamp_min_(0).nan_to_num_(nan=math.inf, posinf=math.inf))
    return torch.cat(pieces).numpy()
