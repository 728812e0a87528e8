"""Writes a quantized encoder as `onnx/model.onnx`, beside the files that tokenize, pool and describe it."""

import json
import tempfile
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import bitwright
from bitwright.checkpoints.leftovers import split_source_files
from bitwright.checkpoints.result import atomic_directory, check_out, copy_file, write_file
from bitwright.errors import InputError, TargetError
from bitwright.files.directory import CONFIG_FILE, ModelDirectory
from bitwright.numerics.qtensor import QTensor
from bitwright.onnx.kinds import block_size, kind_of
from bitwright.onnx.module import DOMAIN, Exportable, exportable
from bitwright.progress import Progress, Quiet

if TYPE_CHECKING:
    import numpy as np

    from bitwright.onnx.graph import WeightRange
    from bitwright.onnx.kinds import Kind

MODEL_FILE = "onnx/model.onnx"  # where sentence-transformers and Optimum look for it
# In the model's metadata: linears by kind, the range of 8-bit weights, and the task.
LINEARS_KEY, RANGE_KEY, TASK_KEY = "bitwright.linears", "bitwright.range", "bitwright.task"

RESIDUAL = "residual"  # a kind beside those of linears: an addition in 8 bits

_OPSET = 17  # has LayerNormalization, and all that 8 bits need
_OPSET_BLOCKS = 21  # the first with blocks and 4-bit integers
_LAST_TRACED = 20  # the last that torch's exporter of traces writes; 21 adds types to its operators, and changes none
_LARGEST = 1 << 30  # bytes in one protobuf file, which must stay below 2 GiB


class WrittenOnnx(NamedTuple):
    """linears: those that run on codes, by kind, each as often as it runs; and residual additions in 8 bits. bytes: of
    the graph and its data. foretold: what they were expected to take. warnings: what the graph does not do that the
    engine does.
    """

    path: Path
    linears: dict[str, int]
    bytes: int
    foretold: int
    warnings: tuple[str, ...]


