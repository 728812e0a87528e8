"""An exported ONNX graph beside ONNX Runtime's own dynamic INT8 of the float model: accuracy, then time.

    BITWRIGHT_EVAL_DATA=data python benchmarks/onnx_encoder.py EXPORT --float ORIGINAL --threads 1 --json onnx.json

Accuracy as in accuracy.py, which says what the rows are. Time: the median of a run of each graph, in turn, in ONNX
Runtime; `ratio` is that of the export to that of ONNX Runtime's own. That is `quantize_dynamic` per channel, as its
documentation has it, of the graph that torch exports.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bitwright.onnx.process import OpenedGraph, open_onnxruntime
from bitwright.onnx.write import MODEL_FILE

sys.path.insert(0, str(Path(__file__).parent))

SHAPES = [(1, 16), (1, 128), (8, 128), (32, 32)]
ROUNDS = 30


def main() -> None:
    """Measure, print, and write JSON on request."""
    parser = argparse.ArgumentParser(description="An exported ONNX graph beside ONNX Runtime's own dynamic INT8.")
    parser.add_argument("directory", type=Path, help="what `bitwright export` wrote")
    parser.add_argument("--float", dest="original", required=True, help="directory of the float model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    export = open_onnxruntime(options.directory / MODEL_FILE, options.threads)
    rows = [*accuracy(options.directory, options.original, export)]
    with tempfile.TemporaryDirectory() as folder:
        own = open_onnxruntime(quantized_by_onnxruntime(options.original, Path(folder)), options.threads)
        rows += times(export, own)
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def accuracy(directory: Path, original: str, export: OpenedGraph) -> Iterator[dict[str, Any]]:
    """The rows of accuracy.py for the graph; nothing without data."""
    from accuracy import float_encode, measure

    data = os.environ.get("BITWRIGHT_EVAL_DATA")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)

    def encode(texts: Any) -> np.ndarray:
        found = []
        for text in texts:  # no text is padded
            tokens = tokenizer(text, truncation=True, return_tensors="np")
            inputs = {name: tokens[name].astype(np.int64) for name in export.inputs}
            found.append(export.run(inputs)[export.outputs.index("sentence_embedding")][0])
        return np.stack(found)

    return measure(Path(data), encode, float_encode(original)) if data else iter(())


class _TokenVectors(torch.nn.Module):
    """The model with its inputs in the order of the export."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def quantized_by_onnxruntime(original: str, folder: Path) -> Path:
    """ONNX Runtime's dynamic INT8 of the float model."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = transformers.AutoModel.from_pretrained(original, attn_implementation="eager", dtype=torch.float32).eval()
    names = ["input_ids", "attention_mask"]
    example = (torch.full((2, 8), 5), torch.tensor([[1] * 8, [1] * 5 + [0] * 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _TokenVectors(model), example, str(folder / "float.onnx"), input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "batch", 1: "tokens"} for name in names}, opset_version=17, dynamo=False,
        )  # fmt: skip
    quantize_dynamic(folder / "float.onnx", folder / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return folder / "model.onnx"


def times(export: OpenedGraph, own: OpenedGraph) -> Iterator[dict[str, Any]]:
    """A row for each shape."""
    for batch, tokens in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, tokens))
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        taken: dict[str, list[float]] = {"export": [], "onnxruntime": []}
        for _ in range(ROUNDS):
            for name, graph in (("export", export), ("onnxruntime", own)):
                inputs = {given: known[given] for given in graph.inputs}
                begun = time.perf_counter()
                graph.run(inputs)
                taken[name].append(time.perf_counter() - begun)
        medians = {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}
        ratio = medians["export"] / medians["onnxruntime"]
        yield (
            {"shape": f"{batch}x{tokens}"} | {f"{name}_ms": value for name, value in medians.items()} | {"ratio": ratio}
        )


if __name__ == "__main__":
    main()
