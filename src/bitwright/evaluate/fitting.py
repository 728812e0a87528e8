"""Chooses the evaluation that fits a model, by its task and by the labels in its config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitwright.calibration.columns import Text
from bitwright.errors import DataError
from bitwright.evaluate.kinds import OUTPUTS
from bitwright.evaluate.loaders import load_task
from bitwright.evaluate.pair_tables import load_pair_task
from bitwright.evaluate.tasks import Task, label_free_task
from bitwright.evaluate.usable import refuse_copies

_SCORED_BY_LABELS = ("embedding", "sequence-classification")


def agreement_task(task: str, config: Any, texts: Sequence[Text], *, name: str = "label-free") -> Task:
    """Agreement with the float model on texts or pairs, in the way that fits the outputs of this task.

    config: of the model, as transformers reads it.
    """
    return label_free_task(
        texts,
        logits=OUTPUTS[task] != "embeddings",
        multi_label=getattr(config, "problem_type", None) == "multi_label_classification",
        n_labels=config.num_labels,
        name=name,
    )


def labelled_task(
    task: str, config: Any, spec: str | Path, kind: str | None = None, pair_evidence: str | None = None
) -> Task:
    """The task of a labelled file or directory for a model of this task. A classifier is scored on pairs if the file
    has them.

    Args:
        kind: as `load_task` takes it.
        pair_evidence: what shows that the model reads pairs (`files.task`); then nothing else will do.

    Raises:
        DataError: it cannot be read, scores something else than the model puts out, or than it reads, or holds mostly
            copies.
    """
    found = _labelled_task(task, config, spec, kind, pair_evidence)
    refuse_copies(found, str(spec))
    return found


def _labelled_task(task: str, config: Any, spec: str | Path, kind: str | None, pair_evidence: str | None) -> Task:
    labels = getattr(config, "id2label", None) or {}
    names = [labels[i] for i in sorted(labels)]
    if task not in _SCORED_BY_LABELS:
        raise DataError(
            f"{spec}: Bitwright scores labels only for {' and '.join(_SCORED_BY_LABELS)}, and this model's task is "
            f"{task}. Leave --eval out: then agreement with the float model on --data decides"
            + (", on pairs of question and context" if task == "question-answering" else "")
        )
    if task == "sequence-classification":
        one_score = config.num_labels == 1
        on_pairs = load_pair_task(spec, kind, label_names=None if one_score else names, evidence=pair_evidence)
        if on_pairs is not None:
            return on_pairs
    found = load_task(spec, kind, label_names=names)
    if found.kind.outputs != OUTPUTS[task]:
        raise DataError(
            f"{spec}: {found.kind.name} scores {found.kind.outputs}, but this model's task is {task}; give data for "
            "that task"
        )
    return found
