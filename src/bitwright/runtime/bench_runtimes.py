"""The runtimes of the benchmark of encoders: one row each, with a function to open a model and one to run it. Those of
language models are in `bench_tokens`.

    runtime            reads                              arithmetic
    torch fp32         the float source                   fp32, transformers, scaled-dot-product attention
    torch bf16         the float source                   the same in bf16
    bitwright          the quantized checkpoint           what the checkpoint says, on the engine if that can run it
    onnxruntime int8   an ONNX file made from the source  int8 weights per channel, activations quantized at run time
    openvino int8      an IR file made from the source    int8 by NNCF, the rest in the CPU plugin's default
    ctranslate2 int8   files made from the source         int8 weights, activations quantized at run time, the rest fp32
    torch compiled     the float source                   bf16, compiled for each shape, weights frozen into the code

A rival is converted in a process of its own, so that the memory of the exporter does not count as the runtime's.
Libraries are imported where they are used: the process of one runtime holds nothing of the others.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitwright.errors import TargetError
from bitwright.families.tasks import TaskName
from bitwright.files.opening import open_path
from bitwright.record import Shape
from bitwright.runtime.bench_inputs import ModelShape, model_shape, random_tokens

if TYPE_CHECKING:
    from torch import nn

    from bitwright.files.sentences import Sentences

# What is timed: computes once, and returns the first output.
Step = Callable[[], Any]
# (input_ids_BT, attention_mask_BT), int64 -> the first output (hidden states or logits), a torch tensor or numpy array
Forward = Callable[[NDArray[np.int64], NDArray[np.int64]], Any]

OURS = "bitwright"

INPUT_NAMES = ("input_ids", "attention_mask")
CALIBRATION_SAMPLES = 100
CALIBRATION_TOKENS = 128


class Files(NamedTuple):
    """The files that a runtime reads. task: the model's task, if the user gives it."""

    path: Path
    task: TaskName | None = None


