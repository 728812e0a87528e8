"""Finds a model's task from the class name in config.json."""

from typing import Literal, get_args

from bitwright.errors import ModelError

TaskName = Literal[
    "embedding", "sequence-classification", "token-classification", "question-answering", "text-generation"
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

# The class of transformers that builds a model for a task, with the head that it needs.
AUTO_CLASSES: dict[str, str] = {
    "embedding": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "text-generation": "AutoModelForCausalLM",
}

# End of a class name -> task. What was only pretrained is used as an embedding model.
_TASK_OF_CLASS: dict[str, TaskName] = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text-generation",  # of the families in the table: those that also read images
    "ForMaskedLM": "embedding",
    "ForPreTraining": "embedding",
    "Model": "embedding",
}


def class_of(architectures: object, where: str) -> str:
    """The first class in `architectures` of a config.json; without any, the class of a model without a head.

    where: the file, for the message.

    Raises:
        ModelError: no list of names of classes.
    """
    if not architectures:
        return "Model"
    if not isinstance(architectures, list) or not isinstance(architectures[0], str):
        raise ModelError(
            f"{where}: architectures in config.json is {architectures!r:.80}; it must be a list of class names, "
            'such as ["BertModel"]'
        )
    return architectures[0]


def task_of_class(name: str) -> TaskName | None:
    """The task of a class; None if Bitwright does not know it."""
    return next((task for ending, task in _TASK_OF_CLASS.items() if name.endswith(ending)), None)


def check_task(name: object, where: str) -> TaskName:
    """A name that must be one of `TASKS`. where: who says it, for the message.

    Raises:
        ModelError: it is none of them.
    """
    found = next((task for task in TASKS if task == name), None)
    if found is None:
        raise ModelError(f"{where} {name!r:.80} is unknown; choose one of {', '.join(TASKS)}")
    return found


def task_of(architectures: object, where: str) -> TaskName:
    """The task of a model from only the value of `architectures` in its config.json.

    Raises:
        ModelError: a class that stands for another task, or no list of names of classes.
    """
    name = class_of(architectures, where)
    if (task := task_of_class(name)) is None:
        raise ModelError(
            f"{where}: the class {name} in config.json is for none of the tasks {', '.join(TASKS)}. If the model is "
            "for one of them, choose it with --task (in Python task=)"
        )
    return task
