"""Whether two encoders share an embedding space: whether the vectors of one can be searched with those of the other.

An index holds vectors that one model made. Another model that answers queries against it must put them among the same
neighbours. A quantized model does; one that was trained on, however good alone, may not, and nothing tells so but worse
results. So the candidate's queries are searched in an index of the reference's documents, and in one half of which the
candidate made, as it will be when documents are added later. Of each query, the share of the ten documents that the
reference finds counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from bitwright.calibration.fit import readable
from bitwright.calibration.passages import ROLES, passages
from bitwright.errors import DataError
from bitwright.evaluate.by_kind import LEAST_KINDS, bounds_of_new_kind
from bitwright.evaluate.kinds import Retrieval
from bitwright.evaluate.loaders import load_task
from bitwright.evaluate.metrics import ndcg_at_k, unit_rows
from bitwright.runtime.model import Model

TOP = 10  # neighbours
_CONFIDENCE = 0.95
_LEAST_DOCUMENTS, _LEAST_QUERIES = 50, 20
_BUILTIN_QUERIES, _BUILTIN_DOCUMENTS = 24, 80  # of each kind
_MOST_DOCUMENTS, _MOST_QUERIES = 5000, 500  # of the user's

Vectors = NDArray[np.floating]
Sides = tuple[Vectors, Vectors]  # queries, documents


@dataclass(frozen=True, slots=True)
class SearchTexts:
    """Documents and queries. kinds: of each query, where there are several. gains_QD: judgements, where there are any.
    name: for people.
    """

    name: str
    documents: tuple[str, ...]
    queries: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    gains_QD: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a candidate's queries find what the reference's find, as shares of the top ten.

    queries: in an index of the reference's documents. mixed: in one half of which the candidate made. lower: the lower
    bound of the lesser one; over kinds of text where there are enough, for a kind that was not tried. ndcg: of the
    reference alone, with the candidate's queries, and in the mixed index; None without judgements.
    """

    n_queries: int
    n_documents: int
    queries: float
    mixed: float
    lower: float
    ndcg: tuple[float, float, float] | None = None


