"""Vectors of one space find the same neighbours, whoever made them; vectors of another one do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from bitwright.errors import DataError
from bitwright.registry import spaces
from bitwright.registry.spaces import SearchTexts, Sides, compare, search_texts

D, Q, H = 400, 60, 24


def texts(kinds: int = 0, gains: bool = False) -> SearchTexts:
    names = tuple(f"kind {i % kinds}" for i in range(Q)) if kinds else ()
    gains_QD = np.eye(Q, D) if gains else None
    return SearchTexts("random", ("",) * D, ("",) * Q, names, gains_QD)


@pytest.fixture
def sides() -> Sides:
    """Documents, and queries near the first of them."""
    rng = np.random.default_rng(0)
    documents_DH = rng.standard_normal((D, H))
    queries_QH = documents_DH[:Q] + 0.4 * rng.standard_normal((Q, H))
    return queries_QH.astype(np.float32), documents_DH.astype(np.float32)


def unit(sides: Sides) -> Sides:
    queries, documents = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in sides)
    return queries, documents


def noisy(sides: Sides, size: float) -> Sides:
    rng = np.random.default_rng(1)
    queries, documents = (rows + size * rng.standard_normal(rows.shape) for rows in sides)
    return queries, documents


@pytest.mark.parametrize("kinds", [0, 10])
def test_the_same_vectors_agree_entirely(sides: Sides, kinds: int) -> None:
    found = compare(texts(kinds, gains=True), sides, sides)
    assert (found.queries, found.mixed, found.lower) == (1, 1, 1)
    assert found.ndcg is not None
    assert len(set(found.ndcg)) == 1


@pytest.mark.parametrize("kinds", [0, 10])
def test_the_bound_lies_below_and_falls_with_noise(sides: Sides, kinds: int) -> None:
    found = [compare(texts(kinds), noisy(unit(sides), size), unit(sides)) for size in (0.001, 0.01, 0.06)]
    assert [one.lower for one in found] == sorted((one.lower for one in found), reverse=True)
    assert all(one.lower < min(one.queries, one.mixed) for one in found)
    assert found[0].lower > 0.9
    assert found[2].lower < 0.8


def test_a_rotated_space_is_another_one(sides: Sides) -> None:
    """As good as the first by itself, and useless for its index."""
    turn_HH = np.linalg.qr(np.random.default_rng(2).standard_normal((H, H)))[0]
    found = compare(texts(gains=True), (sides[0] @ turn_HH, sides[1] @ turn_HH), sides)
    assert found.queries < 0.2
    assert found.ndcg is not None
    own = compare(texts(gains=True), (sides[0] @ turn_HH, sides[1] @ turn_HH), (sides[0] @ turn_HH, sides[1] @ turn_HH))
    assert own.ndcg is not None
    assert own.ndcg[0] == pytest.approx(found.ndcg[0])
    assert found.ndcg[1] < 0.3 * found.ndcg[0]


def test_longer_vectors_disturb_an_index_by_products(sides: Sides) -> None:
    """By cosine nothing changes; by products the candidate's documents come first."""
    found = compare(texts(), (3 * sides[0], 3 * sides[1]), sides)
    assert found.queries == 1
    assert found.mixed < 0.9
    assert compare(texts(), unit((3 * sides[0], 3 * sides[1])), unit(sides)).mixed == 1


def test_documents_count_not_only_queries(sides: Sides) -> None:
    """A model whose queries stay and whose documents move: what is added to the index later is not found."""
    found = compare(texts(), (sides[0], noisy(sides, 3)[1]), sides)
    assert found.queries == 1
    assert found.lower < found.mixed < 0.8


def test_vectors_that_are_not_numbers_find_nothing(sides: Sides) -> None:
    queries = sides[0].copy()
    queries[:] = np.nan
    assert compare(texts(), (queries, sides[1]), sides).queries < 0.3


def test_vectors_of_another_length_are_refused(sides: Sides) -> None:
    with pytest.raises(DataError, match="have 12 values, and the index's 24"):
        compare(texts(), (sides[0][:, :12], sides[1][:, :12]), sides)


def test_a_collection_is_cut_but_keeps_what_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_MOST_DOCUMENTS", 60)
    for name, n in (("corpus", 200), ("queries", 30)):
        rows = [json.dumps({"_id": f"{name[0]}{i}", "text": f"{name} {i}"}) for i in range(n)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    rows = [f"q{i}\tc{199 - i}\t{i + 1}" for i in range(30)]
    (tmp_path / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    found = search_texts(str(tmp_path))
    assert (len(found.documents), len(found.queries)) == (60, 30)
    assert found.gains_QD is not None
    for i, query in enumerate(found.queries):
        assert query == f"queries {i}"
        assert found.gains_QD[i, found.documents.index(f"corpus {199 - i}")] == i + 1
    assert np.count_nonzero(found.gains_QD) == 30


def test_texts_of_the_user(tmp_path: Path, texts: list[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(texts))
    found = search_texts(str(file))
    assert len(found.queries) == -(-len(texts) // 10)
    assert not set(found.queries) & set(found.documents)
    assert len(found.queries) + len(found.documents) == len(texts)
    file.write_text("\n".join(texts[:40]))
    with pytest.raises(DataError, match="36 documents and 4 queries are too few"):
        search_texts(str(file))
