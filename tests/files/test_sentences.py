"""Side files of sentence-transformers: what `encode` gives is what the library gives, for each key and each module."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

import bitwright
from bitwright.errors import InputError, ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.modules import TRANSFORMER_FILES
from bitwright.files.sentences import read_sentences

TYPE = "sentence_transformers.models."
TEXTS = ["The Quick Brown Fox", "hello", "A rather longer text of SOME more words than eight tokens", "x"]
SETTINGS = "config_sentence_transformers.json"


@pytest.fixture
def bert(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A small BERT that may be changed."""
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "source"))


@pytest.fixture
def source(bert: Path) -> Path:
    """The same with the two modules that every embedding model has."""
    return with_modules(bert)


def with_modules(path: Path, *more: str, pooling: dict[str, Any] | None = None, before: tuple[str, ...] = ()) -> Path:
    kinds = ["Transformer", *before, "Pooling", *more]
    modules = [
        {"type": TYPE + kind, "path": f"{i}_{kind}" if i else "", "name": str(i)} for i, kind in enumerate(kinds)
    ]
    for i, module in enumerate(modules):
        module["idx"] = str(i)
        (path / module["path"]).mkdir(exist_ok=True)
    write(path / "modules.json", modules)
    write(path / f"{len(before) + 1}_Pooling" / "config.json", {"word_embedding_dimension": 32} | (pooling or {}))
    return path


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def edit(file: Path, **keys: Any) -> None:
    write(file, json.loads(file.read_text()) | keys)


def compare(path: Path, out: Path, **options: Any) -> None:
    """The float model, and a result in which nothing is quantized, against the library."""
    library = SentenceTransformer(str(path), device="cpu")
    expected = library.encode(TEXTS, **options)
    float_model = bitwright.load(path)
    np.testing.assert_allclose(float_model.encode(TEXTS, **options), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(float_model.encode(TEXTS[0], **options), library.encode(TEXTS[0], **options), atol=1e-5)
    bitwright.quantize(path, out=out, judged=False, samples=8)
    engine = bitwright.load(out)
    assert engine.backend.startswith("engine") or engine.sentences.mix, engine.backend
    assert engine.tokenize(TEXTS) == float_model.tokenize(TEXTS)
    for model in (engine, engine.generic):
        found = model.encode(TEXTS, **options)
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert cosines.min() > 0.97, model.backend


@pytest.mark.parametrize("name", TRANSFORMER_FILES)
def test_each_name_of_the_transformers_file(source: Path, tmp_path: Path, name: str) -> None:
    write(source / name, {"max_seq_length": 6, "do_lower_case": True})
    found = read_sentences(ModelDirectory(source), "embedding")
    assert (found.max_tokens, found.lower_case) == (6, True)


def test_the_first_file_that_says_something_counts(source: Path) -> None:
    write(source / TRANSFORMER_FILES[0], {})
    write(source / TRANSFORMER_FILES[3], {"max_seq_length": 6})
    write(source / TRANSFORMER_FILES[5], {"max_seq_length": 7})
    assert read_sentences(ModelDirectory(source), "embedding").max_tokens == 6


def test_lengths_and_lower_case(source: Path, tmp_path: Path) -> None:
    """What the side file says takes the place of the tokenizer's own limit, be that shorter or longer."""
    edit(source / "tokenizer_config.json", model_max_length=5, do_lower_case=False)
    write(source / TRANSFORMER_FILES[0], {"max_seq_length": 8, "do_lower_case": True})
    compare(source, tmp_path / "out")
    edit(source / TRANSFORMER_FILES[0], tokenizer_args={"model_max_length": 7})
    compare(source, tmp_path / "out2")


def test_without_modules_the_library_reads_no_side_file(bert: Path, tmp_path: Path) -> None:
    write(bert / TRANSFORMER_FILES[0], {"max_seq_length": 4})
    write(bert / SETTINGS, {"prompts": {"a": "b"}, "default_prompt_name": "a", "truncate_dim": 3})
    compare(bert, tmp_path / "out")


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean", ["lasttoken", "max", "mean_sqrt_len_tokens"]])
def test_prompts(source: Path, tmp_path: Path, include: bool, mode: Any) -> None:
    with_modules(source, pooling={"pooling_mode": mode, "include_prompt": include})
    write(source / SETTINGS, {"prompts": {"query": "find: ", "other": "of: "}, "default_prompt_name": "other"})
    compare(source, tmp_path / "out")
    library, ours = SentenceTransformer(str(source), device="cpu"), bitwright.load(source)
    for options in ({"prompt": "given "}, {"prompt_name": "query"}, {"prompt": ""}):
        np.testing.assert_allclose(ours.encode(TEXTS, **options), library.encode(TEXTS, **options), atol=1e-5)
    np.testing.assert_allclose(ours.encode_query(TEXTS), library.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode_document(TEXTS), library.encode_document(TEXTS), atol=1e-5)
    with pytest.raises(InputError, match="prompt_name = 'none' is unknown; this model's prompts are 'query'"):
        ours.encode(TEXTS, prompt_name="none")


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_dimensions_and_similarity(source: Path, tmp_path: Path, similarity: str) -> None:
    with_modules(source, "Normalize")
    write(source / SETTINGS, {"truncate_dim": 12, "similarity_fn_name": similarity})
    compare(source, tmp_path / "out")
    library, ours = SentenceTransformer(str(source), device="cpu"), bitwright.load(source)
    for options in ({"truncate_dim": 5}, {"normalize_embeddings": True}, {"truncate_dim": 1000}):
        np.testing.assert_allclose(ours.encode(TEXTS, **options), library.encode(TEXTS, **options), atol=1e-5)
    vectors = library.encode(TEXTS)
    np.testing.assert_allclose(ours.similarity(vectors, vectors), library.similarity(vectors, vectors), atol=2e-3)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("activation", "bias", "residual", "width"),
    [("activation.Tanh", True, False, 8), ("linear.Identity", False, True, 8), ("activation.GELU", True, True, 32),
     ("activation.ReLU", True, False, 40), ("activation.Sigmoid", True, False, 4),
     ("activation.SiLU", False, False, 9)],
)  # fmt: skip
def test_dense(
    source: Path, tmp_path: Path, weights: str, activation: str, bias: bool, residual: bool, width: int
) -> None:
    with_modules(source, "Dense", "Dropout", "LayerNorm", "Normalize")
    torch.manual_seed(0)
    tensors = {"linear.weight": torch.randn(width, 32)}
    tensors |= {"linear.bias": torch.randn(width)} if bias else {}
    tensors |= {"residual.weight": torch.randn(width, 32)} if residual and width != 32 else {}
    store(tensors, source / "2_Dense" / weights)
    dense = {"in_features": 32, "out_features": width, "bias": bias, "use_residual": residual}
    write(source / "2_Dense" / "config.json", dense | {"activation_function": f"torch.nn.modules.{activation}"})
    write(source / "3_Dropout" / "config.json", {"dropout": 0.5})
    write(source / "4_LayerNorm" / "config.json", {"dimension": width})
    store({"norm.weight": torch.rand(width), "norm.bias": torch.randn(width)}, source / "4_LayerNorm" / weights)
    compare(source, tmp_path / "out")


