"""Evaluation without labels: how far a quantized model's outputs agree with the float model's.

The float model agrees with itself, so its score is 1 and the loss is the share that agreement lost. Units: texts, or
pairs of them. Of answers, which change rarely, that share is estimated from their margins (`flips`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bitwright.errors import DataError
from bitwright.evaluate.flips import Margins, class_margins, doubt, kept_answers, label_margins
from bitwright.evaluate.kinds import (
    Items,
    Kind,
    Outputs,
    OutputSort,
    chosen,
    matrix,
    pair_cosines,
    same_items,
    scores,
    spread_pairs,
)
from bitwright.evaluate.statistic import Estimated, IntArray, Mean, Spearman, Statistic


@dataclass(frozen=True, slots=True)
class Agreement:
    """Texts or pairs without labels: compares the quantized model's outputs with the float model's.

    metric: what is compared, for people. outputs: of which sort. compare: the agreement as a statistic of the outputs.
    unit: "texts" or "pairs"; two that differ in it alone compare equal. margins: of answers, the margins from which
    the agreement is estimated; None where it is computed.
    """

    metric: str
    outputs: OutputSort
    compare: Callable[[Outputs, Outputs], Statistic]
    unit: str = field(default="texts", compare=False)
    margins: Callable[[Outputs, Outputs], Margins] | None = None
    name: ClassVar[str] = "label-free"
    label_free: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        return Mean(np.ones(len(float_outputs))), self.compare(float_outputs, quant_outputs)

    def groups(self, texts: Items) -> IntArray:
        return same_items(texts)

    def select(self, units: IntArray, texts: Items) -> "tuple[Agreement, Items]":
        return self, chosen(texts, units)


def _similarities(float_outputs: Outputs, quant_outputs: Outputs) -> Statistic:
    """Spearman's correlation of the two models' pairwise cosines: up to MAX_PAIRS pairs, all of them up to 316 texts,
    and an even spread of them beyond.
    """
    pairs_P2 = spread_pairs(len(float_outputs))
    return Spearman(pair_cosines(float_outputs, pairs_P2), pair_cosines(quant_outputs, pairs_P2), pairs_P2)


def _class_margins(float_outputs: Outputs, quant_outputs: Outputs) -> Margins:
    """The margins of the top-1 classes.

    A text's output is logits (classes,), or (rows, classes) for a token classifier (rows are tokens) and for question
    answering (rows are start and end, classes are positions); then its agreement is the mean over its rows.
    """
    if all(np.atleast_1d(row).shape[-1] == 1 for row in float_outputs):
        raise DataError("the model gives one value per text, so there are no classes to compare; give n_labels=1")
    return class_margins(list(float_outputs), list(quant_outputs))


def _label_margins(float_outputs: Outputs, quant_outputs: Outputs) -> Margins:
    """The margins of a multi-label classifier's labels; it assigns a label if its logit is above 0."""
    return label_margins(matrix(float_outputs), matrix(quant_outputs))


def _score_ranks(float_outputs: Outputs, quant_outputs: Outputs) -> Statistic:
    """Spearman's correlation of the scores of a model with one score per item (a reranker, a regression)."""
    return Spearman(scores(float_outputs), scores(quant_outputs))


def _classes(float_outputs: Outputs, quant_outputs: Outputs) -> Statistic:
    """The share of texts whose top-1 class is the same as in the float model."""
    return kept_answers(_class_margins(float_outputs, quant_outputs))


def _labels(float_outputs: Outputs, quant_outputs: Outputs) -> Statistic:
    """The share of labels that are decided as in the float model."""
    return kept_answers(_label_margins(float_outputs, quant_outputs))


_ESTIMATED = ", estimated from margins"

EMBEDDINGS = Agreement("Spearman of pairwise similarities with float", "embeddings", _similarities)
CLASSES = Agreement("top-1 agreement with float" + _ESTIMATED, "logits", _classes, margins=_class_margins)
SCORES = Agreement("Spearman of scores with float", "logits", _score_ranks)
LABELS = Agreement("agreement of labels with float" + _ESTIMATED, "logits", _labels, margins=_label_margins)


def metric_found(kind: Kind, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[str, str | None]:
    """The name of the metric for these outputs, and the reason if answers were counted instead of estimated."""
    if not isinstance(kind, Agreement) or kind.margins is None:
        return kind.metric, None
    margins = kind.margins(float_outputs, quant_outputs)
    estimated = isinstance(kept_answers(margins), Estimated)
    return (kind.metric if estimated else kind.metric.removesuffix(_ESTIMATED)), doubt(margins)