def forward_step(forward: Forward, model: ModelShape, shape: Shape, seed: int) -> Step:
    """A forward of random tokens."""
    ids_BT, mask_BT = random_tokens(model, batch=shape.batch, tokens=shape.tokens, seed=seed)
    return lambda: forward(ids_BT, mask_BT)


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime.

    open: (files, threads) -> what is loaded. The files are those of the source, of the checkpoint, or what `prepare`
    wrote. make: (that, the model, the shape, a seed) -> the step that is timed.
    prepare: (source, output directory) -> a remark about how it was converted, or None. Rivals have it, and only they.
    needs: the packages that `prepare` and `open` import beyond our own dependencies.
    reads_checkpoint: whether it runs the quantized checkpoint; the others start from the float source.
    slow: whether it takes minutes to get ready; measured only when asked for. optional: whether it is left out, and
    told, where it cannot run the model; so are rivals.
    """

    open: Callable[[Files, int], Any]
    prepare: Callable[[Files, Path], str | None] | None = None
    needs: tuple[str, ...] = ()
    reads_checkpoint: bool = False
    slow: bool = False
    make: Callable[[Any, ModelShape, Shape, int], Step] = forward_step
    optional: bool = False


def _open_torch_fp32(files: Files, threads: int) -> Forward:
    return _torch_forward(_load_source(files, "float32"), threads)


def _open_torch_bf16(files: Files, threads: int) -> Forward:
    return _torch_forward(_load_source(files, "bfloat16"), threads)


def _open_bitwright(files: Files, threads: int) -> Forward:
    from bitwright.engine.builders import lower_encoder
    from bitwright.engine.executor import Executor
    from bitwright.engine.weights import open_weights
    from bitwright.errors import EngineError
    from bitwright.kernels.dispatch import native_isa

    try:
        executor = Executor(lower_encoder(open_weights(open_path(files.path)), pooling=None), native_isa())
    except EngineError:
        from bitwright.runtime.generic import load_generic

        generic = load_generic(open_path(files.path))
        return _torch_forward(_scoring(generic.hf, generic.sentences), threads)

    def forward(ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Any:
        lengths = mask_BT.sum(axis=1)
        out = executor.run_packed(ids_BT[mask_BT.astype(bool)], lengths, threads)
        whole = executor.program.output.per == "sequence" or len(set(lengths)) > 1
        return out if whole else out.reshape(*ids_BT.shape, -1)

    return forward


def _torch_forward(model: "nn.Module", threads: int) -> Forward:
    import torch

    torch.set_num_threads(threads)

    def forward(ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Any:
        with torch.inference_mode():
            return _output_of(model(input_ids=torch.from_numpy(ids_BT), attention_mask=torch.from_numpy(mask_BT)))

    return forward


def _output_of(outputs: Any) -> Any:
    """The output that is compared and exported: the first; for question answering start and end, (B, T, 2)."""
    import torch

    if "start_logits" in outputs:
        return torch.stack((outputs["start_logits"], outputs["end_logits"]), dim=-1)
    return outputs[0]


def _load_source(files: Files, dtype: str) -> "nn.Module":
    """The float model as Bitwright itself loads it, so that all runtimes compute the same outputs."""
    import torch

    from bitwright.models.load import load_model

    loaded = load_model(files.path, dtype=getattr(torch, dtype), task=files.task)
    return _scoring(loaded.model, loaded.sentences)


def _scoring(model: "nn.Module", sentences: "Sentences") -> "nn.Module":
    """The model; of a language model whose logits are a score, a module that puts out that."""
    if sentences.answers is None:
        return model
    import torch

    answers = sentences.answers

    class Scoring(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model: Any = model
            self.set_attn_implementation = self.model.set_attn_implementation

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any]:
            last_B = attention_mask.sum(1) - 1  # of which alone logits are computed
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=last_B
            )  # fmt: skip
            each = torch.arange(len(last_B))
            return (answers.score(out.logits[each, each]),)

    return Scoring()


def _for_export(model: "nn.Module", shape: ModelShape) -> "tuple[nn.Module, tuple[Any, Any]]":
    """The model as a module with two positional inputs and one output, and an example of the inputs."""
    import torch

    class FirstOutput(torch.nn.Module):
        def __init__(self, model: "nn.Module") -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return _output_of(self.model(input_ids=input_ids, attention_mask=attention_mask))

    ids_BT, mask_BT = random_tokens(shape, batch=2, tokens=8, seed=0)
    return FirstOutput(model).eval(), (torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))


def _prepare_onnxruntime(source: Files, output: Path) -> str | None:
    """Export the model, fuse attention, layer norm and GELU with ONNX Runtime's optimizer, and quantize the weights."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import MODEL_TYPES, optimize_model

    shape = model_shape(open_path(source.path))
    source_model: Any = _load_source(source, "float32")
    # The optimizer's patterns know eager attention; it becomes one fused operator.
    source_model.set_attn_implementation("eager")
    module, example = _for_export(source_model, shape)
    exported, fused = output / "exported.onnx", output / "fused.onnx"
    torch.onnx.export(
        module,
        example,
        str(exported),
        input_names=list(INPUT_NAMES),
        output_names=["output"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in INPUT_NAMES},
        opset_version=17,
        dynamo=False,
    )
    model_type = shape.model_type if shape.model_type in MODEL_TYPES else "bert"
    model = optimize_model(
        str(exported), model_type=model_type, num_heads=shape.n_heads, hidden_size=shape.hidden_size, opt_level=0
    )
    statistics = model.get_fused_operator_statistics()
    model.save_model_to_file(str(fused))
    # The type inference behind the quantizer does not know the fused operators: DefaultTensorType 1 is ONNX's FLOAT.
    quantize_dynamic(
        fused,
        output / "model.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": 1},
    )
    exported.unlink()
    fused.unlink()
    found = ", ".join(f"{count} {name}" for name, count in sorted(statistics.items()) if count)
    return f"dynamic int8 per channel; fused: {found or 'nothing'}"


