"""The 95th percentile of a call's time over texts, of a candidate against the champion: in turns, text by text.

Clocks, caches and other programs change by the minute, so times of different minutes say little. Here every text is
timed in both models one after the other, and who is first changes. Where other programs take the processor, the slowest
calls of both are as slow as those let them be; so of each text the fastest of several rounds counts, and the percentile
is over texts. A bootstrap over texts bounds the ratio, and more rounds are timed until it decides, or the time is over.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitwright.runtime.model import Model

_RESAMPLES, _SHARE = 400, 95.0
_LEAST_ROUNDS = 3
_TOKENS = 8  # of an answer


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """p95 of candidate and champion in ms; their ratio with its 90 % interval; how often each text was timed."""

    candidate_ms: float
    champion_ms: float
    ratio: float
    lower: float
    upper: float
    rounds: int


def latency_ratio(
    candidate: Model, champion: Model, texts: Sequence[str], *, limit: float, seconds: float = 10.0
) -> LatencyRatio:
    """Time both models on the texts, in turns, until it is clear on which side of `limit` the ratio lies.

    limit: the ratio up to which a candidate is fast enough. seconds: after them the figures stand as they are.
    """
    calls = _call(candidate), _call(champion)
    for call in calls:  # the first call maps buffers
        call(texts[0])
    best_T2 = np.full((len(texts), 2), np.inf)
    deadline, rounds = time.monotonic() + seconds, 0
    while True:
        for i, text in enumerate(texts):
            for side in (0, 1) if (i + rounds) % 2 else (1, 0):
                best_T2[i, side] = min(best_T2[i, side], _milliseconds(calls[side], text))
        rounds += 1
        found = ratio_of(best_T2, rounds=rounds)
        decided = rounds >= _LEAST_ROUNDS and not found.lower <= limit < found.upper
        if decided or time.monotonic() > deadline:
            return found


def ratio_of(times_T2: NDArray[np.float64], *, rounds: int = 1, seed: int = 0) -> LatencyRatio:
    """The ratio of the percentiles of two columns of times in ms, candidate and champion, with a row for each text."""
    ours, theirs = np.percentile(times_T2, _SHARE, axis=0)
    drawn_BT = np.random.default_rng(seed).integers(len(times_T2), size=(_RESAMPLES, len(times_T2)))
    percentiles_B2 = np.percentile(times_T2[drawn_BT], _SHARE, axis=1)
    lower, upper = np.quantile(percentiles_B2[:, 0] / percentiles_B2[:, 1], (0.05, 0.95))
    return LatencyRatio(float(ours), float(theirs), float(ours / theirs), float(lower), float(upper), rounds)


def _call(model: Model) -> Callable[[str], Any]:
    generate: Callable[..., Any] | None = getattr(model, "generate", None)
    if model.task == "text-generation" and generate is not None:
        return lambda text: generate([text], max_tokens=_TOKENS)
    return lambda text: model.encode([text])


def _milliseconds(call: Callable[[str], Any], text: str) -> float:
    begun = time.perf_counter()
    call(text)
    return 1e3 * (time.perf_counter() - begun)
