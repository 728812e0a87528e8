"""The kinds of evaluation: how outputs are scored, and of which units the sample consists.

Each kind is a frozen dataclass with the same few members (`Kind`). Outputs are embeddings (texts, dim), logits
(texts, classes), or what a language model makes of each token (`language`). A score is a `Statistic` over units, so
that the bootstrap can weigh them. Here are the kinds with labels; those without are in `agreement`, perplexity is in
`language`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bitwright.calibration.columns import TextPair
from bitwright.errors import DataError
from bitwright.evaluate import metrics
from bitwright.evaluate.statistic import FloatArray, IntArray, MacroF1, Mean, Spearman, Statistic

Outputs = NDArray[np.floating] | Sequence[NDArray[np.floating]]
Window = tuple[int, ...]
# What a model reads: texts, or pairs of texts, or of a language model the ids of tokens.
Items = tuple[str, ...] | tuple[TextPair, ...] | tuple[Window, ...]
Encode = Callable[[Sequence[str] | Sequence[TextPair] | Sequence[Window]], Outputs]
OutputSort = Literal["embeddings", "logits", "tokens", "scores"]

# What models of each task put out.
OUTPUTS: dict[str, OutputSort] = {
    "embedding": "embeddings",
    "sequence-classification": "logits",
    "token-classification": "logits",
    "question-answering": "logits",
    "text-generation": "tokens",
}

MAX_PAIRS = 50_000  # pairs of texts compared; more would cost time and hardly narrow the interval
_QUERIES_AT_ONCE = 64
_MAX_MATRIX = 4096  # texts: beyond, the similarities of all to all cost more than they save
_BLOCK = 128  # texts whose similarities to all are in memory at a time


class Kind(Protocol):
    """What every kind of evaluation has."""

    name: ClassVar[str]
    label_free: ClassVar[bool]

    @property
    def unit(self) -> str:
        """The name of the units in the plural, for messages."""

    @property
    def outputs(self) -> OutputSort:
        """The kind of outputs that it scores."""

    @property
    def metric(self) -> str:
        """Name of the score."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is a better one."""

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        """The scores of the float and of the quantized model (label-free: agreement with float, so the first is 1)."""

    def groups(self, texts: Items) -> IntArray:
        """A number per unit; units of the same number share a text and stay on one side of a split."""

    def select(self, units: IntArray, texts: Items) -> "tuple[Kind, Items]":
        """The same evaluation of some units only, with the texts that it needs."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of texts with a human score each: Spearman's correlation of cosine and score. Units: pairs.

    The score may be a label 0 or 1 (same meaning or not: LCQMC, AFQMC, BQ). Spearman's correlation is what C-MTEB
    reports for those, too: without ties among the cosines it is √(3pq) · (2·AUC − 1) · n/√(n² − 1), p and q being the
    shares of the labels, so it ranks models as the area under the ROC curve does, and needs no threshold.
    """

    first_P: IntArray  # index of a text
    second_P: IntArray
    gold_P: FloatArray
    name: ClassVar[str] = "similarity"
    unit: ClassVar[str] = "pairs"
    outputs: ClassVar[OutputSort] = "embeddings"
    label_free: ClassVar[bool] = False
    metric: ClassVar[str] = "Spearman of cosine"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        return self._statistic(float_outputs), self._statistic(quant_outputs)

    def _statistic(self, outputs: Outputs) -> Spearman:
        return Spearman(self.cosines(outputs), self.gold_P)

    def cosines(self, outputs: Outputs) -> FloatArray:
        """The cosine of each pair, (pairs,); NaN where an embedding is zero or not finite."""
        rows = metrics.unit_rows(matrix(outputs))
        result: FloatArray = (rows[self.first_P] * rows[self.second_P]).sum(axis=1)
        return result

    def groups(self, texts: Items) -> IntArray:
        return _connected(self.first_P, self.second_P, len(texts))[self.first_P]

    def select(self, units: IntArray, texts: Items) -> "tuple[Pairs, Items]":
        kept, index = np.unique(np.concatenate([self.first_P[units], self.second_P[units]]), return_inverse=True)
        first_P, second_P = np.split(index, 2)
        return Pairs(first_P, second_P, self.gold_P[units]), chosen(texts, kept)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Pairs of texts with a score each, for a model that scores pairs itself (a reranker). Units: pairs.

    Spearman's correlation of the model's score and the given one, which may be a label 0 or 1, as in `Pairs`.
    query_U: a number for each query, the first text of its pairs.
    """

    gold_U: FloatArray
    query_U: IntArray
    name: ClassVar[str] = "ranking of pairs"
    unit: ClassVar[str] = "pairs"
    outputs: ClassVar[OutputSort] = "logits"
    label_free: ClassVar[bool] = False
    metric: ClassVar[str] = "Spearman of score"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        return Spearman(scores(float_outputs), self.gold_U), Spearman(scores(quant_outputs), self.gold_U)

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[Ranking, Items]":
        return Ranking(self.gold_U[units], self.query_U[units]), chosen(texts, units)


@dataclass(frozen=True, slots=True)
class SimilarityMatrix:
    """Documents with a human score for every pair: Spearman's correlation over pairs. Units: documents.

    As in `agreement.EMBEDDINGS`, an even spread of MAX_PAIRS pairs counts where there are more.
    """

    gold_UU: FloatArray  # symmetric
    name: ClassVar[str] = "similarity matrix"
    unit: ClassVar[str] = "documents"
    outputs: ClassVar[OutputSort] = "embeddings"
    label_free: ClassVar[bool] = False
    metric: ClassVar[str] = "Spearman of cosine"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        pairs_P2 = spread_pairs(len(self.gold_UU))
        gold_P = self.gold_UU[pairs_P2[:, 0], pairs_P2[:, 1]]
        return (
            Spearman(pair_cosines(float_outputs, pairs_P2), gold_P, pairs_P2),
            Spearman(pair_cosines(quant_outputs, pairs_P2), gold_P, pairs_P2),
        )

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[SimilarityMatrix, Items]":
        return SimilarityMatrix(self.gold_UU[np.ix_(units, units)]), chosen(texts, units)


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, documents and judgements: nDCG@10 of the cosine ranking, mean over queries. Units: queries.

    The texts are the documents, then the queries. relevant: per query, documents' indices and their gains (> 0).
    """

    n_documents: int
    relevant: tuple[tuple[IntArray, FloatArray], ...]
    name: ClassVar[str] = "retrieval"
    unit: ClassVar[str] = "queries"
    outputs: ClassVar[OutputSort] = "embeddings"
    label_free: ClassVar[bool] = False
    metric: ClassVar[str] = "nDCG@10"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        return self._statistic(float_outputs), self._statistic(quant_outputs)

    def _statistic(self, outputs: Outputs) -> Mean:
        rows = metrics.unit_rows(matrix(outputs))
        documents, queries = rows[: self.n_documents], rows[self.n_documents :]
        values = []
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            some = queries[start : start + _QUERIES_AT_ONCE]
            gains_QD = np.zeros((len(some), self.n_documents))
            for gains_D, (found, gain) in zip(gains_QD, self.relevant[start:], strict=False):
                gains_D[found] = gain
            ndcg = metrics.ndcg_at_k(some @ documents.T, gains_QD, k=10)
            values.append(np.where(np.isfinite(some).all(axis=1), ndcg, 0.0))  # a query without a vector finds nothing
        return Mean(np.concatenate(values))

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts[self.n_documents :])

    def select(self, units: IntArray, texts: Items) -> "tuple[Retrieval, Items]":
        kept = [*range(self.n_documents), *(self.n_documents + units)]
        return replace(self, relevant=tuple(self.relevant[i] for i in units)), chosen(texts, kept)


