"""A model, loaded and checked. The only file that imports transformers at module level.

Weights come from safetensors where there are some; a .bin is read by torch's restricted unpickler, which builds tensors
and nothing else. Nothing that the checkpoint lacks is filled in silently.
"""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from bitwright.errors import CheckpointError, ModelError
from bitwright.families import Architecture, architecture_of
from bitwright.families.tasks import TASKS, Task, task_of
from bitwright.files.directory import (
    check_source,
    fingerprint,
    license_of,
    read_config,
    read_object,
    source_bytes,
    source_files,
    weight_files,
)
from bitwright.models.experts import linearize
from bitwright.models.hub import fetch
from bitwright.models.matching import and_more, check_finite, check_names, listed
from bitwright.models.meta import parameters_on_meta
from bitwright.models.sites import base_prefix
from bitwright.models.source_tensors import SourceTensors

__all__ = [
    "LoadedModel",
    "build_empty",
    "build_model",
    "fetch",
    "fingerprint",
    "license_of",
    "load_model",
    "load_tokenizer",
    "max_tokens",
    "read_config",
    "source_bytes",
    "source_files",
    "weight_files",
]

_AUTO_CLASSES: dict[Task, Any] = {
    "embedding": transformers.AutoModel,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "text-generation": transformers.AutoModelForCausalLM,
}

# What transformers raises on files whose values are wrong or contradict each other.
_BUILD_ERRORS = (
    StrictDataclassError, OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError,
    ArithmeticError,
)  # fmt: skip
_LOCAL = {"local_files_only": True}
_NO_LIMIT = 1_000_000  # tokenizers without a limit answer with a number around 1e30


