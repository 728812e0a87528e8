"""The kinds without labels: how far a quantized model's outputs agree with those of the float model.

The float model agrees with itself, so its score is 1 and the loss is the share that agreement lost.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bitwright.errors import DataError
from bitwright.evaluate import metrics
from bitwright.evaluate.kinds import Items, Outputs, OutputSort, chosen, matrix, pair_cosines, same_items, spread_pairs
from bitwright.evaluate.statistic import FloatArray, IntArray, Mean, Spearman, Statistic


@dataclass(frozen=True, slots=True)
class EmbeddingAgreement:
    """Texts without labels: Spearman's correlation of the two models' pairwise cosines. Units: texts.

    Up to MAX_PAIRS pairs are compared: all of them up to 316 texts, and an even spread of them beyond.
    """

    name: ClassVar[str] = "label-free"
    unit: ClassVar[str] = "texts"
    outputs: ClassVar[OutputSort] = "embeddings"
    label_free: ClassVar[bool] = True
    metric: ClassVar[str] = "Spearman of pairwise similarities with float"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        pairs_P2 = spread_pairs(len(float_outputs))
        x_P, y_P = pair_cosines(float_outputs, pairs_P2), pair_cosines(quant_outputs, pairs_P2)
        return Mean(np.ones(len(float_outputs))), Spearman(x_P, y_P, pairs_P2)

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[EmbeddingAgreement, Items]":
        return self, chosen(texts, units)


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """Texts without labels for a classifier: share of top-1 classes that are as in the float model. Units: texts.

    A text's output is logits (classes,), or (rows, classes) for a token classifier (rows are tokens) and for question
    answering (rows are start and end, classes are positions); then its agreement is the mean over its rows.
    """

    name: ClassVar[str] = "label-free"
    unit: ClassVar[str] = "texts"
    outputs: ClassVar[OutputSort] = "logits"
    label_free: ClassVar[bool] = True
    metric: ClassVar[str] = "top-1 agreement with float"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        if all(np.atleast_1d(row).shape[-1] == 1 for row in float_outputs):
            raise DataError("the model puts out one value, so it has no classes that could differ; give n_labels=1")
        both = zip(float_outputs, quant_outputs, strict=True)
        agreement = [metrics.top1_agreement(np.atleast_2d(left), np.atleast_2d(right)) for left, right in both]
        return Mean(np.ones(len(agreement))), Mean(np.array(agreement))

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[ClassAgreement, Items]":
        return self, chosen(texts, units)


@dataclass(frozen=True, slots=True)
class ScoreAgreement:
    """Texts without labels for a model of one score each (a reranker, a regression): Spearman's correlation of the two
    models' scores. Units: texts.
    """

    name: ClassVar[str] = "label-free"
    unit: ClassVar[str] = "texts"
    outputs: ClassVar[OutputSort] = "logits"
    label_free: ClassVar[bool] = True
    metric: ClassVar[str] = "Spearman of scores with float"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        return Mean(np.ones(len(float_outputs))), Spearman(_scores(float_outputs), _scores(quant_outputs))

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[ScoreAgreement, Items]":
        return self, chosen(texts, units)


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """Texts without labels for a multi-label classifier, which assigns every label whose logit is above 0: share of the
    labels that are assigned, or not, as in the float model. Units: texts.
    """

    name: ClassVar[str] = "label-free"
    unit: ClassVar[str] = "texts"
    outputs: ClassVar[OutputSort] = "logits"
    label_free: ClassVar[bool] = True
    metric: ClassVar[str] = "agreement of labels with float"
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        agreement = metrics.label_agreement(matrix(float_outputs), matrix(quant_outputs))
        return Mean(np.ones(len(agreement))), Mean(agreement)

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[LabelAgreement, Items]":
        return self, chosen(texts, units)


def _scores(outputs: Outputs) -> FloatArray:
    """One value per text, of outputs (texts, 1)."""
    sizes = {np.size(row) for row in outputs}
    if sizes != {1}:
        raise DataError(f"outputs of {min(sizes)} to {max(sizes)} values per text: one score per text is needed")
    return np.asarray(outputs, dtype=np.float64).ravel()
