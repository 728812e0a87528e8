"""`load()`: a directory that `bitwright quantize` wrote, or a float one, as a model that runs. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bitwright.engine.cache_layout import CacheKind
from bitwright.engine.executor import check_count
from bitwright.engine.fp8 import Fp8
from bitwright.errors import EngineError, InputError
from bitwright.files.directory import ModelDirectory
from bitwright.files.foreign_code import check_foreign_code
from bitwright.files.opening import is_gguf, open_path
from bitwright.files.task import find_task
from bitwright.runtime.pickling import LoadedFrom

if TYPE_CHECKING:
    from bitwright.engine.linears import Inputs
    from bitwright.families.tasks import TaskName
    from bitwright.runtime.decoder_model import DecoderModel
    from bitwright.runtime.engine_model import EngineModel
    from bitwright.runtime.generic_model import GenericModel
    from bitwright.runtime.model import Model

_ON_ENGINE = ("engine", "bf16")  # what `compute` takes no other path for


def load(
    directory: str | Path, *, compute: str = "auto", threads: int | None = None, task: "TaskName | None" = None,
    trust_remote_code: bool = False, context: int | None = None, kv_cache: CacheKind = "int8", fp8: Fp8 = "bf16",
) -> "Model":  # fmt: skip
    """Load a model: float, or quantized by Bitwright or another tool (`checkpoints.FORMATS`; a GGUF file, too).

    A quantized model runs on Bitwright's engine if that has an operator for every part of it; `model.backend` then
    begins with "engine", and says whether attention is computed in int8, as the checkpoint may ask. Any other model
    takes the generic path, a transformers module. There int8 linears run on Bitwright's kernels, and other schemes are
    dequantized at each call; `model.backend` says why the engine does not run it.

    `model.encode(texts)` gives embeddings, logits, or what a language model makes of each token. A language model on
    the engine also generates (`model.generate(prompts)`, `model.stream(prompt)`). It rounds inputs of 4-bit linears to
    int8, and a head that the checkpoint keeps in 16 bits is held in int8. A decoder that embeds texts or scores them is
    computed as an encoder is, and keeps no cache. `model.hf` is the transformers module; for a model on the engine it
    is loaded when it is asked for.

    The model may be pickled, copied, used by several threads at once, and used on after a fork. A pickle holds its
    absolute path, the arguments given here and a digest; unpickling loads it again.

    Args:
        directory: a model directory, a GGUF file, or the name of a model on the hub.
        compute: "auto"; or "float32" or "bfloat16" to take the generic path and compute there in that dtype what is not
            quantized, attention among it. A float model is always loaded in float32; but "engine" runs any model on the
            engine, a float one in bf16, and raises where that cannot. "bf16" does so, too, and rounds nothing to int8
            that the checkpoint leaves in 16 bits: neither inputs of linears nor a head.
        threads: of the CPU, that the engine uses for one call; by default OMP_NUM_THREADS, or all processors. Never
            more than the processors that the process may use, by its affinity mask and its container's quota: more are
            slower. The generic path uses torch's setting, which the first model that torch computes lowers to these.
        task: what the model is for, if its files leave that open: "embedding", "sequence-classification",
            "token-classification", "question-answering" or "text-generation". A result of `quantize` knows it.
        trust_remote_code: run code that the directory brings or names, kernels of the hub among it.
        context: of a language model on the engine, the tokens that a prompt and its answer may have together; by
            default those that it was trained for, or as many as a quarter of the free memory holds.
        kv_cache: how that holds keys and values, "int8", "int4" (about half the memory for long texts, less exact) or
            "bf16".
        fp8: how the engine holds linears that the file has in FP8: "bf16", in which no number changes, or "int8", half
            the bytes, with a scale for each 64 inputs; `model.backend` says how much that changes the weights.

    Raises:
        InputError: another `compute`, `kv_cache` or `fp8`; threads or context < 1; a context that does not fit into
            memory; fp8="int8" with a compute that takes the generic path.
        EngineError: compute is "engine" or "bf16", or fp8 is "int8", and the engine does not run the model.
        ModelError: no model there, an architecture without a row in the table, a task that its files leave open, or
            weights that are not those of config.json, or hold NaN or infinity; code of others, unless it is trusted.
        CheckpointError: files whose bytes contradict one another, or that lack a tensor of the model.
    """
    opened = locate(directory, task)
    options: dict[str, Any] = {"compute": compute, "threads": threads, "trust_remote_code": trust_remote_code}
    options |= {"context": context, "kv_cache": kv_cache, "fp8": fp8}
    check_foreign_code(opened, trusted=trust_remote_code)
    _check(context, kv_cache, fp8, compute)
    model = _loaded(opened, **options)
    model.loaded_from = LoadedFrom.of(opened.path, options | {"task": task})
    return model


def _loaded(
    opened: ModelDirectory, compute: str, threads: int | None, trust_remote_code: bool, context: int | None,
    kv_cache: CacheKind, fp8: Fp8,
) -> "EngineModel | DecoderModel | GenericModel":  # fmt: skip
    why = ""
    on_engine = compute in _ON_ENGINE or (fp8 == "int8" and opened.is_quantized)
    inputs: Inputs = "bf16" if compute == "bf16" else "int8"
    if on_engine or (compute == "auto" and opened.is_quantized):
        try:
            if find_task(opened) == "text-generation":
                from bitwright.engine.decoders import DEFAULT, FLOAT
                from bitwright.runtime.decoder_model import DecoderModel

                how = (FLOAT if compute == "bf16" else DEFAULT)._replace(cache=kv_cache, fp8=fp8)
                return DecoderModel(
                    opened, threads=threads, trust_remote_code=trust_remote_code, context=context, arithmetic=how
                )
            from bitwright.runtime.engine_model import EngineModel

            return EngineModel(opened, threads=threads, trust_remote_code=trust_remote_code, inputs=inputs, fp8=fp8)
        except EngineError as error:
            if on_engine:
                raise
            why = f"not on the engine: {error}"
    from bitwright.runtime.generic import load_generic

    return load_generic(opened, compute=compute, trust_remote_code=trust_remote_code, why=why)


def _check(context: int | None, kv_cache: object, fp8: object, compute: str) -> None:
    """Raises:
    InputError: no number of tokens, or a way of holding keys and values, or FP8, that is none.
    """
    if context is not None:
        check_count("context", context)
    if kv_cache not in get_args(CacheKind):
        raise InputError(f"kv_cache = {kv_cache!r} is unknown; choose one of {', '.join(get_args(CacheKind))}")
    if fp8 not in get_args(Fp8):
        raise InputError(f"fp8 = {fp8!r} is unknown; choose one of {', '.join(get_args(Fp8))}")
    if fp8 == "int8" and compute not in ("auto", *_ON_ENGINE):
        raise InputError(f"fp8 = 'int8' is for the engine, but compute = {compute!r} takes the generic path")


def locate(given: str | Path, task: "TaskName | None" = None) -> ModelDirectory:
    """The files of a model: a directory, a GGUF file, or a name on the hub, which is first resolved to a directory.

    Raises as `load`.
    """
    path = Path(given).expanduser()
    if (str(given) and path.is_dir()) or is_gguf(path):
        return open_path(path, task)
    from bitwright.models.hub import fetch

    return open_path(fetch(given), task)
