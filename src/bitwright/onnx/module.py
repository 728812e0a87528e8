"""The transformers module of a quantized checkpoint as torch.onnx exports it: a placeholder stands for each quantized
linear and table, and pooling and heads follow. `graph.py` puts the codes in where the placeholders stand.

A node of our own for each of them, instead of a search for weights in the exported graph: constant folding renames and
transposes those, and a module that is used several times would be hard to tell from several modules.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.errors import TargetError
from bitwright.files.after_pooling import Dense, LayerNorm, Normalize
from bitwright.files.directory import ModelDirectory
from bitwright.files.sentences import Sentences, read_sentences
from bitwright.models.load import fill, fill_buffers
from bitwright.models.matching import check_finite
from bitwright.models.pool_tokens import pool_tokens
from bitwright.models.sites import find_embeddings
from bitwright.models.source_tensors import SourceTensors
from bitwright.models.tensor_files import read_pickled
from bitwright.numerics.linear import PendingLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.runtime.generic import open_quantized
from bitwright.runtime.generic_model import types_of
from bitwright.runtime.swap import swap_one

# Of the placeholders' nodes. None is left in a finished graph.
DOMAIN = "bitwright"
LINEAR, TABLE = "Linear", "Table"

# Task -> the graph's outputs, each with the axes that vary. ORT's users read the first; `sentence_embedding` is what
# sentence-transformers' own exports call it.
OUTPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "embedding": {"last_hidden_state": ("batch", "tokens"), "sentence_embedding": ("batch",)},
    "sequence-classification": {"logits": ("batch",)},
    "token-classification": {"logits": ("batch", "tokens")},
    "question-answering": {"start_logits": ("batch", "tokens"), "end_logits": ("batch", "tokens")},
}


class Exportable(NamedTuple):
    """A module ready for torch.onnx.export.

    inputs: names of its arguments, int64 (B, T) each. outputs: as `OUTPUTS`. layers, tables: what the placeholders
    stand for, by name; a table is in 8 bits, or in bf16 or fp16 as in the files. biased: layers with a bias. warnings:
    what the graph does not do that the engine does.
    """

    module: nn.Module
    task: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, tuple[str, ...]]
    layers: Mapping[str, PendingLinear]
    tables: Mapping[str, QTensor | Tensor]
    biased: frozenset[str]
    warnings: tuple[str, ...]


def exportable(directory: ModelDirectory, *, trust_remote_code: bool = False) -> Exportable:
    """A quantized encoder with placeholders, its float parameters filled in float32.

    Raises:
        TargetError: a language model. ModelError, CheckpointError: as `runtime.load.load`.
    """
    opened = open_quantized(directory, trust_remote_code=trust_remote_code)
    model: Any = opened.empty.model
    task, architecture = opened.empty.task, opened.empty.architecture
    if task not in OUTPUTS or architecture.decodes:
        raise TargetError(
            f"{directory.path}: {opened.empty.config.model_type} for {task} is no encoder; its ONNX graph would need a "
            "cache. Use onnxruntime-genai's model builder on the original"
        )
    layers = {name: opened.layers.pending(name) for name in opened.layers}
    biased = frozenset(name for name in layers if getattr(model.get_submodule(name), "bias", None) is not None)
    for name, pending in layers.items():
        swap_one(model, name, _LinearPlaceholder(name, pending.shape[0]))
    floats = [name for name in find_embeddings(model, architecture) if name not in opened.tables]
    tables = opened.tables | _half_tables(opened.source, floats)
    for name, table in tables.items():
        swap_one(model, name, _TablePlaceholder(name, table.shape[1]))
    fill(model, opened.source)
    fill_buffers(model, opened.source)
    model.set_attn_implementation("eager")  # plain products and a softmax, which every runtime knows
    sentences = read_sentences(directory, task, read_pickled=read_pickled)
    inputs = ["input_ids", "attention_mask"]
    if "token_type_ids" in inspect.signature(model.forward).parameters and types_of(opened.empty.config) > 1:
        inputs.append("token_type_ids")
    warnings = []
    if task == "embedding" and not sentences.pooling.include_prompt:
        warnings.append("the tokens of a prompt count in `sentence_embedding`, because the graph does not see prompts")
    module = _Outputs(model, task, tuple(inputs), sentences).eval()
    return Exportable(module, task, tuple(inputs), OUTPUTS[task], layers, tables, biased, tuple(warnings))


def _half_tables(source: SourceTensors, names: list[str]) -> dict[str, Tensor]:
    """Those of these tables that the files have in 16 bits, as they are.

    Raises:
        ModelError: NaN or infinity.
    """
    found = {}
    for weight in (f"{name}.weight" for name in names):
        if source.dtype(weight) in (torch.bfloat16, torch.float16):
            check_finite(source[weight], source.where(weight))
            found[weight.removesuffix(".weight")] = source[weight]
    return found


class _Outputs(nn.Module):
    """The module with its inputs in order and its outputs as `OUTPUTS` names them."""

    def __init__(self, model: nn.Module, task: str, inputs: tuple[str, ...], sentences: Sentences) -> None:
        super().__init__()
        self.model, self.task, self.inputs, self.sentences = model, task, inputs, sentences
        self.steps = nn.ModuleList(_STEPS[type(step)](step) for step in sentences.steps)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        out = self.model(**given, return_dict=True, output_hidden_states=self.sentences.mix is not None)
        if self.task != "embedding":
            return tuple(out[name] for name in OUTPUTS[self.task])
        hidden_BTH, mix = out.last_hidden_state, self.sentences.mix
        if mix is not None:
            weights_L = torch.from_numpy(mix.weights_L / mix.weights_L.sum())
            hidden_BTH = (torch.stack(out.hidden_states[mix.start :]) * weights_L.view(-1, 1, 1, 1)).sum(0)
        vector_BH = pool_tokens(hidden_BTH, given["attention_mask"], self.sentences.pooling)
        for step in self.steps:
            vector_BH = step(vector_BH)
        return out.last_hidden_state, vector_BH


class _Linear(torch.autograd.Function):
    """Zeros of the right shape; in an exported graph a node that `graph.py` replaces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, n: int) -> Tensor:
        return x.new_zeros(*x.shape[:-1], n)

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, n: int) -> Any:
        return _node(g, LINEAR, x, name, x.type().dim() - 1, n)


