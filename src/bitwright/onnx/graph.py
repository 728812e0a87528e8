"""Puts a checkpoint's codes into an exported graph, in the operators from which ONNX Runtime makes integer kernels.

N output features, K input features, G groups. A linear reads x and puts out y (`rewritten`):

    8-bit weights, static inputs    x ─ QuantizeLinear(u8) ─ DequantizeLinear ─┐
                                    codes (K, N) s8 ─ DequantizeLinear(axis 1) ┴ MatMul ─ Add(bias)
                                    → MatMulIntegerToFloat

    8-bit weights, dynamic inputs   x ─ DynamicQuantizeLinear ─ MatMulInteger(codes) ─ Cast ─ Mul(scales) ─ Add(bias)
                                    → DynamicQuantizeMatMul, or MatMulIntegerToFloat where several linears read x

    weights alone, 4 or 8 bits      codes (K, N) ─ DequantizeLinear(axis 0, block_size) ─ MatMul(x, ·) ─ Add(bias)
                                    → MatMulNBits

An input transform is a Sub and a Mul before. Weights lie as (K, N), because the last fusion takes no other layout.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bitwright.errors import TargetError, named
from bitwright.numerics.arrays import as_numpy, dtype_name, raw_bytes
from bitwright.numerics.bits import check_fit
from bitwright.numerics.linear import InputTransform, PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.onnx.kinds import Kind, block_size, kind_of
from bitwright.onnx.module import DOMAIN, LINEAR, TABLE

WeightRange = Literal["8bit", "7bit"]


def rewritten(
    model: ModelProto, layers: Mapping[str, PendingLinear], tables: Mapping[str, Any], weights: WeightRange
) -> Counter[str]:
    """Replace every placeholder of a graph in place.

    weights: "7bit" halves 8-bit codes to ±64, so that two products u8 × s8 fit in 16 bits.

    Returns:
        The number of linears by kind, each as often as it runs; and of those that read only constants (DeBERTa's
        projections of relative positions), which a runtime computes while it loads, as "folded".

    Raises:
        TargetError: a linear that ONNX has no operators for.
    """
    writer, counts = _Writer(), Counter[str]()
    varying = {given.name for given in model.graph.input}
    for node in model.graph.node:
        varies = not varying.isdisjoint(node.input) or any(part.HasField("g") for part in node.attribute)
        varying.update(node.output if varies else ())
        if node.domain != DOMAIN:
            writer.nodes.append(node)
            continue
        name = helper.get_node_attr_value(node, "name").decode()
        if node.op_type == TABLE:
            table = tables[name]
            put = writer.table if isinstance(table, QTensor) else writer.half_table
            put(name, tables[name], node.input[0], node.output[0])
            continue
        assert node.op_type == LINEAR
        pending = layers[name]
        kind, linear = kind_of(name, pending.form, pending.shape[1]), pending.load()
        counts[kind if varies else "folded"] += 1
        if weights == "7bit" and kind != "weights":
            linear = halved(name, linear)
        writer.linear(name, linear, kind, node.input[0], node.output[0])
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes)
    model.graph.initializer.extend(writer.initializers.values())
    kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return counts


def halved(name: str, linear: QuantizedLinear) -> QuantizedLinear:
    """The linear with codes of half the size, to nearest (ties to even), and a scale of twice the size. 255 · 64 · 2
    fits into int16, 255 · 127 · 2 does not.

    Raises:
        TargetError: weights with zero points.
    """
    if linear.weight.zero_point_NG is not None:
        raise TargetError(f"{name}: 7-bit weights need symmetric codes, and these have zero points; use 8bit")
    codes = np.rint(linear.weight.codes_NK.astype(np.float32) / 2).astype(np.int8)
    return replace(
        linear, weight=replace(linear.weight, codes_NK=codes, scale_NG=np.float32(2) * linear.weight.scale_NG)
    )


@dataclass(slots=True)
class _Writer:
    """The nodes and constants of a graph in the making.

    rounded: what an input has become by one transform and grid: linears that read the same share it.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    rounded: dict[Any, tuple[str, ...]] = field(default_factory=dict)
    n_names: Counter[str] = field(default_factory=Counter)

    def linear(self, name: str, linear: QuantizedLinear, kind: Kind, x: str, y: str) -> None:
        x = self._transformed(name, linear.transform, x)
        product = self._name(name, "product") if linear.bias_N is not None else y
        _KINDS[kind](self, name, linear, x, product)
        if linear.bias_N is not None:
            self.add("Add", name, [product, self.constant(f"{name}.bias", linear.bias_N)], [y])

    def table(self, name: str, table: QTensor, ids: str, y: str) -> None:
        """Look up codes, then make numbers of them: the table stays in 8 bits."""
        codes = self.constant(f"{name}.codes", as_numpy(table.codes_NK))
        scale = self.constant(f"{name}.scale", as_numpy(table.scale_NG))
        (rows,) = self.add("Gather", name, [codes, ids])
        (floats,) = self.add("Cast", name, [rows], to=TensorProto.FLOAT)
        (scales,) = self.add("Gather", name, [scale, ids])
        self.add("Mul", name, [floats, scales], [y])

    def half_table(self, name: str, table: Any, ids: str, y: str) -> None:
        """Look up rows of a table in 16 bits, a tensor of torch, then widen those."""
        key = f"{name}.weight"
        if key not in self.initializers:
            kind = TensorProto.BFLOAT16 if dtype_name(table) == "bfloat16" else TensorProto.FLOAT16
            self.initializers[key] = helper.make_tensor(key, kind, table.shape, bytes(raw_bytes(table)), raw=True)
        (rows,) = self.add("Gather", name, [key, ids])
        self.add("Cast", name, [rows], [y], to=TensorProto.FLOAT)

    def static(self, name: str, linear: QuantizedLinear, x: str, y: str) -> None:
        grid = linear.static
        assert grid is not None
        key = ("static", x, grid.scale, grid.zero_point)
        if key not in self.rounded:
            # Our codes are signed; ONNX Runtime's fast kernels take unsigned inputs.
            scale = self.constant(f"{name}.input_scale", np.float32(grid.scale))
            zero = self.constant(f"{name}.input_zero_point", np.uint8(grid.zero_point + 128))
            self.rounded[key] = (*self.add("QuantizeLinear", name, [x, scale, zero]), scale, zero)
        (inputs,) = self.add("DequantizeLinear", name, list(self.rounded[key]))
        weight = self.add("DequantizeLinear", name, list(self._columns(name, linear.weight)), axis=1)
        self.add("MatMul", name, [inputs, *weight], [y])

    def dynamic(self, name: str, linear: QuantizedLinear, x: str, y: str) -> None:
        key = ("dynamic", x)
        if key not in self.rounded:
            self.rounded[key] = self.add("DynamicQuantizeLinear", name, [x], n_outputs=3)
        codes, scale, zero = self.rounded[key]
        weight, weight_scale, weight_zero = self._columns(name, linear.weight)
        (sums,) = self.add("MatMulInteger", name, [codes, weight, zero, weight_zero])
        (floats,) = self.add("Cast", name, [sums], to=TensorProto.FLOAT)
        (scales,) = self.add("Mul", name, [scale, weight_scale])
        self.add("Mul", name, [floats, scales], [y])

    def weights(self, name: str, linear: QuantizedLinear, x: str, y: str) -> None:
        weight = linear.weight
        k = linear.shape[1]
        block = block_size(name, k, weight.spec.group_size)
        repeats = (k // block) // weight.scale_NG.shape[1]  # a long group is several blocks with the same scale

        def blocks(values_NG: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.repeat(values_NG, repeats, axis=1).T)

        bits = weight.spec.bits
        given = [
            self.integers(f"{name}.codes", np.ascontiguousarray(weight.codes_NK.T), bits),
            self.constant(f"{name}.scale", blocks(weight.scale_NG.astype(np.float32))),
        ]
        if weight.zero_point_NG is not None:
            given.append(self.integers(f"{name}.zero_point", blocks(weight.zero_point_NG), bits))
        found = self.add("DequantizeLinear", name, given, axis=0, block_size=block)
        self.add("MatMul", name, [x, *found], [y])

    def add(
        self, kind: str, name: str, given: list[str], made: list[str] | None = None, n_outputs: int = 1,
        **attributes: Any,
    ) -> tuple[str, ...]:  # fmt: skip
        """Add a node; the names of its outputs, new ones unless they are given."""
        made = made or [self._name(name, kind) for _ in range(n_outputs)]
        self.nodes.append(helper.make_node(kind, given, made, name=self._name(name, f"{kind}_node"), **attributes))
        return tuple(made)

    def constant(self, name: str, values: Any) -> str:
        """Add a constant, once."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def integers(self, name: str, values: np.ndarray, bits: int) -> str:
        """Add signed integers of 4 or 8 bits, once; of 4 bits two to a byte, the first in the low half.

        Raises:
            NumericsError: one that does not fit.
        """
        if bits == 8:
            return self.constant(name, values)
        if name not in self.initializers:
            with named(name):
                check_fit(values, -8, 7, "4 bits", "integers")
            flat = values.reshape(-1).view(np.uint8) & 15
            flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
            packed = flat[::2] | flat[1::2] << 4
            self.initializers[name] = helper.make_tensor(
                name, TensorProto.INT4, values.shape, packed.tobytes(), raw=True
            )
        return name

    def _columns(self, name: str, weight: QTensor) -> tuple[str, str, str]:
        """Codes (K, N), and scale and zero point of each column."""
        n = weight.shape[0]
        zero = weight.zero_point_NG
        zeros = np.zeros(n, np.int8) if zero is None else np.broadcast_to(zero.reshape(-1), n)
        scales = np.broadcast_to(weight.scale_NG.astype(np.float32).reshape(-1), n)
        return (
            self.constant(f"{name}.codes", np.ascontiguousarray(weight.codes_NK.T)),
            self.constant(f"{name}.scale", np.ascontiguousarray(scales)),
            self.constant(f"{name}.zero_point", np.ascontiguousarray(zeros)),
        )

    def _transformed(self, name: str, transform: InputTransform | None, x: str) -> str:
        if transform is None:
            return x
        parts = (("Sub", "shift", transform.shift_K), ("Mul", "reciprocal", _reciprocal(transform.scale_K)))
        for kind, what, values_K in parts:
            if values_K is None:
                continue
            key = (kind, x, values_K.tobytes())
            if key not in self.rounded:
                constant = self.constant(f"{name}.input_{what}", values_K)
                self.rounded[key] = self.add(kind, name, [x, constant])
            (x,) = self.rounded[key]
        return x

    def _name(self, name: str, what: str) -> str:
        """A name that no other tensor or node has."""
        self.n_names[f"{name}/{what}"] += 1
        return f"{name}/{what}_{self.n_names[f'{name}/{what}']}"


def _reciprocal(scale_K: np.ndarray | None) -> np.ndarray | None:
    return None if scale_K is None else np.float32(1) / scale_K


_KINDS: dict[Kind, Callable[[_Writer, str, QuantizedLinear, str, str], None]] = {
    "static": _Writer.static,
    "dynamic": _Writer.dynamic,
    "weights": _Writer.weights,
}
