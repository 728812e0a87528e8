"""A clean process that runs an ONNX graph in another runtime, counts the integer kernels that it runs, and times it.

It imports numpy, onnx and the runtime, and nothing of what wrote the graph.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# What ONNX Runtime makes of quantized linears, and of residual additions. Each reads codes, and multiplies or adds
# integers, or unpacks in registers.
ORT_KERNELS = (
    "MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulNBits", "MatMulInteger", "QGemm",
    "QAttention", "QLinearAdd",
)  # fmt: skip
# A tensor of OpenVINO has several names; an output's own is one of these.
OUTPUT_NAMES = ("sentence_embedding", "last_hidden_state", "logits", "start_logits", "end_logits")
_SECONDS = 3.0  # at most, of timing
_ROUNDS = 10

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class OpenedGraph(NamedTuple):
    """inputs, outputs: names. kernels: integer ones by name. run: outputs, in their order, for inputs by name."""

    version: str
    inputs: list[str]
    outputs: list[str]
    kernels: dict[str, int]
    run: Run


def open_onnxruntime(file: Path, threads: int) -> OpenedGraph:
    """In ONNX Runtime on the CPU. Kernels are counted in the graph as its optimizer leaves it."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # an optimized graph is for this machine, which is meant
    with tempfile.TemporaryDirectory(prefix="bitwright-onnx-") as folder:
        optimized = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(optimized)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        nodes = [node.op_type for node in onnx.load(str(optimized), load_external_data=False).graph.node]
    outputs = [output.name for output in session.get_outputs()]
    return OpenedGraph(
        onnxruntime.__version__,
        [given.name for given in session.get_inputs()],
        outputs,
        {kind: nodes.count(kind) for kind in ORT_KERNELS if kind in nodes},
        lambda inputs: session.run(outputs, inputs),
    )


def open_openvino(file: Path, threads: int) -> OpenedGraph:
    """In OpenVINO on the CPU. Kernels are the products of its compiled graph that run in 8 bits, or on packed codes."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    kernels: dict[str, int] = {}
    for node in compiled.get_runtime_model().get_ops():
        told = node.get_rt_info()
        kind, precision = (str(told[key].astype(str)).lower() for key in ("layerType", "runtimePrecision"))
        if kind in ("fullyconnected", "matmul") and precision in ("i8", "u8"):
            kernels[f"{kind} {precision}"] = kernels.get(f"{kind} {precision}", 0) + 1
    request = compiled.create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer(inputs)
        return [np.array(found[output]) for output in compiled.outputs]

    return OpenedGraph(
        openvino.__version__,
        [given.get_any_name() for given in compiled.inputs],
        [next(name for name in OUTPUT_NAMES if name in output.get_names()) for output in compiled.outputs],
        kernels,
        run,
    )


# Target -> how it opens a graph.
OPENERS: dict[str, Callable[[Path, int], OpenedGraph]] = {"onnx": open_onnxruntime, "openvino": open_openvino}


def _child() -> None:
    """Run a graph on ids; write its outputs, and what was counted and timed."""
    target, file, given, result, threads = json.loads(sys.stdin.read())
    with np.load(given) as arrays:
        ids_BT = arrays["ids"]
    opened = OPENERS[target](Path(file), threads)
    known = {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT), "token_type_ids": np.zeros_like(ids_BT)}
    inputs = {name: known[name] for name in opened.inputs}
    outputs = opened.run(inputs)
    told: dict[str, Any] = {"version": opened.version, "kernels": opened.kernels, "seconds": _timed(opened.run, inputs)}
    named: dict[str, Any] = dict(zip(opened.outputs, outputs, strict=True))
    np.savez(result, told=json.dumps(told), **named)


def _timed(run: Run, inputs: dict[str, np.ndarray]) -> float:
    """The median time of a run."""
    taken: list[float] = []
    while len(taken) < _ROUNDS and sum(taken) < _SECONDS:
        begun = time.perf_counter()
        run(inputs)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


if __name__ == "__main__":
    _child()
