"""The 95th percentile of a call's time, of a candidate against the champion: in turns, text by text.

Clocks, caches and other programs change by the minute, so times of different minutes say little. Here every text is
timed in both models one after the other, and who is first changes. The ratio of the two percentiles is bounded by a
bootstrap over texts, and more rounds are timed until the bound decides, or the time is over.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitwright.runtime.model import Model

_RESAMPLES, _SHARE = 400, 95.0
_LEAST_CALLS = 100
_TOKENS = 8  # of an answer


@dataclass(frozen=True, slots=True)
class LatencyRatio:
    """p95 of candidate and champion in ms; their ratio with its 90 % interval; how many calls of each were timed."""

    candidate_ms: float
    champion_ms: float
    ratio: float
    lower: float
    upper: float
    calls: int


def latency_ratio(
    candidate: Model, champion: Model, texts: Sequence[str], *, limit: float, seconds: float = 10.0
) -> LatencyRatio:
    """Time both models on the texts, in turns, until it is clear on which side of `limit` the ratio lies.

    limit: the ratio up to which a candidate is fast enough. seconds: after them the figures stand as they are.
    """
    calls = _call(candidate), _call(champion)
    for call in calls:  # the first call maps buffers
        call(texts[0])
    times: list[tuple[float, float]] = []
    deadline, found = time.monotonic() + seconds, None
    while found is None or (found.lower <= limit < found.upper and time.monotonic() < deadline):
        for i, text in enumerate(texts):
            first = i % 2
            one, other = _milliseconds(calls[first], text), _milliseconds(calls[1 - first], text)
            times.append((other, one) if first else (one, other))
            if time.monotonic() > deadline and len(times) >= _LEAST_CALLS:
                break
        found = ratio_of(np.array(times))
    return found


def ratio_of(times_N2: NDArray[np.float64], *, seed: int = 0) -> LatencyRatio:
    """The ratio of the percentiles of two columns of times in ms, candidate and champion."""
    ours, theirs = np.percentile(times_N2, _SHARE, axis=0)
    drawn_BN = np.random.default_rng(seed).integers(len(times_N2), size=(_RESAMPLES, len(times_N2)))
    percentiles_B2 = np.percentile(times_N2[drawn_BN], _SHARE, axis=1)
    lower, upper = np.quantile(percentiles_B2[:, 0] / percentiles_B2[:, 1], (0.05, 0.95))
    return LatencyRatio(float(ours), float(theirs), float(ours / theirs), float(lower), float(upper), len(times_N2))


def _call(model: Model) -> Callable[[str], Any]:
    generate: Callable[..., Any] | None = getattr(model, "generate", None)
    if model.task == "text-generation" and generate is not None:
        return lambda text: generate([text], max_tokens=_TOKENS)
    return lambda text: model.encode([text])


def _milliseconds(call: Callable[[str], Any], text: str) -> float:
    begun = time.perf_counter()
    call(text)
    return 1e3 * (time.perf_counter() - begun)