def builtin_search(model: Model) -> SearchTexts:
    """Built-in texts that a model can read: of each kind some are queries, and the others documents.

    Raises:
        InputError: its vocabulary covers none of them. DataError: it covers too few.
    """
    from bitwright.pipeline.builtin import reader_of

    found, _ = readable(passages(), reader_of(model))
    documents, queries, kinds = list[str](), list[str](), list[str]()
    for kind in ROLES:
        texts = [str(passage.text) for passage in found if passage.kind == kind]
        asked = texts[:: max(1, len(texts) // _BUILTIN_QUERIES)][:_BUILTIN_QUERIES]
        documents += [text for text in texts if text not in asked][:_BUILTIN_DOCUMENTS]
        queries += asked
        kinds += [kind] * len(asked)
    return _enough(SearchTexts("built-in texts", tuple(documents), tuple(queries), tuple(kinds)))


def search_texts(source: str) -> SearchTexts:
    """The user's texts: a directory with corpus, queries and judgements, or a file of which a tenth are queries.

    Raises:
        DataError: it cannot be read, or has too few texts.
    """
    from pathlib import Path

    if Path(source).is_dir():
        task = load_task(source, "retrieval")
        assert isinstance(task.kind, Retrieval)
        return _enough(_judged(source, tuple(map(str, task.texts)), task.kind))
    from bitwright.calibration.data import load_texts

    found = load_texts(source)
    asked = found[::10][:_MOST_QUERIES]
    chosen = set(asked)
    documents = [text for text in found if text not in chosen][:_MOST_DOCUMENTS]
    return _enough(SearchTexts(source, tuple(documents), tuple(asked)))


def _judged(name: str, texts: tuple[str, ...], kind: Retrieval) -> SearchTexts:
    """Queries with judgements, and their documents; of very many documents the judged ones first."""
    n, relevant = kind.n_documents, kind.relevant[:_MOST_QUERIES]
    judged = dict.fromkeys(int(place) for places, _ in relevant for place in places)
    kept = sorted([*judged, *(place for place in range(n) if place not in judged)][:_MOST_DOCUMENTS])
    row_of = {place: row for row, place in enumerate(kept)}
    gains_QD = np.zeros((len(relevant), len(kept)))
    for row_D, (places, gains) in zip(gains_QD, relevant, strict=True):
        for place, gain in zip(places.tolist(), gains.tolist(), strict=True):
            if place in row_of:
                row_D[row_of[place]] = gain
    return SearchTexts(name, tuple(texts[i] for i in kept), texts[n:][: len(relevant)], (), gains_QD)


def _enough(texts: SearchTexts) -> SearchTexts:
    documents, queries = len(texts.documents), len(texts.queries)
    if documents < _LEAST_DOCUMENTS or queries < _LEAST_QUERIES:
        raise DataError(
            f"{texts.name}: {documents} documents and {queries} queries are too few to compare neighbours; give at "
            f"least {_LEAST_DOCUMENTS} and {_LEAST_QUERIES}"
        )
    return texts


def encoded(model: Model, texts: SearchTexts) -> Sides:
    """The vectors (queries, documents) that a model makes, with the prompts that it has for each.

    Raises:
        NumericsError: NaN or infinity.
    """
    queries, documents = model.encode_query(list(texts.queries)), model.encode_document(list(texts.documents))
    return np.asarray(queries, np.float32), np.asarray(documents, np.float32)


def compare(texts: SearchTexts, candidate: Sides, reference: Sides, *, seed: int = 0) -> Agreement:
    """Compare the neighbours that the candidate's queries find with those that the reference's find.

    By cosine, and where a model's vectors are not of length 1 also by the plain product, which some indexes use: the
    lesser agreement of each query counts.

    Args:
        candidate, reference: (queries, documents), float32 (n, H).

    Raises:
        DataError: vectors of different lengths.
    """
    queries_QH, documents_DH = candidate
    if queries_QH.shape[1] != reference[0].shape[1]:
        raise DataError(
            f"the candidate's vectors have {queries_QH.shape[1]} values, and the index's {reference[0].shape[1]}"
        )
    half_D = np.random.default_rng(seed).permutation(len(documents_DH)) < len(documents_DH) // 2
    mixed_DH = np.where(half_D[:, None], documents_DH, reference[1])
    unit = _is_unit(reference[1]) and _is_unit(documents_DH)
    pure_Q, mixed_Q = (
        np.min(
            [_shared((queries_QH, index_DH), reference, scale) for scale in ((_unit,) if unit else (_unit, _plain))], 0
        )
        for index_DH in (reference[1], mixed_DH)
    )
    lower = min(_lower(values_Q, texts.kinds) for values_Q in (pure_Q, mixed_Q))
    ndcg = None
    if texts.gains_QD is not None:
        sides = ((reference[0], reference[1]), (queries_QH, reference[1]), (queries_QH, mixed_DH))
        one, two, three = (
            float(ndcg_at_k(_unit(asked) @ _unit(index).T, texts.gains_QD, TOP).mean()) for asked, index in sides
        )
        ndcg = one, two, three
    return Agreement(
        len(queries_QH), len(documents_DH), float(pure_Q.mean()), float(mixed_Q.mean()), lower, ndcg
    )  # fmt: skip


def _shared(found: Sides, wanted: Sides, scale: Callable[[Vectors], Vectors]) -> NDArray[np.float64]:
    """Of each query, the share of the nearest documents of one side that are those of the other side, too."""
    sides = (_nearest(scale(queries_QH) @ scale(documents_DH).T) for queries_QH, documents_DH in (found, wanted))
    return np.array([len(np.intersect1d(*rows)) / len(rows[0]) for rows in zip(*sides, strict=True)])


def _nearest(scores_QD: NDArray[np.floating]) -> NDArray[np.intp]:
    scores_QD = np.nan_to_num(scores_QD, nan=-np.inf)
    return np.argpartition(-scores_QD, min(TOP, scores_QD.shape[1] - 1), axis=1)[:, :TOP]


def _lower(values_Q: NDArray[np.float64], kinds: Sequence[str]) -> float:
    """The lower bound of the mean: of one more kind of text where there are enough kinds, else of more such queries."""
    if len(set(kinds)) >= LEAST_KINDS:
        lost = [1 - float(values_Q[[one == kind for one in kinds]].mean()) for kind in dict.fromkeys(kinds)]
        return 1 - bounds_of_new_kind(lost, _CONFIDENCE)[2]
    n = len(values_Q)
    return float(values_Q.mean() - stdtrit(n - 1, _CONFIDENCE) * values_Q.std(ddof=1) / math.sqrt(n))


def _is_unit(rows: Vectors) -> bool:
    return bool(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3))


def _unit(rows: Vectors) -> Vectors:
    return unit_rows(rows)


def _plain(rows: Vectors) -> Vectors:
    return rows