def write_onnx(
    directory: ModelDirectory | Path, out: Path, *, weights: "WeightRange" = "8bit", overwrite: bool = False,
    trust_remote_code: bool = False, check: Callable[[Path], object] | None = None, progress: Progress | None = None,
    residuals: "Sequence[np.ndarray]" = (),
) -> WrittenOnnx:  # fmt: skip
    """Write a directory with the ONNX graph of a quantized encoder and everything else that a runtime needs. The codes
    of the graph are those of the checkpoint, bit for bit, unless `weights` is "7bit".

    Args:
        directory: what `bitwright quantize` wrote.
        out: appears complete, or not at all.
        weights: "7bit" keeps 8-bit weights within ±64, for processors whose u8 × s8 products saturate.
        check: called with the directory before it appears; what it raises stops that. progress: is told the size
            before the work.
        residuals: int64 token ids (B, T) of texts. If there are any, residual additions are computed in 8 bits, too,
            on the grids that these texts need.

    Raises:
        InputError: `out` must not be written; another `weights`.
        TargetError: nothing is quantized; a model or a scheme that ONNX Runtime has no integer kernels for; no onnx.
        ModelError, CheckpointError: as `runtime.load.load`; the disk is full.
    """
    if weights not in ("8bit", "7bit"):
        raise InputError(f"weights = {weights!r} is unknown; choose 8bit or 7bit")
    opened = directory if isinstance(directory, ModelDirectory) else ModelDirectory(directory)
    check_out(out, opened.path, overwrite=overwrite)
    if find_spec("onnx") is None:
        raise TargetError("an ONNX graph is written with the package onnx; pip install 'bitwright[onnx]'")
    if not opened.is_quantized:
        raise TargetError(
            f"{opened.path}: nothing is quantized here; run `bitwright quantize` first, then export what it wrote"
        )
    module = exportable(opened, trust_remote_code=trust_remote_code)
    kinds = {kind_of(name, layer.form, layer.shape[1]) for name, layer in module.layers.items()}
    expected = expected_bytes(module)
    (progress or Quiet()).say(f"writing a graph of about {expected / 1e6:.1f} MB")
    with atomic_directory(out, expected + expected // 10) as staged:
        linears, size = _write_model(staged / MODEL_FILE, module, kinds, weights, residuals)
        _copy_side_files(opened, staged)
        if check is not None:
            check(staged)
    return WrittenOnnx(out, linears, size, expected, module.warnings)


def expected_bytes(module: Exportable) -> int:
    """About the bytes of a graph's constants: codes, scales and zero points, tables, and floats in 32 bits. Nodes, and
    what the exporter folds, come on top; transforms of inputs that linears share count once for each.
    """
    unread = "model.pooler." if module.task == "embedding" else None  # which graphs of embeddings do without
    floats = [values for name, values in module.module.named_parameters() if not (unread and name.startswith(unread))]
    total = sum(values.numel() * 4 for values in floats)
    for name, pending in module.layers.items():
        (n, k), weight = pending.shape, pending.form.weight
        alone = kind_of(name, pending.form, k) == "weights"
        groups = k // block_size(name, k, weight.group_size) if alone else 1
        zeros = not weight.symmetric or not alone
        total += n * k * weight.bits // 8 + n * groups * 4 + zeros * n * groups * weight.bits // 8
        total += 4 * k * (pending.form.scales_input + pending.form.shifts_input)
        total += 4 * n * (name in module.biased)
    for table in module.tables.values():
        rows, width = table.shape
        total += rows * (width + 4) if isinstance(table, QTensor) else rows * width * table.element_size()
    return total


def _write_model(
    file: Path,
    module: Exportable,
    kinds: "Collection[Kind]",
    weights: "WeightRange",
    residuals: "Sequence[np.ndarray]",
) -> tuple[dict[str, int], int]:
    """Write a graph; the numbers of linears by kind, and its bytes."""
    import onnx

    from bitwright.onnx.graph import rewritten
    from bitwright.onnx.residuals import quantize_residuals, residual_sums

    blocks = "weights" in kinds
    model = _exported(module, _LAST_TRACED if blocks else _OPSET)
    sums = residual_sums(model) if residuals else []
    counts = rewritten(model, module.layers, module.tables, weights)
    if blocks:
        for opset in model.opset_import:
            opset.version = _OPSET_BLOCKS if opset.domain == "" else opset.version
    model.ir_version = 10 if blocks else 8
    if sums:
        counts[RESIDUAL] = quantize_residuals(model, sums, residuals)
    model.producer_name, model.producer_version = "bitwright", bitwright.__version__
    linears = {kind: counts[kind] for kind in sorted(counts)}
    told = {LINEARS_KEY: json.dumps(linears), RANGE_KEY: weights, TASK_KEY: module.task}
    onnx.helper.set_model_props(model, told)
    file.parent.mkdir()
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST
    onnx.save_model(model, file, save_as_external_data=large, location=f"{file.name}_data" if large else None)
    onnx.checker.check_model(str(file), full_check=True)
    return linears, sum(part.stat().st_size for part in file.parent.iterdir())


def _exported(module: Exportable, opset: int) -> Any:
    """The graph with placeholders, as torch traces it."""
    import onnx
    import torch

    axes = dict.fromkeys(module.inputs, ("batch", "tokens")) | dict(module.outputs)
    # Two texts of different lengths, so that no mask is left out as one that masks nothing.
    example = [torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)]
    example[1][1, 5:] = 0
    with tempfile.TemporaryDirectory(prefix="bitwright-onnx-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: what is constant in a trace is meant to be; tests compare
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.module,
            tuple(example[: len(module.inputs)]),
            str(file),
            input_names=list(module.inputs),
            output_names=list(module.outputs),
            dynamic_axes={name: dict(enumerate(free)) for name, free in axes.items()},
            opset_version=opset,
            custom_opsets={DOMAIN: 1},
            dynamo=False,
        )
        return onnx.load(str(file))


def _copy_side_files(directory: ModelDirectory, staged: Path) -> None:
    """Everything but the weights. config.json loses what describes them: readers would look for codes."""
    made = directory.made_files
    for name, file in split_source_files(directory)[0].items():
        if str(name) not in {CONFIG_FILE, *made}:
            copy_file(file, staged / name)
    config = {key: value for key, value in directory.config.items() if key != "quantization_config"}
    made |= {CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    for place, text in made.items():
        write_file(staged / place, text.encode())
