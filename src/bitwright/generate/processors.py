"""From logits to a token: what changes the logits, in transformers' order, and the choice.

Both are functions of their arguments alone. Random numbers come from the seed and the token's place in the answer, so
that neither the rest of a batch, nor preemption, nor speculation changes a token.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitwright.errors import NotFiniteError
from bitwright.generate.sampling import Sampling

Floats = NDArray[np.float32]

_FIRST_LIKELY = 512  # tokens, among which top_p looks first for its probability: few texts need more
_MORE_LIKELY = 8  # times as many after that
_BLOCK = 256  # weights that are summed at once: a running sum over all is slow


class Choice(NamedTuple):
    """A token; its log-probability; the likeliest tokens with theirs, best first. Nothing of these if not asked for."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


def processed(
    logits_V: Floats, prompt_ids: ArrayLike, new_ids: Sequence[int], sampling: Sampling, ends: Sequence[int] = ()
) -> Floats:
    """The logits from which a token is chosen: float32, -inf for what may not be chosen.

    In transformers' order: logit bias, repetition penalty (tokens of prompt and answer), presence and frequency
    penalties (tokens of the answer, as OpenAI and vLLM have it), no end before min_tokens; then, unless greedy,
    temperature, top-k, top-p, min-p.

    Args:
        logits_V: float32, not changed; greedy without penalties gives them back as they are.
        new_ids: the answer so far. ends: tokens that end the answer.

    Raises:
        NotFiniteError: logits that are NaN or +inf, or all -inf.
    """
    check_logits(logits_V)
    scores_V = logits_V
    if sampling.logit_bias:
        scores_V = _biased(scores_V, sampling.logit_bias)
    if sampling.repetition_penalty != 1:
        seen = np.concatenate([np.asarray(prompt_ids, np.int64), np.asarray(new_ids, np.int64)])
        scores_V = _less_repeated(scores_V, seen, sampling.repetition_penalty)
    if new_ids and (sampling.presence_penalty or sampling.frequency_penalty):
        scores_V = _penalized(scores_V, new_ids, sampling.presence_penalty, sampling.frequency_penalty)
    if len(new_ids) < sampling.min_tokens and len(ends):
        scores_V = scores_V.copy()
        scores_V[_below(np.asarray(ends, np.int64), len(scores_V))] = -np.inf
    if sampling.greedy:
        return scores_V
    scores_V = scores_V / np.float32(sampling.temperature)
    if 0 < sampling.top_k < len(scores_V):
        scores_V = _top_k(scores_V, sampling.top_k)
    if sampling.top_p < 1:
        scores_V = _top_p(scores_V, sampling.top_p)
    if sampling.min_p > 0:
        least = scores_V.max() + np.float32(np.log(sampling.min_p))
        scores_V = np.where(scores_V < least, np.float32(-np.inf), scores_V)
    return scores_V