def store(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, {"format": "pt"}) if file.suffix == ".safetensors" else torch.save(tensors, file)


@pytest.mark.parametrize("asked", [True, False])
def test_a_mix_of_layers(source: Path, tmp_path: Path, asked: bool) -> None:
    """The library skips it unless config.json asks for the layers' outputs."""
    (source / "1_Pooling" / "config.json").unlink()
    with_modules(source, before=("WeightedLayerPooling",))
    edit(source / "config.json", output_hidden_states=asked)
    folder = source / "1_WeightedLayerPooling"
    write(folder / "config.json", {"word_embedding_dimension": 32, "layer_start": 1, "num_hidden_layers": 2})
    store({"layer_weights": torch.tensor([0.5, 2.0])}, folder / "model.safetensors")
    compare(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (SETTINGS, {"prompts": ["a"]}, r"prompts is \['a'\]; it must hold texts by name"),
        (SETTINGS, {"default_prompt_name": "no"}, "default_prompt_name is 'no', which is not one of the prompts"),
        (SETTINGS, {"truncate_dim": 0}, "truncate_dim is 0; it must be a number of values"),
        (TRANSFORMER_FILES[0], {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        (TRANSFORMER_FILES[0], {"query_length": 32}, "query_length is 32"),
        (
            TRANSFORMER_FILES[0],
            {"modality_config": {"image": {"method": "f"}}},
            "modality_config is .*; Bitwright reads only texts",
        ),
        (TRANSFORMER_FILES[0], {"processing_kwargs": {"text": {"max_length": 3}}}, "processing_kwargs is"),
    ],
)
def test_what_is_not_followed_is_refused_by_name(source: Path, name: str, content: Any, message: str) -> None:
    write(source / name, content)
    with pytest.raises(ModelError, match=rf"{name.replace('.', '[.]')}: {message}"):
        bitwright.load(source)


def test_keys_that_are_not_known_are_told(source: Path, tmp_path: Path) -> None:
    write(source / SETTINGS, {"new_key": 1, "prompts": {}, "__version__": {}})
    write(source / TRANSFORMER_FILES[0], {"max_seq_length": 9, "model_args": {"torch_dtype": "float32", "odd": 1}})
    edit(source / "1_Pooling" / "config.json", unheard_of=True)
    found = read_sentences(ModelDirectory(source), "embedding").unknown
    assert found == (
        f"{SETTINGS}: new_key",
        f"{TRANSFORMER_FILES[0]}: model_kwargs.odd",
        "1_Pooling/config.json: unheard_of",
    )
    result = bitwright.quantize(source, out=tmp_path / "out", judged=False, samples=8)
    assert any("new_key" in warning and "unheard_of" in warning for warning in result.measured.warnings)
