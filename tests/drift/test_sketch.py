"""Sketches: the distances are what they say, and hold no text; thresholds keep unchanged texts quiet."""

from dataclasses import replace

import numpy as np
import pytest

from bitwright.drift import sketch
from bitwright.drift.sketch import BUCKETS, DIRECTIONS, LEVELS, Sample, Sketch, distances, psi, reference_of, sample_of
from bitwright.drift.thresholds import find_thresholds, spread


def texts_like(rng: np.random.Generator, n: int, *, shift: float = 0.0) -> tuple[list[list[int]], np.ndarray]:
    """Random ids with Zipf's frequencies, and random embeddings whose mean is `shift` of a standard deviation away."""
    lengths = rng.integers(4, 20, n)
    ids = [np.minimum(rng.zipf(1.5, length), 5000).tolist() for length in lengths]
    return ids, rng.standard_normal((n, 16)).astype(np.float32) + np.float32(shift)


def test_a_sample_counts_what_texts_have() -> None:
    vectors = np.eye(2, 8, dtype=np.float32)
    sample = sample_of([[5, 5, 1, 7], [5]], vectors, unknown_id=1)
    assert sample.octaves_N.tolist() == [2.0, 0.0]
    assert sample.unknown_N.tolist() == [1.0, 0.0]
    assert sample.tokens_N.tolist() == [4.0, 1.0]
    assert sample.counts_NB.shape == (2, BUCKETS)
    assert sample.along_PN.shape == (DIRECTIONS, 2)
    np.testing.assert_allclose(np.abs(sample.along_PN), 1 / np.sqrt(8))
    assert sample_of([[1]], None, None).along_PN.shape == (0, 1)


def test_buckets_and_directions_never_change() -> None:
    """A reference of one release is compared with windows of another."""
    assert sketch.bucket_of(np.array([0, 1, 2, 30521])).tolist() == [0, 158, 60, 3]
    rows = sketch._directions(384)
    assert rows.shape == (384, DIRECTIONS)
    assert np.sign(rows[:2, :4]).tolist() == SIGNS
    assert abs(float(rows.sum())) < 40


SIGNS = [[1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]]


def test_distances_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.standard_normal(LEVELS))
    reference = Sketch(values, 10.0, np.full(BUCKETS, 100.0), np.tile(values, (DIRECTIONS, 1)))
    window = Sketch(values + 0.5, 256.0, np.full(BUCKETS, 10.0), np.tile(values - 2, (DIRECTIONS, 1)))
    found = distances(window, reference, np.full(DIRECTIONS, 4.0))
    assert found["length"] == pytest.approx(0.5, rel=0.01)
    assert found["unknown"] == pytest.approx(0.1 - 10 / 25600)
    assert found["tokens"] == pytest.approx(0)
    assert found["embeddings"] == pytest.approx(0.5, rel=0.01)
    bare = replace(window, along_P=np.empty((0, 0)))
    assert set(distances(bare, reference, np.ones(DIRECTIONS))) == {"length", "unknown", "tokens"}


def test_psi() -> None:
    a, b = np.array([90.0, 10.0]), np.array([50.0, 50.0])
    p, q = (a + 0.5) / 101, (b + 0.5) / 101
    assert psi(a, b) == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert psi(a, a) == 0
    assert np.isfinite(psi(np.array([1e6, 0.0]), np.array([0.0, 1e6])))


def test_thresholds_keep_unchanged_texts_quiet_and_see_a_shift() -> None:
    rng = np.random.default_rng(1)
    sample = sample_of(*texts_like(rng, 1000), unknown_id=3)
    limits = find_thresholds(sample, 200, draws=300)
    assert find_thresholds(sample, 200, draws=300) == limits
    reference, width = reference_of(sample), spread(sample)

    def passed(shift: float) -> int:
        window = sample_of(*texts_like(rng, 200, shift=shift), unknown_id=3)
        order = np.sort(window.along_PN, 1)
        held = Sketch(np.sort(window.octaves_N), window.unknown_N.sum(), window.counts_NB.sum(0), order)
        return sum(value > limits[name] for name, value in distances(held, reference, width).items())

    assert sum(passed(0.0) > 0 for _ in range(60)) <= 4  # 0.6 are expected
    assert all(passed(0.6) for _ in range(5))


def test_embeddings_that_do_not_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    sample: Sample = sample_of([[1, 2]] * 100, np.ones((100, 4), np.float32), None)
    limits = find_thresholds(sample, 50, draws=20)
    assert all(np.isfinite(value) and value > 0 for value in limits.values())
