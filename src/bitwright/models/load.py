"""Loads and checks a model: whole, or empty, to be filled block by block from its files.

Nothing that the checkpoint lacks is filled in silently.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitwright.families import Architecture, architecture_of
from bitwright.families.tasks import TaskName
from bitwright.files.directory import ModelDirectory
from bitwright.files.opening import is_gguf, open_path
from bitwright.files.sentences import NO_FILES, Sentences, read_sentences
from bitwright.models.build import EmptyModel, build_empty, load_tokenizer, max_tokens
from bitwright.models.heap import trim_heap
from bitwright.models.hub import fetch
from bitwright.models.matching import check_finite, check_names
from bitwright.models.sites import file_name, find_blocks, is_transposed
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles, read_pickled

# A module's parameters as they were when it was built, without values.
Built = Mapping[str, tuple[nn.Module, dict[str, nn.Parameter | None]]]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode with what is needed to feed it.

    Fused experts and transposed linears in it have become plain linears (`experts.linearize`).

    directory: where it lies. name: what the user called it. source: its tensors in the files. built: its modules as
    they are without values. tokenizer: None where the directory's files cannot build the one that its model type names;
    tokenizer_problem: then what is wrong with which file. trust_remote_code: whether the directory's own code may run.
    sentences: what sentence-transformers does around the model. free: whether nobody runs or changes the model; whoever
    does holds it.
    """

    model: nn.Module
    config: Any
    directory: ModelDirectory
    task: TaskName
    architecture: Architecture
    name: str
    source: SourceTensors
    built: Built
    tokenizer: Any = None
    tokenizer_problem: str | None = None
    trust_remote_code: bool = False
    sentences: Sentences = NO_FILES
    free: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The local directory."""
        return self.directory.path

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the files' tensors that are not in the model."""
        return self.source.kept

    @property
    def max_tokens(self) -> int:
        """The longest sequence that the model was meant for and can take."""
        empty = EmptyModel(self.model, self.config, self.task, self.architecture)
        return max_tokens(empty, self.tokenizer, self.sentences, self.directory.transformer.path)

    def reopen(self) -> "LoadedModel":
        """The same model once more, its blocks empty, as `open_lazily` leaves them: to be run block by block and
        changed on the way, while this one stays as it is. Tokenizer, config and index of the files are shared.

        Raises:
            CheckpointError: a file that has changed since the model was opened.
            ModelError: NaN or infinity in a weight outside the blocks.
        """
        dtype = next(self.model.parameters()).dtype
        empty = build_empty(
            self.directory, dtype=dtype, trust_remote_code=self.trust_remote_code, task=self.task, config=self.config
        )
        again = _from_files(empty, self.directory, self.source)
        _fill_outside_blocks(again)
        return replace(
            again,
            name=self.name,
            tokenizer=self.tokenizer,
            tokenizer_problem=self.tokenizer_problem,
            trust_remote_code=self.trust_remote_code,
            sentences=self.sentences,
        )


def open_directory(name_or_dir: str | Path | ModelDirectory, task: TaskName | None = None) -> ModelDirectory:
    """The directory of a model, by its path or its hub name. task: what the user says that the model is for.

    Raises:
        ModelError: neither a directory nor a hub name, or the hub cannot be reached.
    """
    if not isinstance(name_or_dir, ModelDirectory):
        path = Path(name_or_dir).expanduser()
        return open_path(path if is_gguf(path) else fetch(name_or_dir), task)
    return name_or_dir if task in (None, name_or_dir.task) else open_path(name_or_dir.origin, task)


def load_model(
    name_or_dir: str | Path | ModelDirectory,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    task: TaskName | None = None,
) -> LoadedModel:
    """Load a model directory or a hub name, after all checks that are possible beforehand.

    task: what the model is for; by default what its files say (`files.task`).

    Raises:
        ModelError: not a model, an architecture without a row, no weights, weights that are not those of the config or
            lack the head that the task needs, or NaN or infinity in them.
        CheckpointError: a file whose bytes do not say what they should.
    """
    loaded = open_lazily(name_or_dir, dtype=dtype, trust_remote_code=trust_remote_code, task=task, runnable=False)
    materialise(loaded, "")
    return loaded


def open_lazily(
    name_or_dir: str | Path | ModelDirectory,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    task: TaskName | None = None,
    runnable: bool = True,
    tokenizes: bool = True,
) -> LoadedModel:
    """Open a model directory or a hub name as a model with empty blocks: parameters on the meta device, no memory.

    Everything else (embeddings, norms, poolers, heads, buffers) is filled. `materialise` fills a block, `release`
    empties it again.

    Args:
        dtype: of the parameters, whatever the files have.
        task: what the model is for; by default what its files say (`files.task`).
        runnable: False leaves what is outside the blocks empty too, for who reads tensors and runs nothing.
        tokenizes: False leaves the tokenizer out, for who has tokens already.

    Raises:
        ModelError: not a model, an architecture without a row, no weights, weights that are not those of the config or
            lack the head that the task needs, or NaN or infinity in those that were filled.
        CheckpointError: a file whose bytes do not say what they should.
    """
    directory = open_directory(name_or_dir, task)
    directory.check_float()
    files = TensorFiles(directory)
    architecture_of(directory.config["model_type"])
    empty = build_empty(directory, dtype=dtype, trust_remote_code=trust_remote_code)
    sentences = read_sentences(directory, empty.task, read_pickled=read_pickled)
    tokenizer, problem = load_tokenizer(directory, trust_remote_code, sentences) if tokenizes else (None, None)
    name = str(directory.origin if isinstance(name_or_dir, ModelDirectory) else name_or_dir)
    loaded = replace(
        _from_files(empty, directory, _index(empty, files)),
        name=name,
        tokenizer=tokenizer,
        tokenizer_problem=problem,
        trust_remote_code=trust_remote_code,
        sentences=sentences,
    )
    if runnable:
        _fill_outside_blocks(loaded)
    return loaded


