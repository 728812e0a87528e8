"""`load()`: a directory that `bitwright quantize` wrote, or a float one, as a model that runs. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.errors import EngineError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.files.foreign_code import check_foreign_code
from bitwright.runtime.pickling import LoadedFrom

if TYPE_CHECKING:
    from bitwright.families.tasks import TaskName
    from bitwright.runtime.engine_model import EngineModel
    from bitwright.runtime.generic_model import GenericModel
    from bitwright.runtime.model import Model


def load(
    directory: str | Path, *, compute: str = "auto", threads: int | None = None, task: "TaskName | None" = None,
    trust_remote_code: bool = False,
) -> "Model":  # fmt: skip
    """Load a model, quantized (by Bitwright, or in the format compressed-tensors) or float.

    A quantized encoder runs on Bitwright's engine if that has an operator for every part of it; `model.backend` then
    begins with "engine", and says whether attention is computed in int8, as the checkpoint may ask. Any other model
    takes the generic path, a transformers module. There int8 linears run on Bitwright's kernels, and other schemes are
    dequantized at each call; `model.backend` says why the engine does not run it.

    `model.encode(texts)` gives embeddings, logits, or what a language model makes of each token. `model.hf` is the
    transformers module; for a model on the engine it is loaded when it is asked for.

    The model may be pickled, copied, used by several threads at once, and used on after a fork. A pickle holds its
    absolute path, the arguments given here and a digest; unpickling loads it again.

    Args:
        directory: a model directory, or the name of a model on the hub.
        compute: "auto"; or "float32" or "bfloat16" to take the generic path and compute there in that dtype what is not
            quantized, attention among it. A float model is always loaded in float32.
        threads: of the CPU, that the engine uses for one call; by default OMP_NUM_THREADS, or all processors. Never
            more than the processors that the process may use, by its affinity mask and its container's quota: more are
            slower. The generic path uses torch's setting, which the first model that torch computes lowers to these.
        task: what the model is for, if its files leave that open: "embedding", "sequence-classification",
            "token-classification", "question-answering" or "text-generation". A result of `quantize` knows it.
        trust_remote_code: run code that the directory brings or names, kernels of the hub among it.

    Raises:
        InputError: another `compute`; threads < 1.
        ModelError: no model there, an architecture without a row in the table, a task that its files leave open, or
            weights that are not those of config.json, or hold NaN or infinity; code of others, unless it is trusted.
        CheckpointError: files whose bytes contradict one another, or that lack a tensor of the model.
    """
    opened = _open(Path(directory).expanduser(), directory, task)
    options: dict[str, Any] = {"compute": compute, "threads": threads, "trust_remote_code": trust_remote_code}
    check_foreign_code(opened, trusted=trust_remote_code)
    model = _loaded(opened, **options)
    model.loaded_from = LoadedFrom.of(opened.path, options | {"task": task})
    return model


def _loaded(
    opened: ModelDirectory, compute: str, threads: int | None, trust_remote_code: bool
) -> "EngineModel | GenericModel":
    why = ""
    if compute == "auto" and opened.is_quantized:
        from bitwright.runtime.engine_model import EngineModel

        try:
            return EngineModel(opened, threads=threads, trust_remote_code=trust_remote_code)
        except EngineError as error:
            why = f"not on the engine: {error}"
    from bitwright.runtime.generic import load_generic

    return load_generic(opened, compute=compute, trust_remote_code=trust_remote_code, why=why)


def _open(path: Path, given: str | Path, task: "TaskName | None") -> ModelDirectory:
    """Open a directory; a hub name is first resolved to one."""
    if (path / CONFIG_FILE).is_file():
        return ModelDirectory(path, task)
    from bitwright.models.hub import fetch

    return ModelDirectory(fetch(given), task)