# A module's parameters as they were when it was built, without values.
Built = Mapping[str, tuple[nn.Module, dict[str, nn.Parameter | None]]]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode with what is needed to feed it.

    Fused experts and transposed linears in it have become plain linears (`experts.linearize`).

    tokenizer: None where the directory's files cannot build the one that its model type names; tokenizer_problem: then
    what is wrong with which file. path: the local directory. name: what the user called it.
    kept: names of the files' tensors that are not in the model.
    source, built: of a model that is filled block by block, its tensors, and its modules as they are without values.
    """

    model: nn.Module
    tokenizer: Any
    config: Any
    path: Path
    task: Task
    architecture: Architecture
    name: str
    tokenizer_problem: str | None = None
    kept: tuple[str, ...] = ()
    source: SourceTensors | None = None
    built: Built = field(default_factory=dict)


def load_model(
    name_or_dir: str | Path,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    task: Task | None = None,
) -> LoadedModel:
    """Load a model directory or a hub name, after checking all that can be checked beforehand.

    task: what the model is for; by default what `architectures` in its config.json says.

    Raises:
        ModelError: not a model, an architecture without a row, no weights, weights that are not those of the config or
            lack the head that the task needs, or NaN or infinity in them.
        CheckpointError: a file whose bytes do not say what they should.
    """
    path = fetch(name_or_dir)
    raw = check_source(path)
    architecture = architecture_of(raw["model_type"])
    _check_task(task)
    for file in weight_files(path):
        if file.suffix == ".bin":
            _check_pickle(file)
    with _building(path):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **_LOCAL)
    task = task_of(config.architectures, str(config.name_or_path)) if task is None else task
    with _building(path):
        # Sizes that differ are collected rather than raised, to be reported with their numbers.
        model, report = _AUTO_CLASSES[task].from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_LOCAL,
        )
    if mismatched := sorted(report["mismatched_keys"]):
        key, stored, built = mismatched[0]
        raise ModelError(
            f"{path}: {key} is {tuple(stored)} in the weights and {tuple(built)} by config.json"
            f"{and_more(len(mismatched) - 1)}; config and weights are of different models"
        )
    kept = tuple(sorted(report["unexpected_keys"]))
    check_names(path, model, report["missing_keys"], kept, architecture, task)
    for name, tensor in model.state_dict().items():
        check_finite(tensor, f"{path}: {name}")
    linearize(model, architecture)
    tokenizer, problem = load_tokenizer(path, trust_remote_code)
    return LoadedModel(model.eval(), tokenizer, model.config, path, task, architecture, str(name_or_dir), problem, kept)


def build_empty(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    task: Task | None = None,
    buffers: bool = True,
) -> LoadedModel:
    """The model that a config.json describes, its parameters on the meta device: without values or memory.

    Parameters that are tied are one and the same. There is no tokenizer.

    Args:
        path: a model directory, or its config.json.
        dtype: of the parameters.
        buffers: whether the buffers (tables of rotary angles) are computed, or on the meta device too.

    Raises:
        ModelError: an architecture without a row, or a config that transformers cannot build.
    """
    _check_task(task)
    with _building(path):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **_LOCAL)
    architecture = architecture_of(config.model_type)
    task = task_of(config.architectures, str(config.name_or_path)) if task is None else task
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with _building(path), no_init_weights(), parameters_on_meta() if buffers else torch.device("meta"):
        model = _AUTO_CLASSES[task].from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights(recompute_mapping=False)
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in exact:
            buffer.data = buffer.float()
    if buffers and (empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]):
        raise ModelError(f"{path}: {type(model).__name__} has buffers that it fills only later: {listed(empty)}")
    linearize(model, architecture)
    return LoadedModel(model.eval(), None, model.config, path, task, architecture, str(path))


def build_model(path: Path, *, trust_remote_code: bool = False) -> LoadedModel:
    """The float32 model that a directory's config.json describes, its weights not set: the caller fills all of them.

    What the config says of quantization is left out.

    Raises:
        ModelError: an architecture without a row, or a config that transformers cannot build.
    """
    with _building(path):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **_LOCAL)
    architecture, task = architecture_of(config.model_type), task_of(config.architectures, str(config.name_or_path))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with _building(path), no_init_weights():
        model = _AUTO_CLASSES[task].from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    linearize(model, architecture)
    tokenizer, problem = load_tokenizer(path, trust_remote_code)
    return LoadedModel(model.eval(), tokenizer, config, path, task, architecture, str(path), problem)


def max_tokens(loaded: LoadedModel) -> int:
    """The longest sequence, in tokens, special ones included, that the model was meant for and can take.

    The least of max_seq_length in sentence_bert_config.json, the tokenizer's model_max_length and the number of
    positions, less the rows of their table that are never read.

    Raises:
        ModelError: a sentence_bert_config.json that does not hold what it should.
    """
    limits = [int(loaded.config.get_text_config().max_position_embeddings)]
    positions = loaded.architecture.positions
    table = dict(loaded.model.named_modules()).get(f"{base_prefix(loaded.model)}{positions.table}")
    if isinstance(table, nn.Embedding):
        limits.append(table.num_embeddings - positions.first(loaded.config.to_dict()))
    if loaded.tokenizer is not None:
        limits.append(int(loaded.tokenizer.model_max_length))
    sentence_config = loaded.path / "sentence_bert_config.json"
    if sentence_config.is_file():
        limits.append(_max_seq_length(sentence_config))
    return min(limits)


def _max_seq_length(file: Path) -> int:
    length = read_object(file).get("max_seq_length")
    if length is None:
        return _NO_LIMIT
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ModelError(f"{file}: max_seq_length is {length!r}; a number of tokens is needed, or null for no limit")
    return length


def _check_pickle(file: Path) -> None:
    """Go through a .bin without reading its tensors; the restricted unpickler refuses anything that is not one."""
    try:
        content = torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a plain file of tensors, and nothing else is unpickled ({_one_line(error)[:200]}); "
            "ask for the model as safetensors"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file}: holds something other than tensors by name; ask for the model as safetensors")


def _check_task(task: Task | None) -> None:
    if task is not None and task not in _AUTO_CLASSES:
        raise ModelError(f"task {task!r} is none of {', '.join(TASKS)}")


def load_tokenizer(path: Path, trust: bool) -> tuple[Any, str | None]:
    """(tokenizer, None) or (None, why): also where its vocabulary file is absent, and it would be built empty."""
    try:
        for file in (path / "tokenizer.json", path / "tokenizer_config.json"):
            if file.is_file():
                read_object(file)
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=trust, **_LOCAL)
    except ModelError as error:
        return None, str(error)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        return None, f"{path}: the tokenizer cannot be built ({type(error).__name__}: {_one_line(error)[:200]})"
    wanted = sorted(set(type(tokenizer).vocab_files_names.values()))
    if any((path / file).is_file() for file in wanted):
        return tokenizer, None
    return None, f"{path}: no vocabulary: {type(tokenizer).__name__} reads {' or '.join(wanted)}, and neither is there"


@contextmanager
def _building(path: Path) -> Iterator[None]:
    """What transformers raises on files that contradict each other, as our errors; and quiet."""
    try:
        with _quiet():
            yield
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error
    except _BUILD_ERRORS as error:
        raise ModelError(f"{path}: transformers cannot build this model: {_one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging and drawing progress bars; what they would say is reported as our own errors."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