def open_skeleton(config: Path, *, task: TaskName | None = None) -> EmptyModel:
    """The model of a config.json, entirely on the meta device: names and shapes, to count bytes.

    Raises:
        ModelError: an architecture without a row, or a config that transformers cannot build.
    """
    return build_empty(config, task=task, buffers=False)


def materialise(loaded: LoadedModel, path: str) -> None:
    """Fill the parameters that are empty in the module at `path` ("" for the whole model) from the files.

    Raises:
        ModelError: NaN or infinity; the message names file and tensor.
        CheckpointError: a file that has changed since the model was opened.
    """
    fill(loaded.model, loaded.source, path)


@contextmanager
def lent(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The model with empty blocks and values outside them, to be run block by block and changed, until the end of the
    block: itself, emptied afterwards, if it is empty and nobody else has it; otherwise another one over the same files.

    Raises:
        As `LoadedModel.reopen`.
    """
    if not loaded.free.acquire(blocking=False):
        yield loaded.reopen()
        return
    try:
        if not all(parameter.is_meta for parameter in loaded.model.parameters()):
            yield loaded.reopen()
            return
        try:
            _fill_outside_blocks(loaded)
            yield loaded
        finally:
            release(loaded, "")
    finally:
        loaded.free.release()


def check_values(loaded: LoadedModel) -> None:
    """Refuse NaN and infinity in a model that stays empty. A piece of a tensor is in memory at a time.

    Raises:
        As `materialise`.
    """
    dtype = next(loaded.model.parameters()).dtype
    for name in loaded.source:
        # A sum is finite unless a value is not, or it overflows: then the whole tensor decides, and is told of.
        if not all(bool(piece.to(dtype).sum().isfinite()) for piece in loaded.source.pieces(name)):
            check_finite(loaded.source[name].to(dtype), loaded.source.where(name))


def release(loaded: LoadedModel, path: str) -> None:
    """Empty the module at `path`: every module in it is again the one that was built, its parameters without values.

    What was swapped in, folded or added is gone, and the system has the memory back.
    """
    prefix = f"{path}." if path else ""
    for name, (module, parameters) in loaded.built.items():
        if not f"{name}.".startswith(prefix):
            continue
        if name and loaded.model.get_submodule(name) is not module:
            loaded.model.set_submodule(name, module)
        module._parameters.clear()
        module._parameters.update(parameters)
    trim_heap()


def fill(model: nn.Module, source: SourceTensors, path: str = "", *, but: tuple[str, ...] = ()) -> None:
    """Fill the empty parameters of the modules at `path` and below, but for those whose paths begin with one of `but`;
    parameters that are tied are filled once and stay one and the same.

    Raises:
        As `materialise`.
    """
    prefix = f"{path}." if path else ""
    filled: dict[int, nn.Parameter] = {}
    multiplied = {  # not only looked up: a tied head, say
        id(parameter) for module in model.modules() if not isinstance(module, nn.Embedding)
        for parameter in module._parameters.values()
    }  # fmt: skip
    for name, module in list(model.named_modules()):
        if not f"{name}.".startswith(prefix) or f"{name}.".startswith(but):
            continue
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in filled:
                full = f"{name}.{key}" if name else key
                check = partial(check_finite, where=source.where(full))
                looked_up = id(parameter) not in multiplied and source.dtype(full) == parameter.dtype
                tensor = source.looked_up(full, check) if looked_up else None
                if tensor is None:
                    tensor = source[full].to(parameter.dtype)
                    check(tensor)
                filled[id(parameter)] = nn.Parameter(tensor, parameter.requires_grad)
            module._parameters[key] = filled[id(parameter)]


def fill_buffers(model: nn.Module, source: SourceTensors) -> None:
    """Give the buffers that a checkpoint stores (a router's corrections) their values; they are small.

    Raises:
        ModelError: NaN or infinity; the message names file and tensor.
    """
    for name, buffer in model.named_buffers():
        if name in source:
            check_finite(source[name], source.where(name))
            buffer.copy_(source[name])


def _index(empty: EmptyModel, files: TensorFiles) -> SourceTensors:
    """Find each parameter of an empty model in its files."""
    model, architecture = empty.model, empty.architecture
    state = model.state_dict(keep_vars=True)
    return SourceTensors(
        files,
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        prefix=str(getattr(model, "base_model_prefix", "")),
        renames={name: file_name(architecture, name) for name in state},
        transposed=[name for name in state if is_transposed(architecture, name)],
        tied=getattr(model, "all_tied_weights_keys", {}),
    )


def _from_files(empty: EmptyModel, directory: ModelDirectory, source: SourceTensors) -> LoadedModel:
    """A model without values that is to be filled from `source`; its stored buffers are."""
    model = empty.model
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    for name in source.untied:
        del tied[name]
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, nn.Parameter(torch.empty_like(model.get_parameter(name))))
    check_names(directory.path, model, source.missing, source.kept, empty.architecture, empty.task)
    fill_buffers(model, source)
    built = {name: (module, dict(module._parameters)) for name, module in model.named_modules()}
    return LoadedModel(
        model, empty.config, directory, empty.task, empty.architecture, str(directory.path), source, built
    )


def _fill_outside_blocks(loaded: LoadedModel) -> None:
    blocks = tuple(f"{block}." for block, _ in find_blocks(loaded.model, loaded.architecture))
    fill(loaded.model, loaded.source, but=blocks)
