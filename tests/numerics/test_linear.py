"""`QuantizedLinear`: its algebra in numpy and in torch, the conditions that hold, and what imports torch."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright
from bitwright.errors import NumericsError
from bitwright.numerics.linear import FloatLinear, InputTransform, QuantizedLinear, StaticGrid, ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

N, K, M = 6, 8, 5
SOURCE = Path(bitwright.__file__).parent


def linear_of(kind: str, *, transform: bool = True) -> QuantizedLinear:
    random = np.random.default_rng(0)
    codes = random.integers(-127, 128, (N, K), dtype=np.int8)
    weight = QTensor(codes, random.uniform(0.1, 1, (N, 1)).astype(np.float32), None, QuantSpec())
    change = InputTransform(random.uniform(0.5, 2, K).astype(np.float32), random.standard_normal(K).astype(np.float32))
    linear = QuantizedLinear(
        weight, random.standard_normal(N).astype(np.float32), transform=change if transform else None
    )
    return linear if kind == "numpy" else linear.torch()


def inputs(kind: str) -> Any:
    x_MK = np.random.default_rng(1).standard_normal((M, K)).astype(np.float32)
    return x_MK if kind == "numpy" else torch.from_numpy(x_MK)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_effective_computes_on_x_what_the_linear_computes_on_what_it_sees(kind: str) -> None:
    linear, x_MK = linear_of(kind), inputs(kind)
    weight_NK, bias_N = linear.effective()
    want = linear.seen(x_MK) @ linear.weight.dequantize().T + linear.bias_N
    np.testing.assert_allclose(x_MK @ weight_NK.T + bias_N, want, rtol=1e-4, atol=1e-3)
    assert linear.transform is not None
    absorbed = linear.transform.absorbed(weight_NK)
    np.testing.assert_allclose(absorbed, linear.weight.dequantize(), rtol=1e-5)
    plain = linear_of(kind, transform=False)
    assert plain.effective()[1] is plain.bias_N
    assert plain.seen(x_MK) is x_MK


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_unseen_undoes_seen(kind: str) -> None:
    transform, x_MK = linear_of(kind).transform, inputs(kind)
    assert transform is not None
    for one in (transform, InputTransform(transform.scale_K), InputTransform(shift_K=transform.shift_K)):
        np.testing.assert_allclose(one.unseen(one.seen(x_MK)), x_MK, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_rows_are_those_of_the_whole(kind: str) -> None:
    linear = linear_of(kind)
    part, (weight_NK, bias_N) = linear.rows(2, 5), linear.effective()
    assert part.shape == (3, K)
    assert np.array_equal(part.effective()[0], weight_NK[2:5])
    np.testing.assert_allclose(part.effective()[1], bias_N[2:5], rtol=1e-5)
    floats = FloatLinear(weight_NK, bias_N).rows(2, 5)
    assert np.array_equal(floats.widened(), weight_NK[2:5])


def test_torch_is_a_view() -> None:
    linear = linear_of("numpy")
    other = linear.torch()
    assert (other.form, other.shape) == (linear.form, linear.shape)
    other.weight.codes_NK[0, 0] = 5
    other.bias_N[0] = 7.0
    assert (linear.weight.codes_NK[0, 0], linear.bias_N[0]) == (5, 7.0)
    linear.weight.codes_NK.flags.writeable = False
    linear.torch().weight.codes_NK[0, 0] = 6  # a copy of what must not be written
    assert linear.weight.codes_NK[0, 0] == 5


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_conditions(kind: str) -> None:
    linear = linear_of(kind)
    static, dynamic = QuantSpec(symmetric=False, per_tensor=True), QuantSpec(dynamic=True)
    symmetric = QuantSpec(per_tensor=True)
    replace(linear, input_spec=static, static=StaticGrid(0.5, -3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input_spec": dynamic, "static": StaticGrid(1.0)}, "dynamic = True, but input_scale is given"),
        ({"input_spec": static}, "dynamic = False, but input_scale is absent"),
        ({"static": StaticGrid(1.0)}, "float inputs, but input_scale is given"),
        ({"input_spec": symmetric, "static": StaticGrid(1.0, 4)}, "inputs are symmetric, but input_zero_point = 4"),
        ({"bias_N": linear.bias_N[1:]}, r"bias must be float32 \(6,\)"),
        ({"bias_N": linear.weight.codes_NK[:, 0]}, r"bias must be float32 \(6,\)"),
        ({"transform": InputTransform(linear.bias_N**2 + 1)}, r"the input transform must be float32 \(8,\)"),
    ]
    for change, message in wrong:
        with pytest.raises(NumericsError, match=message):
            replace(linear, **change)
    with pytest.raises(NumericsError, match="an input_shift_K, but no bias"):
        replace(linear, bias_N=None).effective()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), 1e-42])
def test_scales_that_cannot_be_divided_by(scale: float) -> None:
    with pytest.raises(NumericsError, match="input_scale = "):
        StaticGrid(scale)
    for ones in (np.ones(K, np.float32), torch.ones(K)):
        with pytest.raises(NumericsError, match="input_scale_K = "):
            InputTransform(ones * scale)


def test_grids_and_transforms_that_are_none() -> None:
    for zero_point in (-129, 128):
        with pytest.raises(NumericsError, match="an integer from -128 to 127"):
            StaticGrid(1.0, zero_point)
    with pytest.raises(NumericsError, match="has neither a scale nor a shift"):
        InputTransform()
    with pytest.raises(NumericsError, match=r"input_shift_K = .*must be finite"):
        InputTransform(shift_K=torch.tensor([1.0, torch.inf]))
    with pytest.raises(NumericsError, match=r"input_scale_K must be floating \(K,\)"):
        InputTransform(np.ones((1, K), np.float32))


def test_ready() -> None:
    linear = linear_of("torch")
    pending = ready(linear)
    assert (pending.shape, pending.form, pending.load()) == (linear.shape, linear.form, linear)


def test_the_floor_of_both_doors_imports_no_torch() -> None:
    names = [f"bitwright.numerics.{name}" for name in ("arrays", "qtensor", "linear", "levels", "bits", "spec")]
    names += [f"bitwright.files.{file.stem}" for file in (SOURCE / "files").glob("[a-z]*.py")]
    reading = ("read", "formats", "linear_tensors", "quantization_config", "schemes")
    names += [f"bitwright.checkpoints.{name}" for name in reading]
    code = f"import sys, {', '.join(names)}; assert not {{'torch', 'transformers'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_tensor_bits_are_unpacked_at_one_place() -> None:
    """Only `numerics/bits.py` shifts stored codes of our formats, and `ggml.py` those of GGUF. Others that shift:
    `arrays.py` bf16, `layouts.py`, `halves.py` and `heads.py` what kernels hold in memory, GGUF's and ONNX's writers,
    `fp4.py` and `named_ops.py` what vLLM has loaded, the last four numbers that are no stored codes.
    """
    shifts = (ast.LShift, ast.RShift)
    found = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            operands = [node.left] if isinstance(node, ast.BinOp) and isinstance(node.op, shifts) else []
            named = isinstance(node, ast.Attribute) and ("left_shift" in node.attr or "right_shift" in node.attr)
            if named or any(not isinstance(operand, ast.Constant) for operand in operands):  # 1 << 20 is a number
                found.add(file.relative_to(SOURCE).as_posix())
    hashes = {"drift/sketch.py"}
    others = {
        "files/tokenizer.py",
        "pipeline/loss_weights.py",
        "numerics/histogram.py",
        "evaluate/metrics.py",
        "generate/processors.py",
    }
    memory = {"numerics/arrays.py", "kernels/layouts.py", "engine/halves.py", "engine/heads.py"}
    writers = {"checkpoints/gguf_blocks.py", "onnx/graph.py", "integrations/vllm/fp4.py", "kernels/named_ops.py"}
    assert found == {"numerics/bits.py", "numerics/ggml.py", *memory, *writers, *hashes, *others}
