"""Small models with random weights, and their linears quantized by rounding to nearest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import dtype_name
from bitwright.numerics.codebooks import codebook_of
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.qtensor import QTensor, scale_shape
from bitwright.numerics.schemes import SCHEMES, fit_group
from bitwright.numerics.spec import QuantSpec


def rounded(w_NK: Tensor, spec: QuantSpec) -> QTensor:
    """The nearest codes, with a scale that spans each group."""
    shape = scale_shape(w_NK.shape[0], w_NK.shape[1], spec)
    w_NGg = w_NK.float().reshape(*shape, -1)
    low, high = w_NGg.amin(-1, keepdim=True).clamp(max=0), w_NGg.amax(-1, keepdim=True).clamp(min=1e-8)
    zero, codebook = None, None
    if not spec.symmetric:
        scale = (high - low) / (spec.code_max - spec.code_min)
        zero = (spec.code_min - low / scale).round()
        codes = (w_NGg / scale + zero).round().clamp(spec.code_min, spec.code_max)
    elif spec.has_codebook:
        scale = torch.maximum(-low, high)
        fixed = codebook_of(spec)
        codebook = torch.linspace(-1, 1, spec.code_max + 1) if fixed is None else None
        levels = codebook if fixed is None else fixed
        assert levels is not None
        codes = (w_NGg.unsqueeze(-1) / scale.unsqueeze(-1) - levels).abs().argmin(-1)
    else:
        scale = torch.maximum(-low, high) / (1 if spec.grid == "ternary" else spec.half_steps)
        codes = (w_NGg / scale).round().clamp(spec.code_min, spec.code_max)
    zero_NG = None if zero is None else zero.reshape(shape).to(torch.int8)
    return QTensor(codes.reshape(w_NK.shape).to(torch.int8), scale.reshape(shape), zero_NG, spec, codebook)


def stored_linear(w_NK: Tensor, scheme: str, *, transform: bool = False) -> QuantizedLinear:
    """A weight in one of the named schemes, its group size one that fits, with a made-up range where inputs are static,
    and a made-up input transform if asked for."""
    k = w_NK.shape[1]
    weight, inputs = fit_group(SCHEMES[scheme], k)[0].weight, SCHEMES[scheme].input
    assert weight is not None
    static = None
    if inputs is not None and not inputs.dynamic:
        static = StaticGrid(float(torch.tensor(0.03)), 0 if inputs.symmetric else -3)
    change = InputTransform(torch.linspace(0.5, 2.0, k), torch.linspace(-1.0, 1.0, k)) if transform else None
    return QuantizedLinear(rounded(w_NK, weight), None, inputs, static, change)


@pytest.fixture
def parts_of() -> Callable[[QuantizedLinear], list[Any]]:
    """`parts_of(linear)`: all that a linear is but for its bias, in numbers to compare, numpy's or torch's."""

    def parts(linear: QuantizedLinear) -> list[Any]:
        weight, transform = linear.weight, linear.transform or InputTransform(np.ones(1, np.float32))
        arrays = (
            *(weight.codes_NK, weight.scale_NG, weight.zero_point_NG, weight.codebook),
            *(transform.scale_K, transform.shift_K),
        )
        values = [None if array is None else (dtype_name(array), array.tolist()) for array in arrays]
        return [linear.form, linear.static, *values]

    return parts


@pytest.fixture
def read_linears() -> Callable[[Path], dict[str, QuantizedLinear]]:
    """`read_linears(path)`: every quantized linear of a checkpoint by its name on disk, loaded; tables are too."""

    def read(path: Path) -> dict[str, QuantizedLinear]:
        checkpoint = read_checkpoint(ModelDirectory(path))
        for table in checkpoint.tables:
            checkpoint.table(table)
        return {name: linear.load() for name, linear in checkpoint.linears.items()}

    return read


@pytest.fixture
def make_linear() -> Callable[..., QuantizedLinear]:
    """`make_linear(w_NK, scheme, transform=False)`."""
    return stored_linear


@pytest.fixture
def quantize_linears() -> Callable[..., dict[str, QuantizedLinear]]:
    """`quantize(model, scheme, skip=...)`: every nn.Linear of a model, but for names that contain one of `skip`."""

    def quantize(
        model: nn.Module, scheme: str = "w8a8", skip: tuple[str, ...] = ("pooler", "classifier", "lm_head")
    ) -> dict[str, QuantizedLinear]:
        return {
            name: stored_linear(module.weight.detach(), scheme)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not any(part in name for part in skip)
        }

    return quantize


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    """A model directory: a random BERT of two blocks, with files of the kinds that hubs hold."""
    return save_bert(tmp_path / "source", "BertModel")


def save_bert(path: Path, class_name: str) -> Path:
    """A random BERT of the given class, saved as transformers saves it, plus side files."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=16, num_labels=3, initializer_range=0.2,
    )  # fmt: skip
    getattr(transformers, class_name)(config).eval().save_pretrained(path)
    (path / "tokenizer_config.json").write_text('{"model_max_length": 16}\n')
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(55))]))
    (path / "LICENSE").write_text("Apache License\n")
    (path / "README.md").write_text("the original card\n")
    return path


@pytest.fixture
def tiny_classifier(tmp_path: Path) -> Path:
    """As `tiny_bert`, with a classification head: its names carry the prefix "bert."."""
    return save_bert(tmp_path / "source", "BertForSequenceClassification")


@pytest.fixture
def sentence_bert(tiny_bert: Path) -> Path:
    """`tiny_bert` as a sentence-transformers pipeline whose last module has weights of its own."""
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Dense", "Dense")]
    rows = [
        {"idx": int(i), "name": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, path, kind in modules
    ]
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    activation = "torch.nn.modules.activation.Tanh"
    dense = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation}
    (tiny_bert / "modules.json").write_text(json.dumps(rows))
    (tiny_bert / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    for folder, config in (("1_Pooling", pooling), ("2_Dense", dense)):
        (tiny_bert / folder).mkdir()
        (tiny_bert / folder / "config.json").write_text(json.dumps(config))
    weights = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.zeros(8)}
    save_file(weights, tiny_bert / "2_Dense" / "model.safetensors")
    return tiny_bert