@dataclass(frozen=True, slots=True)
class Classification:
    """Texts or pairs with a class each, for a model that gives logits: accuracy or macro F1. Units: examples."""

    gold_U: IntArray  # class index, as in the logits
    n_classes: int | None = None  # logits per text that the model must put out, where known
    macro_f1: bool = False
    name: ClassVar[str] = "classification"
    unit: ClassVar[str] = "examples"
    outputs: ClassVar[OutputSort] = "logits"
    label_free: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    @property
    def metric(self) -> str:
        return "macro F1" if self.macro_f1 else "accuracy"

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        return self._statistic(float_outputs), self._statistic(quant_outputs)

    def _statistic(self, outputs: Outputs) -> Statistic:
        logits = matrix(outputs)
        classes, largest = logits.shape[1], int(self.gold_U.max())
        if largest >= classes or classes != (self.n_classes or classes):
            raise DataError(
                f"the labels are classes 0…{largest}"
                + (f" of {self.n_classes}" if self.n_classes else "")
                + f", but the model gives {classes} values per text; give labels for this classifier"
            )
        predicted_U = _classes(logits)
        return MacroF1(self.gold_U, predicted_U) if self.macro_f1 else Mean((self.gold_U == predicted_U).astype(float))

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[Classification, Items]":
        return replace(self, gold_U=self.gold_U[units]), chosen(texts, units)


@dataclass(frozen=True, slots=True)
class Custom:
    """The user's own metric: a function of `encode` that returns one number, or one per example. Units: examples.

    side: which share of the examples counts, as (seed, tuning fraction, whether it is the tuning side); None for all.
    """

    function: Callable[[Encode], ArrayLike]
    metric: str
    higher_is_better: bool = True
    side: tuple[int, float, bool] | None = None
    name: ClassVar[str] = "custom"
    unit: ClassVar[str] = "examples"
    outputs: ClassVar[OutputSort] = "scores"
    label_free: ClassVar[bool] = False

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        if len(float_outputs) != len(quant_outputs):
            raise DataError(
                f"{self.metric}: there are {len(float_outputs)} values for the float model, but "
                f"{len(quant_outputs)} for the quantized one; return values of the same examples in the same order "
                "for both"
            )
        units = self._units(len(float_outputs))
        return Mean(_values(float_outputs)[units]), Mean(_values(quant_outputs)[units])

    def _units(self, n: int) -> IntArray:
        if self.side is None or n == 1:
            return np.arange(n)
        seed, fraction, tuning = self.side
        order = np.random.default_rng(seed).permutation(n)
        n_tuning = min(max(round(n * fraction), 1), n - 1)
        return order[:n_tuning] if tuning else order[n_tuning:]

    def groups(self, texts: Items) -> IntArray:
        return np.arange(0)

    def select(self, units: IntArray, texts: Items) -> "tuple[Custom, Items]":
        return self, texts


