"""Residual additions of a graph in 8 bits: both inputs and the sum lie on static grids, so a runtime may add codes.

    a ─ QuantizeLinear(u8) ─ DequantizeLinear ─┐
    b ─ QuantizeLinear(u8) ─ DequantizeLinear ─┴ Add ─ QuantizeLinear(u8) ─ DequantizeLinear
    → QLinearAdd

The checkpoint knows no grids for them, so the graph itself is run on texts first. The residual stream has outliers, and
one scale for a whole tensor is coarse there: this is an option, for runtimes that gain by it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bitwright.onnx.module import DOMAIN, LINEAR

Range = tuple[float, float]


def residual_sums(model: ModelProto) -> list[str]:
    """The outputs of additions of a linear's output and another tensor that texts decide. model: with placeholders."""
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    constant |= {name for name, node in made_by.items() if node.op_type == "Constant"}
    linears = {node.output[0] for node in graph.node if (node.domain, node.op_type) == (DOMAIN, LINEAR)}

    def is_residual(node: NodeProto) -> bool:
        given = set(node.input)
        return node.op_type == "Add" and len(given & linears) == 1 and constant.isdisjoint(given)

    return [node.output[0] for node in graph.node if is_residual(node)]


def quantize_residuals(model: ModelProto, sums: Sequence[str], batches: Sequence[np.ndarray]) -> int:
    """Put grids around these additions of a finished graph, in place; their number.

    batches: int64 token ids (B, T) of texts, from which the ranges come.
    """
    adds = {node.output[0]: node for node in model.graph.node if node.output[0] in sums}
    ranges = _ranges(model, [name for node in adds.values() for name in (*node.input, *node.output)], batches)
    nodes: list[NodeProto] = []
    rounded: dict[str, str] = {}

    def grid(name: str, made: str) -> None:
        """`made` is what `name` is on its grid."""
        low, high = min(ranges[name][0], 0.0), max(ranges[name][1], 0.0)
        scale = np.float32((high - low) / 255 or 1.0)
        parts = {"scale": scale, "zero_point": np.uint8(np.clip(np.rint(-low / scale), 0, 255))}
        for what, value in parts.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{made}/{what}"))
        constants = [f"{made}/{what}" for what in parts]
        codes = f"{made}/codes"
        nodes.append(helper.make_node("QuantizeLinear", [name, *constants], [codes], name=f"{made}/quantize"))
        nodes.append(helper.make_node("DequantizeLinear", [codes, *constants], [made], name=f"{made}/dequantize"))

    for node in model.graph.node:
        if node.output[0] not in adds:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name not in rounded:
                rounded[name] = f"{name}/residual"
                grid(name, rounded[name])
            node.input[i] = rounded[name]
        total = node.output[0]
        node.output[0] = f"{total}/exact"
        ranges[node.output[0]] = ranges[total]
        nodes.append(node)
        grid(node.output[0], total)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(adds)


def _ranges(model: ModelProto, names: Sequence[str], batches: Sequence[np.ndarray]) -> dict[str, Range]:
    """The least and the largest value of tensors over texts, in ONNX Runtime."""
    import onnxruntime

    watched = ModelProto()
    watched.CopyFrom(model)
    wanted = list(dict.fromkeys(names))
    known = {output.name for output in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, Range] = {}
    for ids_BT in batches:
        full = {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT), "token_type_ids": np.zeros_like(ids_BT)}
        given: dict[str, Any] = {entry.name: full[entry.name] for entry in session.get_inputs()}
        for name, values in zip(wanted, session.run(wanted, given), strict=True):
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(values.min())), max(high, float(values.max())))
    return found
