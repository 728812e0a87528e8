"""Load a finished checkpoint in a clean process, in each runtime that claims it, and compare what comes out.

The parent hands over token ids, and keeps what the output must be, from models in memory that never saw the file. The
child (this file, run as a module) loads the directory as a user of that runtime would: only the "bitwright" target
runs our code; the other two get the pooling from us and nothing else.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.files.directory import ModelDirectory

if TYPE_CHECKING:
    from torch import Tensor

    from bitwright.runtime.model import Model

_CHILD_SECONDS = 600

# The largest difference from the expected output that passes, relative to its largest value. Our own runtime must give
# the same bits; plain readers dequantize the weights and run in float, so they differ by the order of float sums.
TOLERANCE = {"bitwright": 0.0, "transformers": 1e-4, "sentence-transformers": 1e-4}
# How far the engine's outputs may lie from those of the generic path, in the mean over texts, relative to their length.
# Both round activations to int8, and where one rounds up the other may round down: an INT8 MiniLM is 0.045 from its
# float original, and engine and generic path are 0.037 apart.
ENGINE_TOLERANCE = 0.1
# Packages that a target needs besides transformers.
NEEDS = {
    "transformers": ("compressed_tensors",),
    "sentence-transformers": ("compressed_tensors", "sentence_transformers"),
}


def verify(
    directory: Path,
    targets: Sequence[str],
    ids_BT: np.ndarray,
    quantized: np.ndarray,
    dequantized: np.ndarray,
    n_integer: int,
    compute: str = "auto",
) -> list[dict[str, Any]]:
    """Check `directory` in every target; one row per target, as the Record documents.

    Args:
        ids_BT: int64 token ids, sequences of equal length.
        quantized: float32 (B, values), what `compared` says of the quantized model.
        dequantized: the same of the float model with every weight replaced by the number that its code stands for.
        n_integer: calls of integer kernels that one forward of the "bitwright" target must make: one for each such
            linear, but for experts to which no token is routed.
    """
    rows = []
    for target in targets:
        missing = [name for name in NEEDS.get(target, ()) if not _importable(name)]
        if target not in TOLERANCE:
            rows.append(_row(target, None, {}, "this release cannot check this runtime"))
        elif missing:
            rows.append(_row(target, None, {}, f"not checked: {', '.join(missing)} not installed"))
        else:
            expected = quantized if target == "bitwright" else dequantized
            rows.append(_verify_one(directory, target, ids_BT, expected, n_integer, compute))
    return rows


def compared(model: "Model", ids_BT: "Tensor") -> tuple[np.ndarray, int]:
    """What is compared of a model, float32 (B, values), and how many calls of integer kernels it took.

    Pooled embeddings or logits, flattened; of a language model the logits after the last token.
    """
    from bitwright.evaluate.kinds import OUTPUTS
    from bitwright.kernels import dispatch
    from bitwright.runtime.items import Tokens

    before = dispatch.kernel_calls()
    if OUTPUTS[model.task] == "tokens":
        rows: Sequence[np.ndarray] = list(model.logits(ids_BT)[:, -1].float().numpy())
    else:
        (rows,) = model.run([Tokens(ids_BT.tolist())])
    return np.stack([row.reshape(-1) for row in rows]), dispatch.kernel_calls() - before


def _verify_one(
    directory: Path, target: str, ids_BT: np.ndarray, expected: np.ndarray, n_integer: int, compute: str
) -> dict[str, Any]:
    import torch

    with tempfile.TemporaryDirectory(prefix="bitwright-verify-") as folder:
        given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
        np.savez(given, ids=ids_BT)
        places = map(str, (directory, given, result))
        command = [sys.executable, "-m", "bitwright.runtime.verify", target, compute, *places]
        # As many threads as here: their number may decide in which order a float sum is made.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, env=environment)
        except subprocess.TimeoutExpired:
            return _row(target, False, {}, f"no answer within {_CHILD_SECONDS} s")
        if child.returncode != 0 or not result.exists():
            last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
            return _row(target, False, {}, f"loading or running failed: {last[:300]}")
        with np.load(result) as found:
            vectors, integer_calls = found["vectors"], int(found["integer_calls"])
            engine_vectors, engine_calls = found["engine_vectors"], int(found["engine_calls"])
            engine_folded = int(found["engine_folded"])
    if vectors.shape != expected.shape:
        return _row(target, False, {}, f"output shape {vectors.shape}, expected {expected.shape}")
    error = float(np.abs(expected - vectors).max() / np.abs(expected).max())
    checks: dict[str, Any] = {"relative_error": error, "relative_error_allowed": TOLERANCE[target]}
    ok = error <= TOLERANCE[target]  # also false for NaN
    if target != "bitwright":
        return _row(target, ok, checks, "a clean process runs the dequantized weights in float")
    checks |= {"integer_kernel_calls": integer_calls, "integer_kernel_calls_expected": n_integer}
    ok = ok and integer_calls == n_integer
    detail = "a clean process gives the same bits; integer kernels counted"
    if len(engine_vectors):
        length = np.linalg.norm(expected, axis=1)
        distance = float((np.linalg.norm(engine_vectors - expected, axis=1) / length).mean())
        checks |= {"engine_distance": distance, "engine_distance_allowed": ENGINE_TOLERANCE}
        checks |= {"engine_integer_kernel_calls": engine_calls, "engine_folded_calls": engine_folded}
        ok = ok and distance <= ENGINE_TOLERANCE and engine_calls + engine_folded == n_integer
        detail += "; so does the engine, within the rounding of activations"
    return _row(target, ok, checks, detail)


def _row(target: str, ok: bool | None, checks: dict[str, Any], detail: str) -> dict[str, Any]:
    return {"target": target, "ok": ok, "checks": checks, "detail": detail}


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _child(target: str, compute: str, directory: str, given: str, result: str) -> None:
    """Run `directory` in `target` on the given ids; write the vectors and the count of integer kernel calls."""
    import torch

    with np.load(given) as file:
        ids = torch.from_numpy(file["ids"])
    integer_calls = engine_calls = engine_folded = 0
    engine_vectors: Any = np.empty((0, 0), np.float32)
    if target == "bitwright":
        from bitwright.runtime.load import load

        model = load(directory, compute=compute)
        vectors, integer_calls = compared(model.generic, ids)
        if model.generic is not model:
            engine_vectors, engine_calls = compared(model, ids)
            engine_folded = model.folded
    elif target == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        with torch.inference_mode():
            encoder = SentenceTransformer(directory, device="cpu")
            given_ids = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            vectors = encoder(given_ids)["sentence_embedding"].float().numpy()
    else:
        vectors = _plain_transformers(directory, ids)
    np.savez(
        result,
        vectors=vectors,
        integer_calls=integer_calls,
        engine_vectors=engine_vectors,
        engine_calls=engine_calls,
        engine_folded=engine_folded,
    )


def _plain_transformers(directory: str, ids: Any) -> Any:
    """The same vectors from the transformers library alone; only the pooling is ours."""
    import torch
    import transformers

    from bitwright.families.tasks import AUTO_CLASSES
    from bitwright.files.sentences import read_sentences
    from bitwright.files.task import find_task
    from bitwright.models.tensor_files import read_pickled
    from bitwright.runtime.generic_model import GenericModel

    opened = ModelDirectory(Path(directory))
    task = find_task(opened)
    hf = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(directory, dtype=torch.float32).eval()
    sentences = read_sentences(opened, task, read_pickled=read_pickled)
    return compared(GenericModel(hf, None, task, sentences, ids.shape[1], "transformers", opened.path), ids)[0]


if __name__ == "__main__":
    _child(*sys.argv[1:])
