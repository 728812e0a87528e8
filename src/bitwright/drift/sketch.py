"""`Sketch`: what is kept of many texts. No text can be read from it.

How long they are, how often a token is unknown, which tokens they have by hashed buckets, and how their embeddings are
spread along fixed directions. The distances of one sketch from another:

    length      distance of the lengths' distributions (Wasserstein, in octaves of tokens)
    unknown     difference of the shares of unknown tokens
    tokens      PSI over BUCKETS buckets of token ids: Σ (p − q) ln(p / q)
    embeddings  mean over DIRECTIONS random directions of the Wasserstein distance along each, in standard deviations of
                the reference (sliced Wasserstein: Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import shake_256
from itertools import chain

import numpy as np

STATISTICS = ("length", "unknown", "tokens", "embeddings")
BUCKETS, DIRECTIONS, LEVELS = 256, 32, 501
_HASH = 0x9E3779B1  # 2^32 / golden ratio, odd: neighbouring ids fall far apart
_SMOOTHING = 0.5  # added to the count of each bucket, so that an empty one has a logarithm


@dataclass(frozen=True, slots=True)
class Sample:
    """Some texts, N of them, as numbers: what a sketch is made of, text by text.

    octaves_N: log2 of the tokens of each. unknown_N: its unknown tokens. counts_NB: its tokens by bucket.
    along_PN: its embedding along each direction; P = 0 of a model without embeddings.
    """

    octaves_N: np.ndarray
    unknown_N: np.ndarray
    counts_NB: np.ndarray
    along_PN: np.ndarray

    @property
    def tokens_N(self) -> np.ndarray:
        """The tokens of each text."""
        total: np.ndarray = self.counts_NB.sum(1)
        return total


@dataclass(frozen=True, slots=True)
class Sketch:
    """The sums over the texts of a window, or of a reference.

    octaves, along_P: sorted values, or a reference's quantiles. unknown: unknown tokens. counts_B: tokens by bucket.
    """

    octaves: np.ndarray
    unknown: float
    counts_B: np.ndarray
    along_P: np.ndarray


def sample_of(ids: Sequence[Sequence[int]], embeddings: np.ndarray | None, unknown_id: int | None) -> Sample:
    """The numbers of texts. ids: of their tokens. embeddings: (N, D). unknown_id: of the unknown token."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
    owner = np.repeat(np.arange(len(ids)), lengths)
    counts = np.bincount(owner * BUCKETS + bucket_of(flat), minlength=len(ids) * BUCKETS).reshape(-1, BUCKETS)
    is_unknown = np.zeros(flat.size, bool) if unknown_id is None else flat == unknown_id
    unknown = np.bincount(owner, weights=is_unknown, minlength=len(ids))
    along = np.empty((0, len(ids)), np.float32) if embeddings is None else along_directions(embeddings).T
    return Sample(np.log2(np.maximum(lengths, 1)), unknown, counts.astype(np.float32), np.ascontiguousarray(along))


def bucket_of(ids: np.ndarray) -> np.ndarray:
    """The bucket of each token id: the highest byte of a multiplicative hash."""
    return ((ids * _HASH) & 0xFFFFFFFF) >> 24


def along_directions(embeddings: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, DIRECTIONS): products with fixed random directions of unit length."""
    along: np.ndarray = np.asarray(embeddings, np.float32) @ _directions(embeddings.shape[1])
    return along


@cache
def _directions(width: int) -> np.ndarray:
    """(D, DIRECTIONS) of ±1/√D. From SHAKE-256, which gives the same bits with every release of every library."""
    bits = np.frombuffer(shake_256(b"bitwright drift").digest(width * DIRECTIONS // 8), np.uint8)
    signs = np.unpackbits(bits).reshape(width, DIRECTIONS).astype(np.float32)
    return (2 * signs - 1) / np.float32(np.sqrt(width))


def reference_of(sample: Sample) -> Sketch:
    """The sketch of reference texts: quantiles at LEVELS levels in place of values."""
    levels = np.linspace(0, 1, LEVELS)
    along = np.quantile(sample.along_PN, levels, axis=1).T if sample.along_PN.size else np.empty((0, LEVELS))
    return Sketch(
        np.quantile(sample.octaves_N, levels), float(sample.unknown_N.sum()), sample.counts_NB.sum(0), along
    )  # fmt: skip


def distances(window: Sketch, reference: Sketch, spread_P: np.ndarray) -> dict[str, float]:
    """Each statistic of a window against a reference; the embeddings' only where both have them.

    spread_P: the reference's standard deviation along each direction.
    """
    found = {
        "length": float(_wasserstein(window.octaves, reference.octaves)),
        "unknown": abs(_share(window) - _share(reference)),
        "tokens": float(psi(window.counts_B, reference.counts_B)),
    }
    if len(window.along_P) and len(reference.along_P):
        found["embeddings"] = float(np.mean(_wasserstein(window.along_P, reference.along_P) / spread_P))
    return found


def psi(counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The population stability index of counts (…, B) against counts of the same shape."""
    p, q = ((c + _SMOOTHING) / (c + _SMOOTHING).sum(-1, keepdims=True) for c in (counts, reference))
    total: np.ndarray = ((p - q) * np.log(p / q)).sum(-1)
    return total


def _wasserstein(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The mean distance of sorted values (…, n) from the quantiles (…, LEVELS) at the same levels."""
    n = values.shape[-1]
    place = (np.arange(n) + 0.5) / n * (LEVELS - 1)
    low = place.astype(int)
    share = place - low
    at = quantiles[..., low] * (1 - share) + quantiles[..., low + 1] * share
    mean: np.ndarray = np.abs(values - at).mean(-1)
    return mean


def _share(sketch: Sketch) -> float:
    return sketch.unknown / max(1.0, float(sketch.counts_B.sum()))
