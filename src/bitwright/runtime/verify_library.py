"""Checks a checkpoint in runtimes of others, which give plain token ids to a model that they loaded by themselves.

Where a runtime computes in float, its outputs are those of the dequantized weights but for the order of sums. Where it
rounds inputs of linears on its own, the two lie as near as two roundings of one model may (`tolerances.py`).
"""

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitwright.errors import LibraryError
from bitwright.families.tasks import TaskName
from bitwright.files.answers import answers_by_logits, read_answers
from bitwright.files.directory import ModelDirectory
from bitwright.files.opening import open_path
from bitwright.files.pooling import pool_rows
from bitwright.files.sentences import Sentences, after_pooling, read_sentences
from bitwright.files.task import find_task
from bitwright.runtime.library import Library
from bitwright.runtime.tolerances import FLOAT_SUMS, engine_distances, largest_difference

# Packages that a runtime needs besides ours.
NEEDS: dict[str, tuple[str, ...]] = {
    "transformers": ("compressed_tensors",),
    "sentence-transformers": ("compressed_tensors", "sentence_transformers"),
    "gptq": ("safetensors",),
    "awq": ("safetensors",),
    "bitnet": (),
    "gguf": ("gguf",),
    "llama.cpp": ("llama_cpp",),
}
# Runtimes that round inputs of linears whatever the file says of them.
_ROUNDING = ("bitnet", "llama.cpp")


class Given(NamedTuple):
    """What a runtime is given, and must give: float32 (B, values), as `verify.compared` has them.

    ids_BT: int64, sequences of equal length. dequantized: of the float model with the numbers that codes stand for.
    rounded: of a path of ours that rounds inputs as the checkpoint says, or more.
    """

    ids_BT: np.ndarray
    dequantized: np.ndarray
    rounded: np.ndarray


class Checked(NamedTuple):
    """What was found: a row of the Record, without its target. outputs: None if there are none."""

    ok: bool | None
    checks: dict[str, float]
    detail: str
    outputs: np.ndarray | None = None


def missing(target: str) -> str:
    """Why a runtime cannot be checked here; "" if it can."""
    lacking = [name for name in NEEDS[target] if find_spec(name) is None]
    return f"not checked, because {', '.join(lacking)} is not installed" if lacking else ""


def check_library(path: Path, target: str, given: Given) -> Checked:
    """Whether a runtime gives what it must for a directory or a file."""
    opened = open_path(path)
    try:
        found = _outputs(opened, target, given.ids_BT)
    except LibraryError as error:
        return Checked(False, {}, f"loading or running failed: {str(error)[:300]}")
    shape, wanted = found.outputs.shape, given.dequantized.shape
    if shape != wanted:
        return Checked(False, {}, f"the outputs have the shape {shape}, but {wanted} is expected")
    rounds = target in _ROUNDING or rounds_inputs(opened.config)
    checks, fault = (_of_roundings if rounds else _of_floats)(found.outputs, given)
    how = "rounds inputs, and the outputs agree within that" if rounds else "computes in float, and the outputs agree"
    detail = fault or f"a clean process ({found.library}) {how}"
    return Checked(not fault, checks | {"seconds": found.seconds}, detail, found.outputs)


def beside_engine(found_BV: np.ndarray, engine_BV: np.ndarray, task: TaskName) -> dict[str, float]:
    """How far outputs lie from the engine's: of vectors the mean cosine; of logits the error, relative to their length,
    and the share of texts whose largest logit is the same."""
    if task == "embedding":
        return {"engine_cosine": mean_cosine(found_BV, engine_BV)}
    apart = np.linalg.norm(found_BV - engine_BV) / np.linalg.norm(engine_BV)
    checks = {"engine_logit_error": float(apart)}
    if task in ("text-generation", "sequence-classification") and found_BV.shape[1] > 1:
        checks["engine_top1_agreement"] = float((found_BV.argmax(axis=1) == engine_BV.argmax(axis=1)).mean())
    return checks


