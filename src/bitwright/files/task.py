"""Finds a model's task, and whether it reads pairs of texts, from several files of its directory. No torch.

A model's task has several witnesses: the class that config.json names, the files that sentence-transformers wrote and
the model_type in them, and the heads in the weights. Where they contradict each other, none of them is believed:
the user says what is meant (`task=`), and a result says it itself (`TASK_KEY`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bitwright.errors import ModelError, brief
from bitwright.families import FAMILIES
from bitwright.families.tasks import TASKS, TaskName, check_task, class_of, task_of, task_of_class
from bitwright.files.answers import LOGIT_SCORE, answers_by_logits
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.modules import MODULES_FILE, SETTINGS_FILE, TRANSFORMER_FILES, read_modules

# Key of a result's config.json: the task that the user named, where the files would not tell, or tell another.
TASK_KEY = "bitwright_task"

_CROSS_ENCODER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
# model_type in that file -> what such a model is for.
TASK_OF_TYPE: dict[str, TaskName] = {"SentenceTransformer": "embedding", "CrossEncoder": "sequence-classification"}
# Types and modules of sentence-transformers whose outputs are not one dense vector per text.
_OTHER_OUTPUTS = {
    "SparseEncoder": "sparse vectors (SPLADE and the like)",
    "SpladePooling": "sparse vectors (SPLADE)",
    "SparseAutoEncoder": "sparse vectors",
    "SparseStaticEmbedding": "sparse vectors",
    "MultiVectorEncoder": "a vector per token (ColBERT and the like)",
    "ColBERT": "a vector per token",
    "MultiVectorMask": "a vector per token",
}
# Classes whose head sentence-transformers leaves out when it builds a Transformer module: the pretrained ones.
_BARE: tuple[TaskName | None, ...] = ("embedding", "text-generation", None)
_LABELLED = ("sequence-classification", "token-classification")
# Of models for these some read pairs, and all can.
PAIR_TASKS = ("sequence-classification", "question-answering")
# Labels of natural language inference: of a premise and a hypothesis.
_INFERENCE = {"entailment", "contradiction", "not_entailment"}


class Witness(NamedTuple):
    """A sign in the directory for one or several tasks. says: where it is, and what it says."""

    tasks: tuple[TaskName, ...]
    says: str


def find_task(directory: ModelDirectory) -> TaskName:
    """The model's task: as the user says, else as our own result says, else as its files show.

    Modules of sentence-transformers with a pooling make an embedding model of a language model or of a pretrained one,
    whatever head its class has: that is how that library builds one. A LogitScore makes a reranker of a language model.

    Raises:
        ModelError: the witnesses contradict each other, or leave several tasks; a class that is for another task; a
            model whose outputs are of another sort (SparseEncoder).
    """
    _refuse_other_outputs(directory)
    said = directory.task or directory.config.get(TASK_KEY)
    if said is not None:
        return check_task(said, "task" if directory.task else f"{directory.transformer / CONFIG_FILE}: {TASK_KEY}")
    found = witnesses(directory)
    if not found:  # a class that nobody knows
        return task_of(directory.config.get("architectures"), str(directory.path))
    fitting = [task for task in TASKS if all(task in witness.tasks for witness in found)]
    if len(fitting) == 1:
        return fitting[0]
    meant = [task for task in TASKS if any(task in witness.tasks for witness in found)]
    raise ModelError(
        f"{directory.path}: the model's task is not clear: {'; '.join(one.says for one in found)}. Choose it with "
        f"--task (in Python task=): {' or '.join(meant)}"
    )


def witnesses(directory: ModelDirectory) -> list[Witness]:
    """Every sign of a task, except those that another sign overrules.

    Raises:
        ModelError: as `class_of` and `read_modules`.
    """
    config = directory.config
    name = class_of(config.get("architectures"), str(directory.path)) if config.get("architectures") else None
    by_class = task_of_class(name) if name else None
    heads, modules = find_heads(config, directory.shapes), read_modules(directory.package) or []
    pooled = any(module.kind == "Pooling" for module in modules)
    if any(module.kind == LOGIT_SCORE for module in modules) and by_class == "text-generation":
        return [Witness(("sequence-classification",), f"{MODULES_FILE} has a {LOGIT_SCORE}")]
    if pooled and (by_class in _BARE or (directory.shapes and not any(by_class in head.tasks for head in heads))):
        return [Witness(("embedding",), f"{MODULES_FILE} has a Pooling")]
    found = [Witness(("embedding",), f"{MODULES_FILE} has a Pooling, as embedding models have")] if pooled else []
    if by_class is not None:
        found.append(
            Witness((by_class,), f"architectures in {CONFIG_FILE} names {name:.80}, which is a class for {by_class}")
        )
    kind, where = _written_as(directory)
    if kind in TASK_OF_TYPE:
        found.append(Witness((TASK_OF_TYPE[kind],), f"{where} names a {kind}"))
    elif by_class not in (None, *TASK_OF_TYPE.values()) and (where := _left_beside(directory)):
        found.append(Witness(tuple(TASK_OF_TYPE.values()), f"{where} is a file of sentence-transformers"))
    tasks = tuple(task for task in TASKS if any(task in head.tasks for head in heads))
    if name is None and kind != "CrossEncoder" and all(task in _BARE for task in tasks):
        # Both libraries then build the model without a head, also one whose files still have that of a language model.
        found.append(Witness(("embedding",), f"architectures in {CONFIG_FILE} names no class, so no head is built"))
    return [*found, Witness(tasks, ", and ".join(head.says for head in heads))] if heads else found


def pair_evidence(directory: ModelDirectory, task: str) -> str | None:
    """What shows that a model reads pairs of texts, in words; None if it reads single texts.

    A table of two token types shows nothing: every BERT has one. task: the model's.
    """
    config = directory.config
    if task == "question-answering":
        return "it finds the answer to a question in a context"
    if task != "sequence-classification":
        return None
    kind, where = _written_as(directory)
    if kind == "CrossEncoder":
        return f"{where} names a CrossEncoder"
    if answers_by_logits(directory, task):
        return "its score is that of a language model's answer, as rerankers have it"
    names = [str(name) for name in _labels(config).values()]
    if _INFERENCE.intersection(name.casefold() for name in names):
        return f"its labels are {', '.join(name[:40] for name in names[:3])}"
    return "it puts out one score, as rerankers do" if _n_labels(config) == 1 else None


def pair_scorer(directory: ModelDirectory, task: str) -> bool:
    """Whether sentence-transformers' CrossEncoder runs this model: its files say so, or it gives one score."""
    return task == "sequence-classification" and (
        _written_as(directory)[0] == "CrossEncoder"
        or _n_labels(directory.config) == 1
        or answers_by_logits(directory, task)
    )


