"""How far a window of unchanged texts strays from a reference: by drawing both, again and again, from the reference.

A window and a reference, of as many texts as the real ones, are drawn with repetitions, so that the error of a small
reference counts too (the bootstrap of two samples).
A threshold is passed by ALARMS of the windows, all statistics together; an alarm takes PERSISTENCE windows in a row.
"""

import numpy as np

from bitwright.drift.sketch import Sample, psi

PERSISTENCE = 2  # windows in a row in which one statistic passes its threshold
# Of windows of unchanged texts pass some threshold. Against a reference that happens to be odd it is many more, and all
# windows are compared with the same one: hence so few.
ALARMS = 0.002
DRAWS = 2000
_BLOCK = 200  # draws that are in memory at once

# Less than this is no drift, however sure it is: octaves, share of tokens, PSI, standard deviations.
_LEAST = {"length": 0.1, "unknown": 0.005, "tokens": 0.02, "embeddings": 0.03}


def find_thresholds(sample: Sample, window: int, *, seed: int = 0, draws: int = DRAWS) -> dict[str, float]:
    """The threshold of each statistic for windows of so many texts. The same seed gives the same thresholds."""
    rng = np.random.default_rng(seed)
    blocks = [_drawn(sample, window, min(_BLOCK, draws - done), rng) for done in range(0, draws, _BLOCK)]
    found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    level = _joint_level(np.stack(list(found.values())), ALARMS)
    return {name: max(_LEAST[name], float(np.quantile(values, 1 - level))) for name, values in found.items()}


def _drawn(sample: Sample, window: int, draws: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Each statistic of drawn windows against drawn references, (draws,)."""
    even = np.full(len(sample.octaves_N), 1 / len(sample.octaves_N))
    # How often each text is in a window, and in a reference: (draws, N).
    drawn, rest = (rng.multinomial(size, even, draws).astype(np.float32) for size in (window, len(even)))
    found = {
        "length": _wasserstein(sample.octaves_N[None], drawn, rest)[:, 0],
        "unknown": np.abs(_rates(sample, drawn) - _rates(sample, rest)),
        "tokens": psi(drawn @ sample.counts_NB, rest @ sample.counts_NB),
    }
    if len(sample.along_PN):
        found["embeddings"] = (_wasserstein(sample.along_PN, drawn, rest) / spread(sample)).mean(1)
    return found


def spread(sample: Sample) -> np.ndarray:
    """The standard deviation of the embeddings along each direction; 1 where they do not vary."""
    deviation: np.ndarray = sample.along_PN.std(1)
    deviation[deviation == 0] = 1.0
    return deviation


def _wasserstein(values_PN: np.ndarray, drawn: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """(draws, P): ∫ |F − G| of the distributions that give each value these weights."""
    order = np.argsort(values_PN, 1)
    gaps = np.diff(np.take_along_axis(values_PN, order, 1), axis=1)
    weights = drawn / drawn.sum(1, keepdims=True) - rest / rest.sum(1, keepdims=True)
    found = [np.einsum("pn,pn->p", np.abs(np.cumsum(w[order], 1)[:, :-1]), gaps) for w in weights]
    return np.stack(found)


def _rates(sample: Sample, weights: np.ndarray) -> np.ndarray:
    rates: np.ndarray = (weights @ sample.unknown_N) / np.maximum(1, weights @ sample.tokens_N)
    return rates


def _joint_level(values_SD: np.ndarray, level: float) -> float:
    """The level of each statistic alone at which so many of the draws pass at least one threshold."""
    draws = values_SD.shape[1]
    ranks = np.argsort(np.argsort(-values_SD, 1), 1)  # 0: the largest
    return float((np.quantile(ranks.min(0), level) + 1) / draws)
