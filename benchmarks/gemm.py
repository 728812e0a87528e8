"""Our GEMMs on one core: int8 against ONNX Runtime's and against what the core can do, bf16 against torch's.

    python benchmarks/gemm.py [--json FILE] [--rounds N] [--isa NAME ...]

For the linears of MiniLM and BERT-base, four pairs, each in GOP/s (a multiply or an add is one operation):

    sums    u8 x s8 -> int32                          ours | MatMulInteger
    linear  u8 x s8 -> float32, scale, bias           ours | the measured peak of the instruction set
    whole   float32 -> quantize, multiply -> float32  ours | com.microsoft DynamicQuantizeMatMul
    bf16    bf16 x bf16 -> bf16, bias                 ours | torch's linear

Rivals run turn by turn in short blocks (A B C A B C), so that all see the same noise; a ratio is the median over rounds
of the ratio inside a round, a speed the median over rounds. The peak is measured in every round too. Needs onnx and
onnxruntime.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from rich.console import Console
from rich.table import Table

from bitwright.kernels import dispatch, layouts, native
from bitwright.kernels.input_grid import InputGrid
from bitwright.numerics.schemes import SCHEMES

ROWS = (128, 1024)
SHAPES_NK = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (768, 3072))
BLOCK_SECONDS = 0.02
PEAK_REPEATS = {"avx2": 200_000, "avxvnni": 200_000, "avx512vnni": 200_000, "amx": 20_000}
Run = Callable[[], object]


def main() -> None:
    """Measure every shape, print one table per instruction set, write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write every number there")
    parser.add_argument("--rounds", type=int, default=15, help="blocks per contestant and shape")
    parser.add_argument("--isa", nargs="+", default=["avx512vnni", "amx"], choices=list(PEAK_REPEATS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    supported = {row.name for row in dispatch.isa_table() if row.supported}
    isas = [isa for isa in options.isa if isa in supported]
    rows = [measure(m, n, k, isas, options.rounds) for m in ROWS for n, k in SHAPES_NK]
    for isa in isas:
        Console(width=80).print(table_of(rows, isa))
    Console(width=80).print(table_of_bf16(rows, isas))
    if options.json:
        facts = {"cpu": cpu_model(), "threads": 1, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        options.json.write_text(json.dumps({**facts, "isas": isas, "rows": rows}, indent=1) + "\n")


def measure(m: int, n: int, k: int, isas: list[str], rounds: int) -> dict[str, object]:
    """GOP/s of every contestant in every round: {"M", "N", "K", "rounds": {contestant: [GOP/s, ...]}}."""
    rng = np.random.default_rng(0)
    weight_NK = rng.integers(-127, 128, (n, k), dtype=np.int8)
    x_MK = rng.standard_normal((m, k), dtype=np.float32)
    codes_MK = rng.integers(0, 256, (m, k), dtype=np.uint8)
    contestants: dict[str, Run] = {
        "ort sums": ort_sums(codes_MK, weight_NK),
        "ort whole": ort_whole(x_MK, weight_NK),
        "torch bf16": torch_bf16(x_MK, weight_NK),
    }
    for isa in isas:
        contestants |= ours(isa, x_MK, codes_MK, weight_NK)
        contestants[f"{isa} bf16"] = ours_bf16(isa, x_MK, weight_NK)
    found: dict[str, list[float]] = {name: [] for name in (*contestants, *(f"{isa} peak" for isa in isas))}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            found[name].append(2e-9 * m * n * k / seconds_per_call(run))
        for isa in isas:
            alone = native.load().peak_int8_gops(dispatch.native_isa(isa), PEAK_REPEATS[isa])
            found[f"{isa} peak"].append(max(alone, found[f"{isa} sums"][-1]))  # the clock may have been higher then
    return {"M": m, "N": n, "K": k, "rounds": found}


def seconds_per_call(run: Run) -> float:
    """CPU time of the fastest call of one block: what else runs on the machine can only slow a call down."""
    fastest, stop = float("inf"), time.perf_counter() + BLOCK_SECONDS
    while time.perf_counter() < stop:
        start = time.thread_time()
        run()
        fastest = min(fastest, time.thread_time() - start)
    return fastest


def ours(isa: str, x_MK: np.ndarray, codes_MK: np.ndarray, weight_NK: np.ndarray) -> dict[str, Run]:
    """Our three contestants on preallocated memory, as the rivals have it."""
    (m, k), n = x_MK.shape, len(weight_NK)
    module, variant = native.load(), dispatch.chosen("linear_w8a8", isa)
    weight = torch.from_numpy(weight_NK)
    packed, colsum = layouts.pack(weight), layouts.column_sums(weight)
    scale_n = layouts.pad_columns(torch.full((n,), 0.01))
    bias = layouts.pad_columns(torch.ones(n))
    stride = module.code_stride(k)
    codes = torch.zeros(-(-m // layouts.BLOCK) * layouts.BLOCK, stride, dtype=torch.uint8)
    codes[:m, :k] = torch.from_numpy(codes_MK)
    x, scale_m, zero_m = torch.from_numpy(x_MK), torch.ones(m), torch.zeros(m, dtype=torch.int32)
    y, sums = torch.empty(m, n), torch.empty(m, n, dtype=torch.int32)
    scratch = torch.empty(module.scratch_bytes(m, k), dtype=torch.uint8)
    grid = InputGrid.of(SCHEMES["w8a8"].input)  # type: ignore[arg-type]
    none, weights = (
        module.Activation.none,
        {
            "weight": packed.data_ptr(),
            "colsum": colsum.data_ptr(),
            "scale_n": scale_n.data_ptr(),
            "bias": bias.data_ptr(),
        },
    )
    whole = module.QuantizeLinearW8A8(
        x=x.data_ptr(),
        bf16=False,
        x_stride=k,
        m=m,
        k=k,
        shift=0,
        multiplier=0,
        mode=module.QuantizeMode[grid.mode],
        static_scale=grid.scale,
        static_zero_point=grid.zero_point,
        code_min=grid.code_min,
        y=y.data_ptr(),
        n=n,
        activation=none,
        scratch=scratch.data_ptr(),
        **weights,
    )
    keep = (packed, colsum, scale_n, bias, codes, x, scale_m, zero_m, y, sums, scratch)  # alive as long as the closures

    def multiply(out: torch.Tensor, output: str) -> Run:
        op = module.LinearW8A8(
            codes=codes.data_ptr(),
            code_stride=stride,
            scale_m=scale_m.data_ptr(),
            zero_m=zero_m.data_ptr(),
            y=out.data_ptr(),
            out_stride=n,
            n=n,
            k_padded=k + -k % layouts.PAD_K,
            activation=none,
            output=module.Output[output],
            grid=None,
            **weights,
        )
        return lambda: (module.linear_w8a8(variant, op, 0, m, 0, packed.shape[0]), keep)

    return {
        f"{isa} sums": multiply(sums, "sums"),
        f"{isa} linear": multiply(y, "f32"),
        f"{isa} whole": lambda: module.quantize_linear_w8a8(dispatch.native_isa(isa), 1, whole),
    }


def ours_bf16(isa: str, x_MK: np.ndarray, weight_NK: np.ndarray) -> Run:
    """linear_bf16 on preallocated memory; the weight is packed beforehand."""
    (m, k), n = x_MK.shape, len(weight_NK)
    module, variant = native.load(), dispatch.chosen("linear_bf16", isa)
    x, y = torch.from_numpy(x_MK).bfloat16(), torch.empty(m, n, dtype=torch.bfloat16)
    packed = layouts.pack_bf16(torch.from_numpy(weight_NK).bfloat16())
    bias = layouts.pad_columns(torch.ones(n))
    assert m % layouts.BLOCK == 0, "rows of x up to the next multiple of 16 must be readable"
    assert k % layouts.PAD_K_BF16 == 0, "so must values, to the next multiple of 32"
    op = module.LinearBf16(
        x=x.data_ptr(),
        x_stride=k,
        weight=packed.data_ptr(),
        bias=bias.data_ptr(),
        y=y.data_ptr(),
        out_stride=n,
        n=n,
        k_padded=k,
        activation=module.Activation.none,
        output=module.Output.bf16,
    )
    keep = (x, y, packed, bias)  # alive as long as the closure
    return lambda: (module.linear_bf16(variant, op, 0, m, 0, packed.shape[0]), keep)


def torch_bf16(x_MK: np.ndarray, weight_NK: np.ndarray) -> Run:
    """torch's linear on bf16 tensors."""
    x, weight = torch.from_numpy(x_MK).bfloat16(), torch.from_numpy(weight_NK).bfloat16()
    bias = torch.ones(len(weight), dtype=torch.bfloat16)
    return lambda: torch.nn.functional.linear(x, weight, bias)


def ort_sums(codes_MK: np.ndarray, weight_NK: np.ndarray) -> Run:
    """ONNX Runtime's MatMulInteger, u8 x s8 -> int32."""
    node = helper.make_node("MatMulInteger", ["x", "w", "zero"], ["y"])
    constants = {"w": np.ascontiguousarray(weight_NK.T), "zero": np.array(128, np.uint8)}
    return ort_session(node, codes_MK, constants, np.empty((len(codes_MK), len(weight_NK)), np.int32))


def ort_whole(x_MK: np.ndarray, weight_NK: np.ndarray) -> Run:
    """ONNX Runtime's DynamicQuantizeMatMul: float32 in, one dynamic range for the tensor, float32 out, bias."""
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "scale", "", "bias"], ["y"], domain="com.microsoft")
    n = len(weight_NK)
    constants = {
        "w": np.ascontiguousarray(weight_NK.T),
        "scale": np.full(n, 0.01, np.float32),
        "bias": np.ones(n, np.float32),
    }
    return ort_session(node, x_MK, constants, np.empty((len(x_MK), n), np.float32))


def ort_session(node: onnx.NodeProto, x: np.ndarray, constants: dict[str, np.ndarray], y: np.ndarray) -> Run:
    """One node as a session on one thread, input and output bound to preallocated memory."""
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    described = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in (("x", x), ("y", y))
    ]
    graph = helper.make_graph([node], "gemm", described[:1], described[1:], initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return lambda: session.run_with_iobinding(binding)


def table_of(rows: list[dict[str, object]], isa: str) -> Table:
    """One line per shape, at most 80 columns."""
    title = f"{isa}, one core, GOP/s; x = ours / ONNX Runtime's"
    table = Table(title=title, box=None, header_style="bold", pad_edge=False)
    for column in ("M", "N", "K", "sums", "ORT", "x", "linear", "peak", "%", "whole", "ORT", "x"):
        table.add_column(column, justify="right")
    for row in rows:
        found: dict[str, list[float]] = row["rounds"]  # type: ignore[assignment]
        sums, linear, whole, peak = (found[f"{isa} {what}"] for what in ("sums", "linear", "whole", "peak"))
        cells = [str(row[size]) for size in "MNK"]
        cells += [f"{median(sums):.0f}", f"{median(found['ort sums']):.0f}", f"{ratio(sums, found['ort sums']):.2f}"]
        cells += [f"{median(linear):.0f}", f"{median(peak):.0f}", f"{100 * ratio(linear, peak):.0f}"]
        cells += [
            f"{median(whole):.0f}",
            f"{median(found['ort whole']):.0f}",
            f"{ratio(whole, found['ort whole']):.2f}",
        ]
        table.add_row(*cells)
    return table


def table_of_bf16(rows: list[dict[str, object]], isas: list[str]) -> Table:
    """One line per shape, every instruction set beside torch."""
    table = Table(title="bf16, one core, GOP/s; x = ours / torch's", box=None, header_style="bold", pad_edge=False)
    for column in ("M", "N", "K", "torch", *(column for isa in isas for column in (isa, "x"))):
        table.add_column(column, justify="right")
    for row in rows:
        found: dict[str, list[float]] = row["rounds"]  # type: ignore[assignment]
        torchs = found["torch bf16"]
        cells = [str(row[size]) for size in "MNK"] + [f"{median(torchs):.0f}"]
        for isa in isas:
            cells += [f"{median(found[f'{isa} bf16']):.0f}", f"{ratio(found[f'{isa} bf16'], torchs):.2f}"]
        table.add_row(*cells)
    return table


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of the ratio inside a round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def cpu_model() -> str:
    """The processor's name, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
