"""A model, loaded and checked: whole, or filled block by block from files whose tensors are read when they are needed.

Nothing that the checkpoint lacks is filled in silently.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.models.architectures import architecture_of, file_name, find_blocks, is_transposed
from bitwright.models.build import LoadedModel, Task, build_empty, load_tokenizer
from bitwright.models.hub import fetch
from bitwright.models.matching import check_finite, check_names
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles


def open_directory(name_or_dir: str | Path | ModelDirectory) -> ModelDirectory:
    """The directory of a model, by its path or its hub name.

    Raises:
        ModelError: neither a directory nor a hub name, or the hub cannot be reached.
    """
    return name_or_dir if isinstance(name_or_dir, ModelDirectory) else ModelDirectory(fetch(name_or_dir))


def load_model(
    name_or_dir: str | Path | ModelDirectory,
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
    loaded = open_lazily(name_or_dir, dtype=dtype, trust_remote_code=trust_remote_code, task=task, runnable=False)
    materialise(loaded, "")
    return loaded


def open_lazily(
    name_or_dir: str | Path | ModelDirectory,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    task: Task | None = None,
    runnable: bool = True,
    tokenizes: bool = True,
) -> LoadedModel:
    """A model directory or a hub name as a model whose blocks are empty: parameters on the meta device, no memory.

    Everything else (embeddings, norms, poolers, heads, buffers) is filled. `materialise` fills a block, `release`
    empties it again.

    Args:
        dtype: of the parameters, whatever the files have.
        task: what the model is for; by default what `architectures` in its config.json says.
        runnable: False leaves what is outside the blocks empty too, for who reads tensors and runs nothing.
        tokenizes: False leaves the tokenizer out, for who has tokens already.

    Raises:
        ModelError: not a model, an architecture without a row, no weights, weights that are not those of the config or
            lack the head that the task needs, or NaN or infinity in those that were filled.
        CheckpointError: a file whose bytes do not say what they should.
    """
    directory = open_directory(name_or_dir)
    directory.check_float()
    files = TensorFiles(directory)
    architecture_of(directory.config["model_type"])
    loaded = build_empty(directory, dtype=dtype, trust_remote_code=trust_remote_code, task=task)
    model, architecture = loaded.model, loaded.architecture
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    state = model.state_dict(keep_vars=True)
    source = SourceTensors(
        files,
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        prefix=str(getattr(model, "base_model_prefix", "")),
        renames={name: file_name(architecture, name) for name in state},
        transposed=[name for name in state if is_transposed(architecture, name)],
        tied=tied,
    )
    for name in source.untied:
        del tied[name]
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, nn.Parameter(torch.empty_like(state[name])))
    check_names(directory.path, model, source.missing, source.kept, architecture, loaded.task)
    tokenizer, problem = load_tokenizer(directory, trust_remote_code) if tokenizes else (None, None)
    loaded = replace(
        loaded,
        tokenizer=tokenizer,
        name=str(directory.path if isinstance(name_or_dir, ModelDirectory) else name_or_dir),
        tokenizer_problem=problem,
        source=source,
        built={name: (module, dict(module._parameters)) for name, module in model.named_modules()},
    )
    _fill_buffers(loaded, source)
    if runnable:
        blocks = tuple(f"{block}." for block, _ in find_blocks(model, architecture))
        _fill(loaded, [name for name in loaded.built if not f"{name}.".startswith(blocks)])
    return loaded


def reopen(loaded: LoadedModel, *, runnable: bool = True) -> LoadedModel:
    """The same model once more, its blocks empty and its own to change; the directory stays open once. It has no
    tokenizer.
    """
    return open_lazily(
        loaded.directory,
        trust_remote_code=loaded.trust_remote_code,
        task=loaded.task,
        runnable=runnable,
        tokenizes=False,
    )


def open_skeleton(config: Path, *, task: Task | None = None) -> LoadedModel:
    """The model that a config.json describes, all of it on the meta device: names and shapes, for who counts bytes.

    Raises:
        ModelError: an architecture without a row, or a config that transformers cannot build.
    """
    return build_empty(ModelDirectory(config.parent), config_file=config, task=task, buffers=False)


def materialise(loaded: LoadedModel, path: str) -> None:
    """Fill the parameters that are empty in the module at `path` ("" for the whole model) from the files.

    Raises:
        ModelError: NaN or infinity; the message names file and tensor. Or the model was built without
            files.
        CheckpointError: a file that has changed since the model was opened.
    """
    prefix = f"{path}." if path else ""
    _fill(loaded, [name for name, _ in loaded.model.named_modules() if f"{name}.".startswith(prefix)])


def release(loaded: LoadedModel, path: str) -> None:
    """Empty the module at `path`: every module in it is again the one that was built, its parameters without values.

    What was swapped in, folded or added is gone.
    """
    _source(loaded)
    prefix = f"{path}." if path else ""
    for name, (module, parameters) in loaded.built.items():
        if not f"{name}.".startswith(prefix):
            continue
        if name and loaded.model.get_submodule(name) is not module:
            loaded.model.set_submodule(name, module)
        module._parameters.clear()
        module._parameters.update(parameters)


def _fill(loaded: LoadedModel, modules: list[str]) -> None:
    """Fill the empty parameters of these modules; those that are tied are filled once and stay one and the same."""
    source = _source(loaded)
    filled: dict[int, nn.Parameter] = {}
    for name in modules:
        module = loaded.model.get_submodule(name)
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in filled:
                full = f"{name}.{key}" if name else key
                tensor = source[full].to(parameter.dtype)
                check_finite(tensor, source.where(full))
                filled[id(parameter)] = nn.Parameter(tensor, parameter.requires_grad)
            module._parameters[key] = filled[id(parameter)]


def _fill_buffers(loaded: LoadedModel, source: SourceTensors) -> None:
    """Give the buffers that a checkpoint stores (a router's corrections) their values; they are small."""
    for name, buffer in loaded.model.named_buffers():
        if name in source:
            check_finite(source[name], source.where(name))
            buffer.copy_(source[name])


def _source(loaded: LoadedModel) -> SourceTensors:
    if loaded.source is None:
        raise ModelError(
            f"{loaded.name}: was built of a config.json alone; open_lazily gives one that is filled from files"
        )
    return loaded.source
