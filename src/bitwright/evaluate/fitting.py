"""The evaluation that fits a model: by its task, and by what its config says of its labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitwright.errors import DataError
from bitwright.evaluate.kinds import OUTPUTS
from bitwright.evaluate.loaders import load_task
from bitwright.evaluate.tasks import Task, label_free_task

_SCORED_BY_LABELS = ("embedding", "sequence-classification")


def agreement_task(task: str, config: Any, texts: Sequence[str], *, name: str = "label-free") -> Task:
    """Agreement with the float model on `texts`, in the way that fits what models of this task put out.

    config: of the model, as transformers reads it.
    """
    return label_free_task(
        texts,
        logits=OUTPUTS[task] != "embeddings",
        multi_label=getattr(config, "problem_type", None) == "multi_label_classification",
        n_labels=config.num_labels,
        name=name,
    )


def labelled_task(task: str, config: Any, spec: str | Path, kind: str | None = None) -> Task:
    """What a labelled file or directory scores of a model of this task. kind: as `load_task` takes it.

    Raises:
        DataError: it cannot be read, or scores something else than the model puts out.
    """
    labels = getattr(config, "id2label", None) or {}
    found = load_task(spec, kind, label_names=[labels[i] for i in sorted(labels)])
    if task not in _SCORED_BY_LABELS or found.kind.outputs != OUTPUTS[task]:
        raise DataError(f"{spec}: {found.kind.name} scores {found.kind.outputs}; this model's task is {task}")
    return found
