"""Evaluation: metrics, tasks, and whether a loss is inside its budget. Models are functions from texts to arrays."""

from bitwright.evaluate.agreement import metric_found
from bitwright.evaluate.budget import Given, Interval, KindLoss, Verdict, judge, paired_bootstrap, without_pairs
from bitwright.evaluate.by_kind import loss_interval
from bitwright.evaluate.custom import load_custom
from bitwright.evaluate.decidable import undecidable
from bitwright.evaluate.fitting import agreement_task, labelled_task
from bitwright.evaluate.language import LanguageModel, language_task
from bitwright.evaluate.loaders import load_task, similarity_matrix_task
from bitwright.evaluate.tasks import Task, joined, label_free_task, shared_texts, split

__all__ = [
    "Given",
    "Interval",
    "KindLoss",
    "LanguageModel",
    "Task",
    "Verdict",
    "agreement_task",
    "joined",
    "judge",
    "label_free_task",
    "labelled_task",
    "language_task",
    "load_custom",
    "load_task",
    "loss_interval",
    "metric_found",
    "paired_bootstrap",
    "shared_texts",
    "similarity_matrix_task",
    "split",
    "undecidable",
    "without_pairs",
]