def _open_onnxruntime(files: Files, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(files.path / "model.onnx", options, providers=["CPUExecutionProvider"])

    def forward(ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Any:
        return session.run(None, {"input_ids": ids_BT, "attention_mask": mask_BT})[0]

    return forward


def _prepare_openvino(source: Files, output: Path) -> str | None:
    """Convert the model, then quantize it with NNCF's defaults. Random tokens calibrate, because only speed matters
    here.
    """
    import nncf
    import openvino

    shape = model_shape(open_path(source.path))
    module, example = _for_export(_load_source(source, "float32"), shape)
    model = openvino.convert_model(module, example_input=dict(zip(INPUT_NAMES, example, strict=True)))
    length = min(CALIBRATION_TOKENS, shape.max_tokens or CALIBRATION_TOKENS)
    samples = [
        dict(zip(INPUT_NAMES, random_tokens(shape, batch=1, tokens=length, seed=seed), strict=True))
        for seed in range(CALIBRATION_SAMPLES)
    ]
    quantized = nncf.quantize(
        model, nncf.Dataset(samples), subset_size=CALIBRATION_SAMPLES, model_type=nncf.ModelType.TRANSFORMER
    )
    openvino.save_model(quantized, output / "model.xml")
    return (
        f"NNCF {nncf.__version__} post-training quantization, {CALIBRATION_SAMPLES} samples of {length} random tokens"
    )


def _open_openvino(files: Files, threads: int) -> Forward:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(files.path / "model.xml", "CPU", settings).create_infer_request()

    def forward(ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Any:
        return request.infer([ids_BT, mask_BT], share_inputs=True, share_outputs=True)[0]

    return forward


def _prepare_ctranslate2(source: Files, output: Path) -> str | None:
    from ctranslate2.converters import TransformersConverter

    opened = open_path(source.path)
    settings = opened.config
    if "For" in (name := (settings.get("architectures") or [""])[0]):
        raise TargetError(f"its encoder gives only hidden states, but {name} has a head")
    # Its converter asks for a setting that newer transformers no longer write.
    copy = output / "source"
    copy.mkdir()
    for file in opened.transformer.path.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    config = {"position_embedding_type": "absolute"} | settings
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    TransformersConverter(str(copy)).convert(str(output), quantization="int8", force=True)
    return "int8 weights per channel"


def _open_ctranslate2(files: Files, threads: int) -> Forward:
    import ctranslate2

    encoder = ctranslate2.Encoder(str(files.path), compute_type="int8", intra_threads=threads, inter_threads=1)

    def forward(ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Any:
        ids, lengths = ids_BT.astype(np.int32), mask_BT.sum(axis=1).astype(np.int32)
        views = map(ctranslate2.StorageView.from_array, (ids, lengths))
        return np.array(encoder.forward_batch(*views).last_hidden_state)

    return forward


def _prepare_torch_compiled(source: Files, output: Path) -> str | None:
    (output / "source").symlink_to(source.path.resolve(), target_is_directory=True)
    return "torch.compile, a graph for each shape, constants folded (freezing)"


def _open_torch_compiled(files: Files, threads: int) -> Forward:
    import torch
    from torch._inductor import config

    torch.set_num_threads(threads)
    config.freezing = True
    torch._dynamo.config.recompile_limit = 1000  # a shape too many would run eagerly, under this name
    model: Any = torch.compile(_load_source(files._replace(path=files.path / "source"), "bfloat16"), dynamic=False)
    return _torch_forward(model, threads)


# The order of the rows, and of the blocks within a round.
RUNTIMES: dict[str, Runtime] = {
    "torch fp32": Runtime(_open_torch_fp32),
    "torch bf16": Runtime(_open_torch_bf16),
    OURS: Runtime(_open_bitwright, reads_checkpoint=True),
    "onnxruntime int8": Runtime(_open_onnxruntime, _prepare_onnxruntime, needs=("onnx", "onnxruntime")),
    "openvino int8": Runtime(_open_openvino, _prepare_openvino, needs=("openvino", "nncf")),
    "ctranslate2 int8": Runtime(_open_ctranslate2, _prepare_ctranslate2, needs=("ctranslate2",), slow=True),
    "torch compiled": Runtime(_open_torch_compiled, _prepare_torch_compiled, slow=True),
}


def runtimes(task: TaskName | None) -> dict[str, Runtime]:
    """Those of a model for this task."""
    from bitwright.runtime.bench_tokens import TOKEN_RUNTIMES

    return TOKEN_RUNTIMES if task == "text-generation" else RUNTIMES
