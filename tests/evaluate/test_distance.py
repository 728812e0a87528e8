"""The smooth distance between the outputs of two models."""

import numpy as np
import pytest

from bitwright.evaluate.distance import output_distance


def test_of_embeddings_the_angle_counts_and_not_the_length() -> None:
    rows = np.eye(3, 8)
    assert output_distance(rows, 5 * rows, embeddings=True) == pytest.approx(0)
    turned = rows + np.roll(rows, 1, axis=1)  # by 45 degrees
    assert output_distance(rows, turned, embeddings=True) == pytest.approx(1 - np.sqrt(0.5))
    assert output_distance(list(rows), [rows[0], rows[1], turned[2]], embeddings=True) == pytest.approx(
        (1 - np.sqrt(0.5)) / 3
    )


def test_of_logits_it_is_what_moved_relative_to_what_tells_texts_apart() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3)) + 100  # an offset that all share tells nothing apart
    assert output_distance(logits, logits + 0.1 * rng.normal(size=(500, 3)), embeddings=False) == pytest.approx(
        0.01, rel=0.2
    )
    assert output_distance(logits, logits + 0.1, embeddings=False) > 0.005


def test_rows_of_several_logits_and_single_scores_are_taken_as_they_come() -> None:
    rng = np.random.default_rng(1)
    spans = [rng.normal(size=(n, 2)) for n in (3, 7, 5)]  # as many rows as a text has tokens
    noisy = [rows + 0.1 * rng.normal(size=rows.shape) for rows in spans]
    assert output_distance(spans, noisy, embeddings=False) == pytest.approx(0.01, rel=0.6)
    scores = [np.array([value]) for value in rng.normal(size=200)]
    assert output_distance(scores, [1.1 * value for value in scores], embeddings=False) == pytest.approx(0.01, rel=0.2)
    alike = [np.zeros(2)] * 3
    assert output_distance(alike, alike, embeddings=False) == 0
