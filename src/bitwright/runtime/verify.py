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
from typing import Any

import numpy as np

_CHILD_SECONDS = 600

# The largest difference from the expected output that passes, relative to its largest value. Our own runtime must give
# the same bits; plain readers dequantize the weights and run in float, so they differ by the order of float sums.
TOLERANCE = {"bitwright": 0.0, "transformers": 1e-4, "sentence-transformers": 1e-4}
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
) -> list[dict[str, Any]]:
    """Check `directory` in every target; one row per target, as the Record documents.

    Args:
        ids_BT: int64 token ids, sequences of equal length.
        quantized: float32 (B, values), what the quantized model gives for them: pooled embeddings or logits, flattened.
        dequantized: the same of the float model with every weight replaced by the number that its code stands for.
        n_integer: linears that must run on integer kernels in one forward of the "bitwright" target.
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
            rows.append(_verify_one(directory, target, ids_BT, expected, n_integer))
    return rows


def _verify_one(
    directory: Path, target: str, ids_BT: np.ndarray, expected: np.ndarray, n_integer: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bitwright-verify-") as folder:
        given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
        np.savez(given, ids=ids_BT)
        command = [sys.executable, "-m", "bitwright.runtime.verify", target, str(directory), str(given), str(result)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, env=environment)
        except subprocess.TimeoutExpired:
            return _row(target, False, {}, f"no answer within {_CHILD_SECONDS} s")
        if child.returncode != 0 or not result.exists():
            last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
            return _row(target, False, {}, f"loading or running failed: {last[:300]}")
        with np.load(result) as found:
            vectors, integer_calls = found["vectors"], int(found["integer_calls"])
    if vectors.shape != expected.shape:
        return _row(target, False, {}, f"output shape {vectors.shape}, expected {expected.shape}")
    error = float(np.abs(expected - vectors).max() / np.abs(expected).max())
    checks: dict[str, Any] = {"relative_error": error, "relative_error_allowed": TOLERANCE[target]}
    ok = error <= TOLERANCE[target]  # also false for NaN
    if target != "bitwright":
        return _row(target, ok, checks, "a clean process runs the dequantized weights in float")
    checks |= {"integer_kernel_calls": integer_calls, "integer_kernel_calls_expected": n_integer}
    ok = ok and integer_calls == n_integer
    return _row(target, ok, checks, "a clean process gives the same bits; integer kernels counted")


def _row(target: str, ok: bool | None, checks: dict[str, Any], detail: str) -> dict[str, Any]:
    return {"target": target, "ok": ok, "checks": checks, "detail": detail}


def _importable(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def _child(target: str, directory: str, given: str, result: str) -> None:
    """Run `directory` in `target` on the given ids; write the vectors and the count of integer kernel calls."""
    import torch

    with np.load(given) as file:
        ids = torch.from_numpy(file["ids"])
    mask = torch.ones_like(ids)
    integer_calls = 0
    if target == "bitwright":
        from bitwright.kernels import cpu
        from bitwright.runtime.load import load

        model = load(directory)
        before = cpu.kernel_calls()
        vectors = _flat(model.rows(ids, mask))
        integer_calls = cpu.kernel_calls() - before
    elif target == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        with torch.inference_mode():
            encoder = SentenceTransformer(directory, device="cpu")
            vectors = encoder({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].float().numpy()
    else:
        vectors = _plain_transformers(directory, ids, mask)
    np.savez(result, vectors=vectors, integer_calls=integer_calls)


def _plain_transformers(directory: str, ids: Any, mask: Any) -> Any:
    """The same vectors from the transformers library alone; only the pooling is ours."""
    import torch
    import transformers

    from bitwright.models.load import task_of
    from bitwright.models.pooling import read_pooling
    from bitwright.runtime.model import Model

    path = Path(directory)
    task = task_of(transformers.AutoConfig.from_pretrained(directory))
    classes = {
        "embedding": transformers.AutoModel,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "question-answering": transformers.AutoModelForQuestionAnswering,
    }
    hf = classes[task].from_pretrained(directory, dtype=torch.float32).eval()
    return _flat(Model(hf, None, task, read_pooling(path), ids.shape[1], "transformers", path).rows(ids, mask))


def _flat(rows: list[np.ndarray]) -> np.ndarray:
    """(B, values): what the model gives for each of B sequences of equal length."""
    return np.stack([row.reshape(-1) for row in rows])


if __name__ == "__main__":
    _child(*sys.argv[1:])