class _Table(torch.autograd.Function):
    """As `_Linear`, for a lookup of ids."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, name: str, n: int) -> Tensor:
        return torch.zeros(*ids.shape, n)

    @staticmethod
    def symbolic(g: Any, ids: Any, name: str, n: int) -> Any:
        return _node(g, TABLE, ids, name, ids.type().dim(), n)


def _node(g: Any, kind: str, given: Any, name: str, free: int, n: int) -> Any:
    # Only the last size is known: one of the traced example would be folded into the graph as a constant.
    floats = given.type().with_dtype(torch.float32)
    return g.op(f"{DOMAIN}::{kind}", given, name_s=name).setType(floats.with_sizes([*[None] * free, n]))


class _LinearPlaceholder(nn.Module):
    def __init__(self, name: str, n: int) -> None:
        super().__init__()
        self.name, self.n = name, n
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # some forwards ask for its dtype

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Linear.apply(x, self.name, self.n)  # type: ignore[no-untyped-call]
        return found


class _TablePlaceholder(nn.Module):
    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name, self.width = name, width

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = _Table.apply(ids, self.name, self.width)  # type: ignore[no-untyped-call]
        return found


class _Dense(nn.Module):
    def __init__(self, step: Dense) -> None:
        super().__init__()
        self.weight, self.bias = torch.from_numpy(step.weight_NK), None
        if step.bias_N is not None:
            self.bias = torch.from_numpy(step.bias_N)
        self.activation, self.residual = getattr(nn, step.activation)(), step.residual
        self.matrix = None if step.residual_NK is None else torch.from_numpy(step.residual_NK)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(functional.linear(x, self.weight, self.bias))
        if not self.residual:
            return y
        return y + (x if self.matrix is None else functional.linear(x, self.matrix))


class _LayerNorm(nn.Module):
    def __init__(self, step: LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = torch.from_numpy(step.weight_H), torch.from_numpy(step.bias_H)

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class _Normalize(nn.Module):
    def __init__(self, step: Normalize) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1)


# What follows pooling, in torch.
_STEPS: dict[type, Any] = {Dense: _Dense, LayerNorm: _LayerNorm, Normalize: _Normalize}