def chosen(scores_V: Floats, sampling: Sampling, position: int, logits_V: Floats | None = None) -> Choice:
    """The token that these scores (`processed`) choose.

    Greedy takes the largest, of equal ones the lowest id. Else the token is drawn with `uniform(seed, position)`.

    Args:
        position: the token's place in the answer, from 0.
        logits_V: as the model gave them; default: the scores. Log-probabilities are of these, before any processing, as
            in OpenAI's interface and in vLLM (raw_logprobs): they say what the model thinks, not how it is sampled.

    Raises:
        NotFiniteError: no token is left.
    """
    best = int(scores_V.argmax())
    if not np.isfinite(scores_V[best]):
        raise NotFiniteError("every token has probability 0: logit_bias and min_tokens forbid all that the model gives")
    if sampling.greedy:
        index = best
    else:
        kept = np.flatnonzero(scores_V > -np.inf)
        weights = np.exp(scores_V[kept] - scores_V[best])
        index = int(kept[_drawn(weights, uniform(sampling.seed or 0, position))])
    if sampling.logprobs is None:
        return Choice(index, None, ())
    raw_V = scores_V if logits_V is None else logits_V
    level = log_sum_exp(raw_V)
    top = tuple((one, float(raw_V[one]) - level) for one in likeliest(raw_V, sampling.logprobs))
    return Choice(index, float(raw_V[index]) - level, top)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), the same on every machine: the first 53 bits of Philox with this key and counter."""
    return float(np.random.Philox(key=seed, counter=position).random_raw() >> 11) / (1 << 53)


def _drawn(weights: Floats, number: float) -> int:
    """The first place up to which the weights sum to more than `number` (0 to 1) of all: the inverse distribution."""
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64))
    wanted = number * sums[-1]
    block = min(int(np.searchsorted(sums, wanted, side="right")), len(sums) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    before = float(sums[block - 1]) if block else 0.0
    return block * _BLOCK + min(int(np.searchsorted(inside, wanted - before, side="right")), len(inside) - 1)


def check_logits(logits_V: Floats) -> None:
    """Raises:
    NotFiniteError: logits that are NaN or +inf, or all -inf.
    """
    largest = logits_V.max()  # NaN if any is
    if not np.isfinite(largest):
        nans, infinite = int(np.isnan(logits_V).sum()), int(np.isposinf(logits_V).sum())
        what = f"{nans} are NaN and {infinite} infinite" if nans or infinite else "all are -inf"
        raise NotFiniteError(
            f"of {len(logits_V)} logits {what}; the model cannot continue this text. Check its weights, or load it "
            'with compute="float32"'
        )


def log_sum_exp(logits_V: Floats) -> float:
    """log Σ exp(logit): what a logit exceeds its log-probability by."""
    largest = logits_V.max()
    return float(largest) + float(np.log(np.exp(logits_V - largest).sum(dtype=np.float64)))


def likeliest(logits_V: Floats, count: int) -> list[int]:
    """The ids of the largest logits, largest first, of equal ones the lowest id first."""
    count = min(count, len(logits_V))
    if count == 0:
        return []
    ids = np.flatnonzero(logits_V >= _nth_largest(logits_V, count))
    return [int(one) for one in ids[np.lexsort((ids, -logits_V[ids]))][:count]]


def _biased(scores_V: Floats, bias: Mapping[int, float]) -> Floats:
    scores_V = scores_V.copy()
    scores_V[np.fromiter(bias, np.int64)] += np.fromiter(bias.values(), np.float32)
    return scores_V


def _less_repeated(scores_V: Floats, seen: NDArray[np.int64], penalty: float) -> Floats:
    """Keskar et al. 2019 (CTRL), section 4.1; a negative logit is multiplied, so that it becomes less likely too."""
    scores_V, seen = scores_V.copy(), _below(seen, len(scores_V))
    found, factor = scores_V[seen], np.float32(penalty)
    scores_V[seen] = np.where(found < 0, found * factor, found / factor)  # an id that stands twice is written twice
    return scores_V


def _penalized(scores_V: Floats, new_ids: Sequence[int], presence: float, frequency: float) -> Floats:
    scores_V = scores_V.copy()
    ids, counts = np.unique(_below(np.asarray(new_ids, np.int64), len(scores_V)), return_counts=True)
    scores_V[ids] -= (presence + frequency * counts).astype(np.float32)
    return scores_V


def _below(ids: NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    """The ids that the head has: the table of words may be longer."""
    return ids[ids < vocabulary]


def _nth_largest(scores_V: Floats, n: int) -> np.float32:
    place = len(scores_V) - n
    found: np.float32 = np.partition(scores_V, place)[place]
    return found


def _top_k(scores_V: Floats, k: int) -> Floats:
    return np.where(scores_V < _nth_largest(scores_V, k), np.float32(-np.inf), scores_V)


def _top_p(scores_V: Floats, p: float) -> Floats:
    """Keep a token if those before it, from the likeliest on, have less than p together (Holtzman et al. 2020).

    Of tokens as likely as the last one that is kept, the lowest ids stay. Only as many tokens are sorted as are needed.
    """
    kept = scores_V[scores_V > -np.inf]
    largest = kept.max()
    wanted = p * float(np.exp(kept - largest).sum(dtype=np.float64))
    likely, count = kept, _FIRST_LIKELY
    while count < len(kept):
        likely = kept[kept >= _nth_largest(kept, count)]
        if float(np.exp(likely - largest).sum(dtype=np.float64)) >= wanted:
            break
        likely, count = kept, count * _MORE_LIKELY
    likely = np.sort(likely)[::-1]
    weights = np.exp(likely - largest).astype(np.float64)
    sums = np.cumsum(weights)
    number = int(np.count_nonzero(sums - weights < wanted))
    last = likely[number - 1]
    found = scores_V > last
    equal = np.flatnonzero(scores_V == last)
    found[equal[: number - int(np.count_nonzero(found))]] = True
    return np.where(found, scores_V, np.float32(-np.inf))
