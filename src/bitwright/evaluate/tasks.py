"""A task: texts to encode, and a way to score the outputs.

    task = load_task("stsb-test.tsv")
    tuning, held_out = split(task, seed=0)
    float_outputs, quant_outputs = (held_out.run(encode) for encode in (float_encode, quant_encode))
    held_out.loss(float_outputs, quant_outputs)

Each model variant encodes the texts once; scores and thousands of bootstrap resamples then come from the outputs.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from bitwright.calibration.columns import Text
from bitwright.errors import BitwrightError, DataError
from bitwright.evaluate.agreement import CLASSES, EMBEDDINGS, LABELS, SCORES
from bitwright.evaluate.companions import companions
from bitwright.evaluate.kinds import Custom, Encode, Items, Kind, Outputs, pairs_in
from bitwright.evaluate.statistic import FloatArray, IntArray, Statistic


@dataclass(frozen=True, slots=True)
class Task:
    """Texts, pairs or windows of token ids, and the data against which their outputs are scored.

    A custom metric brings its own texts: none here.

    text_kinds: the kind of each text (news, mail …), where they are of several; the loss is then that of an ordinary
    kind (`by_kind`).
    """

    name: str
    texts: Items
    kind: Kind
    text_kinds: tuple[str, ...] = ()

    @property
    def n_units(self) -> int | None:
        """The number of units of the score; None for a custom metric, which is known only after it has run."""
        return None if isinstance(self.kind, Custom) else len(self.kind.groups(self.texts))

    def run(self, encode: Encode) -> Outputs:
        """The outputs of one model: what `encode` makes of the texts, or what a custom metric makes of `encode`.

        Raises:
            DataError: not one output per text; a custom metric that raises, or returns what is not finite numbers.
        """
        if isinstance(self.kind, Custom):
            return _custom_values(self.kind, encode)
        outputs = encode(self.texts)
        if len(outputs) != len(self.texts):
            raise DataError(f"{self.name}: there are {len(outputs)} outputs for {len(self.texts)} texts")
        return outputs

    def statistics(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[Statistic, Statistic]:
        """The scores of both models as functions of unit weights, for the bootstrap."""
        return self.kind.statistics(float_outputs, quant_outputs)

    def scores(self, float_outputs: Outputs, quant_outputs: Outputs) -> tuple[float, float]:
        """Score of the float and of the quantized model (without labels: agreement with float, so the first is 1)."""
        float_score, quant_score = (
            float(statistic(np.ones((1, statistic.n_units)))[0])
            for statistic in self.statistics(float_outputs, quant_outputs)
        )
        return float_score, quant_score

    def score(self, outputs: Outputs) -> float:
        """Score of one model against the labels (without labels: its agreement with itself, 1)."""
        return self.scores(outputs, outputs)[1]

    def loss(self, float_outputs: Outputs, quant_outputs: Outputs) -> float:
        """The quantized model's loss relative to float, as a fraction; negative if it is better.

        Raises:
            DataError: the float model scores 0, so that no loss is relative to it.
        """
        float_score, quant_score = self.scores(float_outputs, quant_outputs)
        if float_score == 0:
            raise DataError(
                f"{self.name}: the float model's {self.kind.metric} is 0, so no relative loss can be computed; "
                "check that labels and model belong together"
            )
        return float(relative_loss(np.array(float_score), np.array(quant_score), self.kind.higher_is_better))

    def companions(self, float_outputs: Outputs, quant_outputs: Outputs) -> dict[str, float]:
        """Other distances between the two models' outputs, shown beside the loss. Empty for a custom metric."""
        return companions(self.kind, float_outputs, quant_outputs)


def label_free_task(
    texts: Sequence[Text],
    *,
    logits: bool = False,
    multi_label: bool = False,
    n_labels: int | None = None,
    name: str = "label-free",
) -> Task:
    """A task without labels: agreement with float of pairwise similarities, or of decisions if `logits`.

    Args:
        logits: the model is a classifier. multi_label: it assigns each label by the sign of its logit, else the class
            of the largest. n_labels: logits per text, where known; the ranks of the texts are compared if it is 1.

    Raises:
        DataError: fewer than three different texts.
    """
    unique = cast(Items, tuple(dict.fromkeys(texts)))
    noun = "pairs" if pairs_in(unique) else "texts"
    if len(unique) < 3:
        raise DataError(
            f"{name}: there are {len(unique)} different {noun}, but an evaluation needs at least three; give more"
        )
    kind = EMBEDDINGS
    if logits:
        kind = LABELS if multi_label else SCORES if n_labels == 1 else CLASSES
    return Task(name, unique, replace(kind, unit=noun))


