"""A quantized checkpoint, or a float model, as a transformers module with our linears: the generic path."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bitwright.checkpoints.read import for_model, is_quantized, read_checkpoint
from bitwright.checkpoints.stored import ModelNames, model_names
from bitwright.errors import CheckpointError
from bitwright.files.pooling import read_pooling
from bitwright.kernels import dispatch
from bitwright.models.lazy import materialise
from bitwright.models.load import build_empty, load_model, load_tokenizer, max_tokens
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import TensorFiles
from bitwright.runtime.generic_model import GenericModel, float_model
from bitwright.runtime.swap import set_compute, swap_linears


def load_generic(
    directory: str | Path, *, compute: str = "auto", trust_remote_code: bool = False, why: str = ""
) -> GenericModel:
    """As `runtime.load.load` without the engine. why: the engine does not run it, for `backend`."""
    path = Path(directory).expanduser()
    if not (path / "config.json").is_file() or not is_quantized(path):
        return float_model(load_model(path if path.is_dir() else directory, trust_remote_code=trust_remote_code))
    checkpoint = read_checkpoint(path)
    loaded = build_empty(path, trust_remote_code=trust_remote_code)
    model, architecture = loaded.model, loaded.architecture
    if loaded.task == "embedding" and not any("pooler." in name for name in checkpoint.others):
        _leave_out_pooler(model)
    names = model_names(model, architecture)
    layers, tables = for_model(checkpoint, names)
    source = _float_tensors(path, names, {*layers, *tables})
    for name in layers:
        linear = model.get_submodule(name)
        if linear.bias is not None:
            linear.bias = nn.Parameter(source[f"{name}.bias"].float(), requires_grad=False)
    swap_linears(model, layers, (), architecture, tables=tables)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    half = [name for name in linears if source.dtype(f"{name}.weight") in (torch.bfloat16, torch.float16)]
    tokenizer, problem = load_tokenizer(path, trust_remote_code)
    loaded = replace(loaded, source=source, tokenizer=tokenizer, tokenizer_problem=problem)
    materialise(loaded, "")
    for name, buffer in model.named_buffers():
        if name in source:
            buffer.copy_(source[name])
    swap_linears(model, {}, half, architecture)
    dtype = set_compute(model, compute)
    backend = f"kernels:{dispatch.active_isa()}, {str(dtype).removeprefix('torch.')}{why and f' ({why})'}"
    return GenericModel(model, tokenizer, loaded.task, read_pooling(path), max_tokens(loaded), backend, path)


def _leave_out_pooler(model: nn.Module) -> None:
    """As transformers itself has none: the source had none either, and pooling does not use it."""
    if hasattr(model, "pooler"):
        model.pooler = None  # type: ignore[assignment]


def _float_tensors(path: Path, names: ModelNames, quantized: Collection[str]) -> SourceTensors:
    """Every tensor of the model that is not quantized, by the model's names; nothing is read yet.

    Raises:
        CheckpointError: the files lack one.
        ModelError: one has another shape than config.json says.
    """
    codes = {f"{name}.weight" for name in quantized}
    shapes = {name: shape for name, shape in names.shapes.items() if name not in codes}
    source = replace(names, shapes=shapes).tensors_of(TensorFiles(path, pickles=False))
    if source.missing:
        name = source.missing[0]
        raise CheckpointError(
            f"{path}: the files hold no {name!r} {shapes[name]}, nor {len(source.missing) - 1} others that config.json "
            "calls for; the download is incomplete, or config and weights are of different models"
        )
    return source
