"""What a checkpoint must give wherever it runs, computed in this process: for checks that begin with a directory."""

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bitwright.calibration.passages import passages
from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.models.load import fill, fill_buffers
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.generic import open_quantized
from bitwright.runtime.generic_model import GenericModel
from bitwright.runtime.load import load
from bitwright.runtime.swap import set_compute
from bitwright.runtime.verify import compared

if TYPE_CHECKING:
    from bitwright.runtime.model import Model

# Sequences × tokens. Limits are the sharper, the more sequences; a language model is compared bit by bit.
_SHAPE, _SHAPE_DECODING = (32, 32), (4, 32)


class Expected(NamedTuple):
    """Outputs of one checkpoint, as `compared` has them: float32 (B, values).

    ids_BT: int64, sequences of equal length. backend: what ran `engine_BV`, with float attention. generic_BV, calls: of
    the generic path as it runs here, and its integer kernel calls. bf16_BV: of that with bf16 between the linears, as
    the engine has it. plain_BV: of the float model with the dequantized weights.
    """

    ids_BT: np.ndarray
    backend: str
    engine_BV: np.ndarray
    generic_BV: np.ndarray
    calls: int
    bf16_BV: np.ndarray
    plain_BV: np.ndarray


def expect(directory: ModelDirectory) -> Expected:
    """Run a quantized checkpoint, on real texts if it has a tokenizer.

    Raises:
        As `runtime.load.load`.
    """
    model = load(directory.path)
    ids, engine = torch.from_numpy(_ids(model)), model
    if isinstance(model, EngineModel):
        engine = EngineModel(directory, float_attention=True)
    engine_BV, generic = compared(engine, ids)[0], model.generic
    plain_BV = compared(_dequantized(directory, generic), ids)[0]
    generic_BV, calls = compared(generic, ids)
    set_compute(generic.hf, "bfloat16")
    bf16_BV = compared(generic, ids)[0]
    return Expected(ids.numpy(), engine.backend, engine_BV, generic_BV, calls, bf16_BV, plain_BV)


def _dequantized(directory: ModelDirectory, generic: GenericModel) -> GenericModel:
    """The float model with the dequantized weights, run as the generic path is."""
    opened = open_quantized(directory)
    model = opened.empty.model
    for name, layer in opened.layers.items():
        linear: Any = model.get_submodule(name)
        for key, values in zip(("weight", "bias"), layer.effective(), strict=True):
            setattr(linear, key, None if values is None else nn.Parameter(values, requires_grad=False))
    for name, table in opened.tables.items():
        embedding: Any = model.get_submodule(name)
        embedding.weight = nn.Parameter(table.dequantize(), requires_grad=False)
    fill(model, opened.source)
    fill_buffers(model, opened.source)
    return replace(generic, hf=model, backend="torch", loaded_from=None)


def _ids(model: "Model") -> np.ndarray:
    """Token ids of distinct texts, (sequences, tokens); random ones where there is no tokenizer."""
    sequences, tokens = _SHAPE_DECODING if model.task == "text-generation" else _SHAPE
    tokens = min(tokens, model.max_tokens)
    try:
        texts = [passage.text for passage in passages()[::9]]
        chats = model.sentences.chat is not None  # whose template may have no place for a text alone
        items = list(pairwise(texts)) if chats else texts
        pool = [i for ids in model.tokenize(items) for i in ids]
    except ModelError:
        pool = np.random.default_rng(0).integers(0, model.vocabulary, sequences * tokens).tolist()
    sequences = min(max(len(pool) // tokens, 1), sequences)
    return np.resize(np.array(pool, np.int64), (sequences, tokens))