def spread_pairs(n: int) -> IntArray:
    """Pairs (i, j) of n texts, i ≠ j, none twice, shape (pairs, 2): all, or about MAX_PAIRS with each text as often.

    Beyond that, text i is paired with its successors at evenly spread distances, cyclically.
    """
    if n * (n - 1) // 2 <= MAX_PAIRS:
        return np.stack(np.triu_indices(n, 1), axis=1)
    distances = np.unique(np.linspace(1, (n - 1) // 2, max(1, MAX_PAIRS // n)).astype(int))
    first = np.tile(np.arange(n), len(distances))
    return np.stack([first, (first + np.repeat(distances, n)) % n], axis=1)


def pair_cosines(outputs: Outputs, pairs_P2: IntArray) -> FloatArray:
    """Cosine of each pair of embeddings; NaN where one is zero or not finite."""
    rows = metrics.unit_rows(matrix(outputs))
    n, dim = rows.shape
    if n <= _MAX_MATRIX:  # products of whole blocks are faster than gathering the rows of every pair
        result: FloatArray = np.empty(len(pairs_P2))
        for start in range(0, n, _BLOCK):
            here = np.flatnonzero((pairs_P2[:, 0] >= start) & (pairs_P2[:, 0] < start + _BLOCK))
            block = rows[start : start + _BLOCK] @ rows.T
            result[here] = block[pairs_P2[here, 0] - start, pairs_P2[here, 1]]
        return result
    step = max(1, (1 << 22) // dim)
    pieces = [pairs_P2[start : start + step] for start in range(0, len(pairs_P2), step)]
    return np.concatenate([np.einsum("pk,pk->p", rows[piece[:, 0]], rows[piece[:, 1]]) for piece in pieces])


def matrix(outputs: Outputs) -> NDArray[np.floating]:
    """Outputs (texts, values) as one array.

    Raises:
        DataError: an array of another shape, or an empty one.
    """
    array = np.asarray(outputs)
    if array.ndim != 2 or array.size == 0:
        raise DataError(
            f"the outputs have the shape {array.shape}, but one vector per text, (texts, values), is needed"
        )
    return array


def scores(outputs: Outputs) -> FloatArray:
    """The one value of each item, of outputs (items, 1).

    Raises:
        DataError: another number of values.
    """
    sizes = {np.size(row) for row in outputs}
    if sizes != {1}:
        raise DataError(
            f"the outputs have {min(sizes)} to {max(sizes)} values per text, but one score per text is needed"
        )
    return np.asarray(outputs, dtype=np.float64).ravel()


def chosen(texts: Items, indices: IntArray | Sequence[int]) -> Items:
    """The chosen texts or windows."""
    return cast(Items, tuple(texts[i] for i in indices))


def same_items(texts: Items) -> IntArray:
    """The group of each item. Equal texts share a group, and so do pairs that a chain of common texts connects."""
    first: dict[object, int] = {}
    if pairs := pairs_in(texts):
        sides = ([pair[side] for pair in pairs] for side in (0, 1))
        left, right = (np.array([first.setdefault(text, len(first)) for text in side]) for side in sides)
        group_U: IntArray = _connected(left, right, len(first))[left]
        return group_U
    return np.array([first.setdefault(text, i) for i, text in enumerate(texts)], dtype=np.intp)


def pairs_in(items: Sequence[object]) -> list[TextPair]:
    """The pairs of texts among a model's items: all of them, or none."""
    return [cast(TextPair, item) for item in items if isinstance(item, tuple) and isinstance(item[0], str)]


def windows_in(items: Sequence[object]) -> list[Window]:
    """The windows of token ids among a model's items: all of them, or none."""
    return [cast(Window, item) for item in items if isinstance(item, tuple) and not isinstance(item[0], str)]


def _values(outputs: Outputs) -> FloatArray:
    return np.asarray(outputs, dtype=np.float64)


def _classes(logits: NDArray[np.floating]) -> IntArray:
    """The class of each row; −1, which is no label, if a logit is not finite."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)


def _connected(first: IntArray, second: IntArray, n: int) -> IntArray:
    """The connected component of each of n nodes (the number of its smallest node), given edges."""
    component = np.arange(n)
    while True:
        before = component.copy()
        smaller = np.minimum(component[first], component[second])
        np.minimum.at(component, first, smaller)
        np.minimum.at(component, second, smaller)
        component = component[component]
        if np.array_equal(component, before):
            return component