def mean_cosine(a_BV: np.ndarray, b_BV: np.ndarray) -> float:
    """The mean cosine between rows."""
    a, b = a_BV.astype(np.float64), b_BV.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-30)).mean())


def too_far(what: str, distance: float, allowed: float, other: str) -> str:
    """Outputs that are not those of another computation, in a sentence."""
    return f"{what} differ by {distance:.2g} from those of {other}, but at most {allowed:.2g} is allowed"


def rounds_inputs(config: Mapping[str, Any]) -> bool:
    """Whether compressed-tensors rounds inputs of this checkpoint: where transformers does not dequantize it while it
    loads, a linear runs as its group says."""
    said = config.get("quantization_config")
    groups = said.get("config_groups") if isinstance(said, dict) and not said.get("dequantize") else None
    return isinstance(groups, dict) and any(group.get("input_activations") for group in groups.values())


def _of_floats(found: np.ndarray, given: Given) -> tuple[dict[str, float], str]:
    apart = largest_difference(found, given.dequantized)
    fault = "" if apart <= FLOAT_SUMS else too_far("its outputs", apart, FLOAT_SUMS, "the dequantized weights")
    return {"relative_error": apart, "relative_error_allowed": FLOAT_SUMS}, fault  # a fault also for NaN


def _of_roundings(found: np.ndarray, given: Given) -> tuple[dict[str, float], str]:
    distances = engine_distances(found, [given.rounded], given.dequantized)
    checks = {key.removeprefix("engine_"): value for key, value in distances.items()}
    for key, other in (("distance", "the quantized model"), ("float_distance", "the dequantized weights")):
        if not checks[key] <= checks[f"{key}_allowed"]:
            return checks, too_far("its outputs", checks[key], checks[f"{key}_allowed"], other)
    return checks, ""


class _Ran(NamedTuple):
    """Outputs, as `Given` has them; which library made them, and in what time."""

    outputs: np.ndarray
    library: str
    seconds: float


def _outputs(opened: ModelDirectory, target: str, ids_BT: np.ndarray) -> _Ran:
    """Raises:
    LibraryError: the target cannot load or run the model.
    """
    task = find_task(opened)
    if target != "sentence-transformers" and answers_by_logits(opened, task):
        ran = _ran(opened, "text-generation", target, ids_BT)
        return ran._replace(outputs=np.asarray(read_answers(opened)[0].score(ran.outputs)))
    return _ran(opened, task, target, ids_BT)


def _ran(opened: ModelDirectory, task: TaskName, target: str, ids_BT: np.ndarray) -> _Ran:
    import torch

    from bitwright.models.tensor_files import read_pickled

    # As many threads as here: their number may decide in which order a float sum is made.
    with Library(
        opened.path, task, threads=torch.get_num_threads(), limit=ids_BT.shape[1], runtime=target
    ) as library:  # fmt: skip
        sentences = None
        if task == "embedding" and target != "sentence-transformers":
            sentences = read_sentences(opened, task, read_pickled=read_pickled)
        begun = time.perf_counter()
        mixed = sentences is not None and sentences.mix is not None
        rows = library.states(ids_BT) if mixed else library.forward(ids_BT)
        seconds = time.perf_counter() - begun
        if sentences is None:
            outputs = np.stack([row.reshape(-1) for row in rows])
        else:
            tokens = _mixed(sentences, rows) if mixed else rows
            outputs = after_pooling(sentences, np.stack([pool_rows(row, sentences.pooling, 0) for row in tokens]))
        return _Ran(outputs, library.name, seconds)


def _mixed(sentences: Sentences, states: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The weighted mean of the layers' token vectors. states: (1 + layers, T, H) for each text."""
    mix = sentences.mix
    assert mix is not None
    weights_L = mix.weights_L / mix.weights_L.sum()
    return [np.einsum("l,lth->th", weights_L, layers_LTH[mix.start :]) for layers_LTH in states]
