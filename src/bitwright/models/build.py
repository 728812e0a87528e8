"""Builds a model without weights from its config, and its tokenizer. Only this file imports transformers at module
level.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from torch import nn
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from bitwright.errors import BitwrightError, EngineError, ModelError, brief, foreign
from bitwright.families import Architecture, architecture_of
from bitwright.families.tasks import AUTO_CLASSES, TaskName, check_task, task_of
from bitwright.files.answers import answers_by_logits
from bitwright.files.counts import check_counts
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.folder import read_object
from bitwright.files.followed import TOKENIZER_CONFIG, check_followed, paths_of_tokenizer
from bitwright.files.foreign_code import check_config, check_foreign_code
from bitwright.files.limits import length_limit, text_limit
from bitwright.files.sentences import Sentences
from bitwright.files.task import find_task
from bitwright.files.tokenizer import lower_case, parts_of
from bitwright.files.tokenizer_bounds import check_growth
from bitwright.kernels import torch_threads
from bitwright.models.experts import linearize
from bitwright.models.matching import listed
from bitwright.models.meta import parameters_on_meta
from bitwright.models.sites import base_prefix

_LOCAL = {"local_files_only": True}
_ALONE = threading.RLock()


@dataclass(frozen=True, slots=True)
class EmptyModel:
    """A model as transformers builds it from a config.json, in evaluation mode, its parameters without values."""

    model: nn.Module
    config: Any
    task: TaskName
    architecture: Architecture


def build_empty(
    source: ModelDirectory | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    task: TaskName | None = None,
    buffers: bool = True,
    config: Any = None,
) -> EmptyModel:
    """The model that a config.json describes, its parameters on the meta device: without values or memory.

    Parameters that are tied are one and the same.

    Args:
        source: a model directory, or a config.json alone.
        task: what the model is for; by default what the directory says (`files.task`), or the config.json alone.
        dtype: of the parameters.
        buffers: whether the buffers (tables of rotary angles) are computed, or on the meta device too.
        config: what the file says to transformers, if it was read before; not changed.

    Raises:
        ModelError: an architecture without a row, or a config that transformers cannot build; code of others that is
            not trusted, or a class of theirs that it makes.
    """
    torch_threads.settle()
    if task is not None:
        check_task(task, "task")
    if isinstance(source, ModelDirectory):
        path = source.transformer.path
        check_foreign_code(source, trusted=trust_remote_code)
        source.check_counts()
        task = task or find_task(source)
        check_followed(source)
        architecture_of(str(source.config.get("model_type")))  # before another family's config may read what it likes
    else:
        path = source
        check_config(read_object(source), source, trusted=trust_remote_code)
        check_counts(read_object(source), {}, str(source))
    with _building(path):
        config = copy.deepcopy(config) or _config(source, trust_remote_code)
    architecture = architecture_of(config.model_type)
    task = task or task_of(config.architectures, str(config.name_or_path))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.return_dict = True  # outputs by name, whatever the file says
    answers = isinstance(source, ModelDirectory) and answers_by_logits(source, task)
    if answers:
        config.num_labels = 1  # the score
    with _building(path), no_init_weights(), parameters_on_meta() if buffers else torch.device("meta"):
        auto_class = getattr(transformers, AUTO_CLASSES["text-generation" if answers else task])
        model = auto_class.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    refuse_foreign_class(model, path)
    model.tie_weights(recompute_mapping=False)
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in exact:
            buffer.data = buffer.float()
    if buffers and (empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]):
        raise ModelError(
            f"{path}: {type(model).__name__} fills these buffers only later, so it cannot be built without weights: "
            f"{listed(empty)}"
        )
    linearize(model, architecture)
    return EmptyModel(model.eval(), model.config, task, architecture)


def _config(source: ModelDirectory | Path, trust_remote_code: bool) -> Any:
    if isinstance(source, ModelDirectory) and source.made(CONFIG_FILE) is not None:
        return transformers.AutoConfig.for_model(**source.config)
    path = source.transformer.path if isinstance(source, ModelDirectory) else source
    return transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **_LOCAL)


def max_tokens(empty: EmptyModel, tokenizer: Any, sentences: Sentences, path: Path) -> int:
    """The longest sequence, in tokens, special ones included, that the model was meant for and can take: `text_limit`,
    and no more than the positions in their table, if there is one, less its rows that are never read.

    Raises:
        ModelError: a file where a number of tokens should be says something else.
    """
    with foreign(f"{path / CONFIG_FILE}: there is no config for text", ModelError):
        says = empty.config.get_text_config().max_position_embeddings
    said = None if tokenizer is None else tokenizer.model_max_length
    trained = length_limit(says, path / CONFIG_FILE, "max_position_embeddings")
    limit = length_limit(said, path / "tokenizer_config.json", "model_max_length")
    table, rows = position_table(empty.model, empty.architecture), []
    if table is not None:
        try:
            rows = [table.num_embeddings - empty.architecture.positions.first(empty.config.to_dict())]
        except EngineError as error:
            raise ModelError(f"{path}: {error}") from None
    return text_limit(sentences, limit, trained, rows)


def position_table(model: nn.Module, architecture: Architecture) -> nn.Embedding | None:
    """The embeddings of absolute positions, if a model has them: no text may be longer."""
    table = dict(model.named_modules()).get(f"{base_prefix(model)}{architecture.positions.table}")
    return table if isinstance(table, nn.Embedding) else None


def refuse_foreign_class(model: nn.Module, path: Path) -> None:
    """The rows of the table describe the classes of transformers; others of the same model_type may compute otherwise.

    Raises:
        ModelError: the class came with the model.
    """
    kind = type(model)
    if not kind.__module__.startswith("transformers."):
        raise ModelError(
            f"{path}: {kind.__name__} has its own code ({kind.__module__.rpartition('.')[2]}.py), which Bitwright "
            "does not know. If the class of transformers is as good, remove auto_map from config.json"
        )


def load_tokenizer(directory: ModelDirectory, trust: bool, sentences: Sentences) -> tuple[Any, str | None]:
    """The tokenizer and None, or None and the reason. A missing vocabulary file is a reason, because the tokenizer
    would be empty.

    It lowers texts if the side files say so.
    """
    folder, path = directory.transformer, directory.transformer.path
    if (made := directory.made("tokenizer.json")) is not None:
        named = folder.object(TOKENIZER_CONFIG) or {}
        known = {key: value for key, value in named.items() if key.endswith("_token") or key == "chat_template"}
        with foreign(f"{path}: the tokenizer cannot be built", ModelError):
            whole = tokenizers.Tokenizer.from_str(made)
            return transformers.PreTrainedTokenizerFast(tokenizer_object=whole, **known), None
    try:
        file = path / "tokenizer.json"
        if file.is_file():
            check_growth(file, read_object(file))  # may be large: it is not kept
        check_followed(directory)
        _check_tokenizer_class(directory)
        unfollowed = dict.fromkeys(paths_of_tokenizer(directory))  # else a class may open what they name
        with foreign(f"{path}: the tokenizer cannot be built", ModelError), _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust, **unfollowed, **_LOCAL
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and not file.is_file():  # made of other files
            check_growth(path, parts_of(backend))
        if backend is not None and sentences.lower_case:
            lower_case(backend)
    except (EngineError, ModelError) as error:
        return None, str(error)
    wanted = sorted({*type(tokenizer).vocab_files_names.values(), "tokenizer.json"})
    if any((path / file).is_file() for file in wanted):
        return tokenizer, None
    return None, (
        f"{path}: there is no vocabulary; {type(tokenizer).__name__} needs {' or '.join(wanted)}. Download the "
        "model again"
    )


def _check_tokenizer_class(directory: ModelDirectory) -> None:
    """Refuse a class that is not a tokenizer: AutoTokenizer would build any transformers class, even a model's.

    Raises:
        ModelError: what is named is no tokenizer.
    """
    folder = directory.transformer
    for file, settings in ((TOKENIZER_CONFIG, folder.object(TOKENIZER_CONFIG)), (CONFIG_FILE, directory.config)):
        named = (settings or {}).get("tokenizer_class")
        if not isinstance(named, str):
            continue
        kind = getattr(transformers, named, None)
        if isinstance(kind, type) and not issubclass(kind, transformers.PreTrainedTokenizerBase):
            raise ModelError(f"{folder / file}: tokenizer_class: {brief(named)} is not a tokenizer")


@contextmanager
def _building(path: Path) -> Iterator[None]:
    """What transformers raises on files that contradict each other, as our errors; and quiet."""
    try:
        with _quiet():
            yield
    except (BitwrightError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{path}: transformers cannot build this model: {_one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging and drawing progress bars; what they would say is reported as our own errors. One
    thread at a time: this, and how modules are made inside, are settings of the whole process.
    """
    with _ALONE:
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
    return " ".join(str(error).split())[:500] or type(error).__name__
