"""Proves an ONNX graph in a clean process: its outputs against the engine's, and the integer kernels that really run.

Where the graph rounds as the engine does, the two lie as near as two roundings of one model may (`tolerances.py`).
Where it computes in another arithmetic (`_LEAST`), a faulty graph is caught, and the cosine shows what that costs.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.errors import CheckpointError, EngineError, foreign
from bitwright.kernels import dispatch
from bitwright.kernels.processors import default_threads
from bitwright.onnx.write import LINEARS_KEY, MODEL_FILE, RANGE_KEY, RESIDUAL
from bitwright.parsing import parse_json
from bitwright.record import Verification
from bitwright.runtime.expected import Expected
from bitwright.runtime.time_limit import killed_after, seconds_allowed
from bitwright.runtime.tolerances import engine_distances
from bitwright.runtime.verify_library import mean_cosine

# Target -> its name, and the packages that it needs.
RUNTIMES = {"onnx": ("ONNX Runtime", ("onnx", "onnxruntime")), "openvino": ("OpenVINO", ("openvino",))}

# The least mean cosine to the engine's outputs where the graph computes in another arithmetic, by kind of linear:
# one scale for all tokens of a batch; inputs of 4-bit weights rounded in blocks, as ONNX Runtime does by default. On
# models that 8 bits suit at all both cost less than this; a wrong linear costs all. 7 bits cost as much as one scale,
# and so do residual additions in 8 bits.
_LEAST = {"dynamic": 0.95, "weights": 0.99, RESIDUAL: 0.95}
_LEAST_7BIT = 0.95


def verify_graph(directory: Path, expected: Expected, target: str = "onnx") -> Verification:
    """Check the graph of an exported directory in a runtime; the Record's row.

    expected: of the checkpoint that it was made from. target: one of `RUNTIMES`.
    """
    name, needs = RUNTIMES[target]
    if missing := [package for package in needs if find_spec(package) is None]:
        return Verification(target, None, {}, f"not checked, because {', '.join(missing)} is not installed")
    file = directory / MODEL_FILE
    linears, weights = _metadata(file)
    try:
        told, outputs = _run_in_process(target, file, expected.ids_BT)
    except EngineError as error:
        return Verification(target, False, {}, f"loading or running failed: {error}")
    found_BV = _flat(outputs)
    if found_BV.shape != expected.engine_BV.shape:
        shapes = f"{found_BV.shape}, but {expected.engine_BV.shape} is expected"
        return Verification(target, False, {}, f"the outputs have the shape {shapes}")
    checks, faults = _compared(found_BV, expected, _least_cosine(linears, weights))
    counts, wanted = told["kernels"], sum(linears.values()) - linears.get("folded", 0)
    checks |= {"integer_kernels": sum(counts.values()), "integer_kernels_expected": wanted}
    checks |= {"seconds": told["seconds"]}
    if checks["integer_kernels"] < wanted and not (target == "openvino" and "weights" in linears):
        faults.append(
            f"{name} runs {checks['integer_kernels']:.0f} integer kernels, but the graph has {wanted} quantized linears"
            + " and additions" * (RESIDUAL in linears)
        )
    kernels = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    detail = f"{name} {told['version']} on {_instructions()}: {kernels or 'no integer kernel'}; {_words(checks)}"
    return Verification(target, not faults, checks, "; ".join([*faults, detail, *_hints(target, linears, weights)]))


def _least_cosine(linears: Mapping[str, int], weights: str) -> float | None:
    """The least mean cosine to the engine's outputs; None where the graph rounds as the engine does: the same codes,
    and inputs on the same grid.
    """
    found = [least for kind, least in _LEAST.items() if kind in linears]
    if weights == "7bit" and {"static", "dynamic"} & set(linears):
        found.append(_LEAST_7BIT)
    return min(found, default=None)


def _compared(found_BV: np.ndarray, expected: Expected, least: float | None) -> tuple[dict[str, float], list[str]]:
    """The measurements, and the faults that they show."""
    checks = {
        "cosine": mean_cosine(found_BV, expected.engine_BV),
        "cosine_to_dequantized": mean_cosine(found_BV, expected.plain_BV),
    }
    if least is not None:
        checks["cosine_allowed"] = least
        if checks["cosine"] >= least:  # false for NaN
            return checks, []
        return checks, [f"the mean cosine to the engine's outputs is {checks['cosine']:.4f}, but {least} is expected"]
    distances = engine_distances(found_BV, [expected.generic_BV, expected.bf16_BV], expected.plain_BV)
    # The law of two computations that round on their own, said of the graph.
    checks |= {key.removeprefix("engine_"): value for key, value in distances.items()}
    faults = []
    for key, other in (("distance", "the generic path"), ("float_distance", "the dequantized weights")):
        if not checks[key] <= checks[f"{key}_allowed"]:
            allowed = checks[f"{key}_allowed"]
            faults.append(f"its outputs differ by {checks[key]:.2g} from those of {other}; {allowed:.2g} is allowed")
    return checks, faults


def _words(checks: Mapping[str, float]) -> str:
    return f"mean cosine to the engine {checks['cosine']:.4f}; {1000 * checks['seconds']:.1f} ms for 32 texts"


def _hints(target: str, linears: Mapping[str, int], weights: str) -> list[str]:
    hints = []
    if target == "openvino" and "dynamic" in linears:
        hints.append("OpenVINO computes dynamic 8-bit inputs in float; quantize with w8a8_static for it")
    if "dynamic" in linears:
        hints.append("inputs are rounded with one scale for all tokens of a batch, where the engine has one per token")
    if weights == "8bit" and {"static", "dynamic"} & set(linears) and saturates():
        hints.append("this processor adds u8 × s8 products in 16 bits, which saturates; export with --onnx-range 7bit")
    return hints


def saturates() -> bool:
    """Whether ONNX Runtime's 8-bit kernels may saturate here: x86 without VNNI."""
    found = {name for name, there in dispatch.cpu_features().items() if there}
    return "avx2" in found and not any("vnni" in name for name in found)