def relative_loss(float_score: FloatArray, quant_score: FloatArray, higher_is_better: bool = True) -> FloatArray:
    """(float − quant) / |float| if a higher score is better, else its negative; ±∞ if float is 0."""
    lost = float_score - quant_score if higher_is_better else quant_score - float_score
    scale = np.abs(float_score)
    return np.divide(lost, scale, out=np.where(lost == 0, 0.0, np.copysign(np.inf, lost)), where=scale > 0)


def split(task: Task, *, seed: int, tuning_fraction: float = 0.5) -> tuple[Task, Task]:
    """Split a task into two with disjoint units: one for choices, one for the verdict.

    Units that share a text stay together, so that no text is on both sides (but a retrieval corpus is, whole). Where a
    chain of shared texts ties most units together, that is impossible and units are drawn singly; `shared_texts` tells.
    A custom metric's examples are drawn singly too, and one that returns a single number is the same on both sides.

    Raises:
        DataError: fewer than two units for a side.
    """
    if not 0 < tuning_fraction < 1:
        raise DataError(f"tuning_fraction = {tuning_fraction}: give a fraction between 0 and 1")
    if isinstance(task.kind, Custom):
        tuning, held_out = (replace(task.kind, side=(seed, tuning_fraction, side)) for side in (True, False))
        return Task(task.name, task.texts, tuning), Task(task.name, task.texts, held_out)
    group_U = task.kind.groups(task.texts)
    target = round(len(group_U) * tuning_fraction)
    if min(target, len(group_U) - target) < 2:
        raise DataError(f"{task.name}: {len(group_U)} {task.kind.unit} cannot be split into two samples; give more")
    rng = np.random.default_rng(seed)
    _, index_U, size_G = np.unique(group_U, return_inverse=True, return_counts=True)
    chosen_G, total = np.zeros(len(size_G), dtype=bool), 0
    for group in rng.permutation(len(size_G)):
        if total + size_G[group] <= target:
            chosen_G[group] = True
            total += size_G[group]
    chosen_U = chosen_G[index_U] if 2 * total >= target else rng.permutation(len(group_U)) < target
    return _part(task, chosen_U), _part(task, ~chosen_U)


def of_text_kinds(task: Task, kinds: Collection[str]) -> Task:
    """The task on texts of these kinds only. Its units are its texts."""
    return select_texts(task, np.flatnonzero([kind in kinds for kind in task.text_kinds]))


def select_texts(task: Task, units: IntArray) -> Task:
    """The task on some of its texts, which are its units, in the given order."""
    kind, texts = task.kind.select(units, task.texts)
    return Task(task.name, texts, kind, tuple(task.text_kinds[unit] for unit in units))


def joined(left: Task, right: Task) -> Task:
    """Join two tasks that score alike and whose units are their texts."""
    return replace(left, texts=cast(Items, (*left.texts, *right.texts)), text_kinds=left.text_kinds + right.text_kinds)


def shared_texts(left: Task, right: Task) -> set[object]:
    """Texts (of pairs, too) or windows that both tasks encode, retrieval corpora aside: empty after a clean split."""
    return _own_texts(left) & _own_texts(right)


def _own_texts(task: Task) -> set[object]:
    items = task.texts[getattr(task.kind, "n_documents", 0) :]
    return {text for pair in pairs_in(items) for text in pair} or set(items)


def _part(task: Task, chosen_U: np.ndarray) -> Task:
    kind, texts = task.kind.select(np.flatnonzero(chosen_U), task.texts)
    return Task(task.name, texts, kind)


def _custom_values(kind: Custom, encode: Encode) -> FloatArray:
    try:
        values = np.atleast_1d(np.asarray(kind.function(encode), dtype=np.float64))
    except BitwrightError:  # of `encode`, which says itself what is wrong
        raise
    except Exception as error:  # the user's own code may raise anything
        raise DataError(f"{kind.metric}: the function raised {type(error).__name__}: {error}") from error
    if values.ndim != 1 or values.size == 0:
        raise DataError(
            f"{kind.metric}: the function returned an array of shape {values.shape}; return one number, or one per "
            "example"
        )
    if not np.isfinite(values).all():
        broken = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"{kind.metric}: value {broken} of {len(values)} is {values[broken]}; return finite numbers")
    return values
