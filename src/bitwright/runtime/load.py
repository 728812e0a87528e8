"""`load()`: a directory that `bitwright quantize` wrote, or a float one, as a model that runs."""

from pathlib import Path

import torch
from torch import nn

from bitwright.checkpoints.read import Checkpoint, for_model, is_quantized, read_checkpoint
from bitwright.checkpoints.stored import model_names, name_in
from bitwright.errors import CheckpointError
from bitwright.kernels import cpu
from bitwright.models.load import build_model, load_model, max_tokens
from bitwright.models.pooling import read_pooling
from bitwright.runtime.model import Model, float_model
from bitwright.runtime.swap import set_compute, swap_linears


def load(directory: str | Path, *, compute: str = "auto", trust_remote_code: bool = False) -> Model:
    """Load a checkpoint in compressed-tensors' int-quantized format, or a float model (a directory or a hub name).

    The linears of a quantized checkpoint run on our integer kernels; `model.backend` says which variant. `model.hf` is
    the transformers module, `model.encode(texts)` gives embeddings or logits.

    Args:
        compute: what the parts of a quantized model that are not quantized compute in: "float32", "bfloat16", or
            "auto": bfloat16 where the CPU multiplies it. A float model is always loaded in float32.

    Raises:
        InputError: another `compute`.
        ModelError: no model there, or an architecture without a row in the table.
        CheckpointError: files whose bytes contradict one another.
    """
    path = Path(directory).expanduser()
    if not (path / "config.json").is_file() or not is_quantized(path):
        return float_model(load_model(path if path.is_dir() else directory, trust_remote_code=trust_remote_code))
    checkpoint = read_checkpoint(path)
    loaded = build_model(path, trust_remote_code=trust_remote_code)
    has_pooler = any("pooler." in name for name in checkpoint.others)
    if loaded.task == "embedding" and not has_pooler and hasattr(loaded.model, "pooler"):
        loaded.model.pooler = None  # type: ignore[assignment]  # the source had none, and pooling does not use it
    names = model_names(loaded.model)
    layers, tables = for_model(checkpoint, names)
    half = _fill(loaded.model, checkpoint, names.prefix, skip=layers.keys() | tables.keys())
    swap_linears(loaded.model, layers, half, loaded.architecture, tables=tables)
    dtype = set_compute(loaded.model, compute)
    backend = f"kernels:{cpu.active_isa()}, {str(dtype).removeprefix('torch.')}"
    return Model(
        loaded.model, loaded.tokenizer, loaded.task, read_pooling(path), max_tokens(loaded), backend, path
    )  # fmt: skip


def _fill(model: nn.Module, checkpoint: Checkpoint, prefix: str, skip: set[str]) -> list[str]:
    """Copy every tensor that is not quantized into `model`, in float32; names of the linears stored in 16 bit.

    Raises:
        CheckpointError: a tensor of the model is not in the files, or has another shape there.
    """
    stored = checkpoint.others
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    targets = dict(model.named_parameters(remove_duplicate=False)) | {
        name: buffer for name, buffer in model.named_buffers() if name_in(stored, name, prefix)
    }
    half = []
    for name, target in targets.items():
        module = name.rpartition(".")[0]
        if (name.endswith(".weight") and module in skip) or name in tied:
            continue
        found = name_in(stored, name, prefix)
        if found is None:
            raise CheckpointError(f"{checkpoint.directory}: the files hold no {name!r} ({tuple(target.shape)})")
        value = stored[found]
        if value.shape != target.shape:
            raise CheckpointError(
                f"{checkpoint.directory}: {found} is {tuple(value.shape)} in the files and {tuple(target.shape)} "
                "by config.json"
            )
        target.data.copy_(value)
        in_16_bit = value.dtype in (torch.bfloat16, torch.float16)
        if in_16_bit and name.endswith(".weight") and isinstance(model.get_submodule(module), nn.Linear):
            half.append(module)
    return half