def _instructions() -> str:
    """The instruction set that this processor has for 8-bit products."""
    return dispatch.active_isa() if dispatch.available() else "an unknown processor"


def _metadata(file: Path) -> tuple[dict[str, int], str]:
    """Linears by kind, and the range of 8-bit weights.

    Raises:
        CheckpointError: no graph, or one that is not ours.
    """
    import onnx

    if not file.is_file():
        raise CheckpointError(f"{file}: there is no such file; `bitwright export` writes it")
    with foreign(f"{file}: this is no ONNX graph", CheckpointError):
        told = {entry.key: entry.value for entry in onnx.load(str(file), load_external_data=False).metadata_props}
    try:
        linears = parse_json(told.get(LINEARS_KEY, "").encode())
    except (ValueError, RecursionError):
        linears = None
    if not isinstance(linears, dict) or any(type(count) is not int or count < 0 for count in linears.values()):
        raise CheckpointError(f"{file}: `bitwright export` did not write this graph, so it cannot be checked")
    return linears, told.get(RANGE_KEY, "8bit")


def _flat(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The outputs that are compared, float32 (B, values), as `runtime.verify.compared` has them."""
    if "start_logits" in outputs:
        found = np.stack([outputs["start_logits"], outputs["end_logits"]], axis=1)
    else:
        found = outputs["sentence_embedding" if "sentence_embedding" in outputs else "logits"]
    return found.reshape(len(found), -1).astype(np.float32)


def _run_in_process(target: str, file: Path, ids_BT: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `process.py` tells, and the graph's outputs by name.

    Raises:
        EngineError: the runtime cannot load or run the graph, or does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="bitwright-onnx-") as folder:
        given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
        np.savez(given, ids=ids_BT)
        size = sum(part.stat().st_size for part in file.parent.iterdir())
        seconds = seconds_allowed(size, 12 * ids_BT.size)
        threads = default_threads()
        with subprocess.Popen(
            [sys.executable, "-m", "bitwright.onnx.process"], text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as child, killed_after(child, seconds) as late:  # fmt: skip
            _, said = child.communicate(json.dumps([target, *map(str, (file.resolve(), given, result)), threads]))
        if late.is_set():
            raise EngineError(f"the process gave no answer within {seconds:.0f} s, and was killed")
        if child.returncode != 0:
            last = (said.strip().splitlines() or [f"the process ended with exit status {child.returncode}"])[-1]
            raise EngineError(last[:300])
        with np.load(result) as arrays:
            outputs = dict(arrays)
    return json.loads(str(outputs.pop("told"))), outputs