def _refuse_other_outputs(directory: ModelDirectory) -> None:
    named = [_written_as(directory)[0], *(module.kind for module in read_modules(directory.package) or ())]
    kind = next((kind for kind in named if kind in _OTHER_OUTPUTS), None)
    if kind is not None:
        raise ModelError(
            f"{directory.path}: this is a {kind} of sentence-transformers, and its outputs are "
            f"{_OTHER_OUTPUTS[kind]}. Bitwright does not support it; it supports models for {', '.join(TASKS)}"
        )


def _written_as(directory: ModelDirectory) -> tuple[str, str]:
    """The sentence-transformers class that saved the model, and the file that says so; "" for both if none does.

    CrossEncoder puts a key of its own into config.json: one now, another before its release 4.
    """
    kind = (directory.package.object(SETTINGS_FILE) or {}).get("model_type")
    if kind is not None:
        if not isinstance(kind, str):
            raise ModelError(f"{directory.package / SETTINGS_FILE}: model_type is {brief(kind)}; it must be a name")
        return kind, SETTINGS_FILE
    key = next((key for key in _CROSS_ENCODER_KEYS if key in directory.config), None)
    return ("CrossEncoder", f"{key} in {CONFIG_FILE}") if key else ("", "")


def _left_beside(directory: ModelDirectory) -> str:
    """A file of sentence-transformers, which embeds or scores texts; "" if there is none. Without modules.json that
    library does not read it, but it shows what the model was made for.
    """
    files = (directory.package / SETTINGS_FILE, *(directory.transformer / name for name in TRANSFORMER_FILES))
    return next((file.name for file in files if file.is_file()), "")


def find_heads(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Witness]:
    """The family's heads that the weights hold. A classifier's head counts only if it has one row per label.

    config: config.json. shapes: of the tensors, by name; {} of a file that only torch can read, which tells nothing.
    """
    row = FAMILIES.get(str(config.get("model_type")))
    outputs, found = row.head.outputs if row else {}, []
    for path in dict.fromkeys(outputs.values()):
        tasks = tuple(task for task, of in outputs.items() if of == path)
        shape = next((shapes[name] for end in ("weight", "weight_packed") if (name := f"{path}.{end}") in shapes), None)
        if shape and (tasks[0] not in _LABELLED or shape[0] == _n_labels(config)):
            size = " × ".join(map(str, shape))
            found.append(
                Witness(tasks, f"the weights hold {path}.weight ({size}), which is a head for {' or '.join(tasks)}")
            )
    return found


def _n_labels(config: Mapping[str, Any]) -> int:
    """The number of labels as transformers counts them: 2 if the file says nothing."""
    stated = config.get("num_labels")
    return stated if type(stated) is int else len(_labels(config)) or 2


def _labels(config: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = config.get("id2label")
    return labels if isinstance(labels, dict) else {}
