"""`load()`: a directory that `bitwright quantize` wrote, or a float one, as a model that runs. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from bitwright.errors import EngineError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory

if TYPE_CHECKING:
    from bitwright.families.tasks import TaskName
    from bitwright.runtime.model import Model


def load(
    directory: str | Path, *, compute: str = "auto", threads: int | None = None, task: "TaskName | None" = None,
    trust_remote_code: bool = False,
) -> "Model":  # fmt: skip
    """Load a quantized checkpoint, Bitwright's or compressed-tensors', or a float model (a directory or a hub name).

    A quantized encoder runs on the engine if that has an operator for every part of it: `model.backend` begins with
    "engine". Anything else takes the generic path, a transformers module in which the int8 linears run on our integer
    kernels and other schemes are dequantized at each call; `model.backend` then says why the engine does not run it.
    `model.encode(texts)` gives embeddings, logits, or what a language model makes of each token; `model.hf` is the
    transformers module, for the engine's models loaded when it is asked for.

    Args:
        compute: "auto"; or "float32" or "bfloat16" to take the generic path with what is not quantized in that dtype
            (see `set_compute`). A float model is always loaded in float32.
        threads: of the CPU, that the engine uses for one call; by default OMP_NUM_THREADS, or all processors. The
            generic path uses torch's setting.
        task: what the model is for, where its files do not tell or contradict each other; "embedding",
            "sequence-classification", "token-classification", "question-answering" or "text-generation". A result
            of `quantize` knows it.

    Raises:
        InputError: another `compute`; threads < 1.
        ModelError: no model there, an architecture without a row in the table, a task that its files leave open, or
            weights that are not those of config.json, or hold NaN or infinity.
        CheckpointError: files whose bytes contradict one another, or that lack a tensor of the model.
    """
    opened, why = _open(Path(directory).expanduser(), directory, task), ""
    if compute == "auto" and opened.is_quantized:
        from bitwright.runtime.engine_model import EngineModel

        try:
            return EngineModel(opened, threads=threads)
        except EngineError as error:
            why = f"not on the engine: {error}"
    from bitwright.runtime.generic import load_generic

    return load_generic(opened, compute=compute, trust_remote_code=trust_remote_code, why=why)


def _open(path: Path, given: str | Path, task: "TaskName | None") -> ModelDirectory:
    """A directory as it is; a hub's name takes what reads hubs."""
    if (path / CONFIG_FILE).is_file():
        return ModelDirectory(path, task)
    from bitwright.models.hub import fetch

    return ModelDirectory(fetch(given), task)
