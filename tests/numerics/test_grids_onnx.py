"""Codes and values are bit-exact with ONNX QuantizeLinear and DequantizeLinear, as ONNX Runtime runs them."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitwright.numerics import QuantSpec, quantize
from bitwright.numerics.qtensor import scale_shape

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

N, K, GROUP = 6, 64, 16
OPSET = {8: 21, 4: 21, 2: 25}  # the first that knows both the type and blocks


def onnx_codes_and_values(
    x_NK: Tensor, scale_NG: Tensor, zero_NG: NDArray[Any], bits: int, signed: bool
) -> tuple[Tensor, Tensor]:
    """Codes (read out by DequantizeLinear with scale 1) and dequantized values: float32 (N, K) each."""
    helper, kind = onnx.helper, getattr(onnx.TensorProto, f"{'' if signed else 'U'}INT{bits}")
    per_tensor, per_row = scale_NG.numel() == 1, scale_NG.shape[1] == 1
    shape = () if per_tensor else (N,) if per_row else tuple(scale_NG.shape)
    layout = {"axis": 1, "block_size": GROUP} if len(shape) == 2 else {"axis": 0}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **layout),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["values"], **layout),
        helper.make_node("DequantizeLinear", ["q", "one", "none"], ["codes"]),
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "parity",
        [helper.make_tensor_value_info("x", float32, [N, K])],
        [helper.make_tensor_value_info(name, float32, [N, K]) for name in ("codes", "values")],
        [
            onnx.numpy_helper.from_array(scale_NG.numpy().reshape(shape), "scale"),
            helper.make_tensor("zero", kind, shape, zero_NG.flatten().tolist()),
            onnx.numpy_helper.from_array(np.float32(1), "one"),
            helper.make_tensor("none", kind, (), [0]),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET[bits])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    codes, values = session.run(["codes", "values"], {"x": x_NK.numpy()})
    return torch.from_numpy(codes), torch.from_numpy(values)


def random_values(scale_NK: Tensor, generator: torch.Generator) -> Tensor:
    """Mostly inside an 8-bit grid, some far outside."""
    return torch.randn(N, K, generator=generator) * scale_NK * 60


def near_ties(scale_NK: Tensor, generator: torch.Generator) -> Tensor:
    """Halfway between two codes, one float32 to either side of it, signed zeros, the largest and smallest numbers."""
    ties = (torch.randint(-140, 140, (N, K), generator=generator) + 0.5) * scale_NK
    ties[:, 0::4] = torch.nextafter(ties[:, 0::4], torch.tensor(torch.inf))
    ties[:, 1::4] = torch.nextafter(ties[:, 1::4], torch.tensor(-torch.inf))
    ties[:, :8] = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1.5e5, -1.5e5, 0.1])
    return ties


@pytest.mark.parametrize("values", [random_values, near_ties])
@pytest.mark.parametrize("exact_scales", [True, False], ids=["power-of-two scales", "any scales"])
@pytest.mark.parametrize(
    "granularity", [{"per_tensor": True}, {}, {"group_size": GROUP}], ids=["tensor", "row", "group"]
)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_bit_exact(
    bits: int, symmetric: bool, signed: bool, granularity: dict[str, Any], exact_scales: bool, values: Any
) -> None:
    spec = QuantSpec(bits=bits, symmetric=symmetric, full_range=True if symmetric else None, **granularity)
    generator = torch.Generator().manual_seed(bits)
    shape = scale_shape(N, K, spec)
    scale = torch.rand(shape, generator=generator) * 3 + 0.01
    if exact_scales:  # then (code + ½) · scale is a tie exactly
        scale = torch.exp2(torch.randint(-8, 3, shape, generator=generator).float())
    zero = None
    if not symmetric:
        zero = torch.randint(spec.code_min, spec.code_max + 1, shape, generator=generator).to(torch.int8)
    x = values(scale.repeat_interleave(K // shape[1], dim=1).expand(N, K), generator)

    q = quantize(x, scale, zero, spec)

    shift = 0 if signed else 2 ** (bits - 1)  # an unsigned format shifts codes and zero point alike
    onnx_zero = (torch.zeros(shape) if zero is None else zero).numpy().astype(np.int64) + shift
    codes, dequantized = onnx_codes_and_values(x, scale, onnx_zero, bits, signed)
    assert torch.equal(q.codes_NK.float() + shift, codes)
    assert torch.equal(q.dequantize(), dequantized)
