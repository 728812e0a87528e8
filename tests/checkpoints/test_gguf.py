"""GGUF files, written and read: bytes, names, rows and tokens; and the engine runs them as what they were made from."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import bitwright
from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.checkpoints.convert import convert
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.gguf_blocks import _blocks, blocks_of
from bitwright.checkpoints.gguf_write import write_gguf
from bitwright.cli import app
from bitwright.errors import CheckpointError, ModelError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.files.gguf.directory import GgufDirectory
from bitwright.files.gguf.header import read_gguf_header
from bitwright.files.opening import open_path
from bitwright.files.tokenizer import open_tokenizer
from bitwright.models.load import open_lazily
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.ggml import held
from bitwright.numerics.linear import InputTransform, QuantizedLinear, ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from tests.gguf_files import LLAMA, give_tokens, small_llama, write_file

TinyModel = Callable[..., Path]

_SIZE = {"head_dim": 16, "max_position_embeddings": 256, "intermediate_size": 64}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64, "rope_theta": 10000.0}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA = {
    "sliding_window": 8, "layer_types": ["sliding_attention"] * 2, "query_pre_attn_scalar": 16,
    "rope_parameters": {"sliding_attention": _LOCAL,
                        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}},
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, llama3 rope": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, yarn, biases": ("llama", {"rope_parameters": _YARN, "attention_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {}),
    "gemma3_text": ("gemma3_text", _GEMMA),
}


@pytest.fixture(scope="module")
def with_tokens(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> TinyModel:
    """A tiny model with a tokenizer that GGUF has words for."""

    def made(family: str, **config: Any) -> Path:
        path = tmp_path_factory.mktemp("model") / "m"
        shutil.copytree(tiny_model(family, **(_SIZE | config)), path)
        return give_tokens(path, texts)

    return made


def floats_of(directory: ModelDirectory) -> dict[str, np.ndarray]:
    tensors = directory.tensors
    values = {name: tensors[name] for name in tensors}
    return {name: x.widen() if isinstance(x, Bf16) else x.astype(np.float32) for name, x in values.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_comes_back_as_it_was(with_tokens: TinyModel, tmp_path: Path, name: str) -> None:
    family, config = FAMILIES[name]
    source, file = ModelDirectory(with_tokens(family, **config)), tmp_path / "model.gguf"
    written = write_gguf(source, file)
    assert written.size == file.stat().st_size
    entries = read_gguf_header(memoryview(file.read_bytes()), file).tensors.values()
    assert written.tensor_bytes == sum(entry.end - entry.begin for entry in entries)
    assert not written.losses
    found = GgufDirectory(file)
    want, values = floats_of(source), floats_of(found)
    assert values.keys() == want.keys() - ({"lm_head.weight"} if config.get("tie_word_embeddings") else set())
    for tensor, value in values.items():
        if family == "gemma3_text" and tensor.endswith("norm.weight"):  # 1 was added, and taken away
            np.testing.assert_allclose(value, want[tensor], atol=1e-7)
        else:
            np.testing.assert_array_equal(value, want[tensor], err_msg=tensor)
    for key in ("hidden_size", "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings", "layer_types"):
        if key in found.config:
            assert found.config[key] == source.config[key], key
    options: dict[str, Any] = {"compute": "bf16", "kv_cache": "bf16", "threads": 1}
    one, other = bitwright.load(source.path, **options), bitwright.load(file, **options)
    text = "The method is called whenever an attribute is not found."
    assert one.tokenize([text]) == other.tokenize([text])
    [want_answer], [answer] = (model.generate(text, max_tokens=12, temperature=0.0) for model in (one, other))
    assert answer.ids == want_answer.ids
    assert other.chat_prompt([{"role": "user", "content": text}]) == one.chat_prompt(
        [{"role": "user", "content": text}]
    )


def linear(spec: QuantSpec, seed: int = 0, *, exact: bool = True, **more: Any) -> QuantizedLinear:
    """64 inputs, 6 outputs."""
    random = np.random.default_rng(seed)
    codes = random.integers(spec.code_min, spec.code_max + 1, (6, 64)).astype(np.int8)
    groups = 64 // (spec.group_size or 64)
    scale = random.uniform(0.01, 0.1, (6, groups)).astype(np.float16 if exact else np.float32).astype(np.float32)
    zero = None if spec.symmetric or "minimum" in more else random.integers(*more.pop("zeros", (-1, 1)), (6, groups))
    minimum = more.pop("minimum", None)
    lowest = -random.uniform(0, 1, scale.shape).astype(np.float16).astype(np.float32) if minimum else None
    weight = QTensor(codes, scale, None if zero is None else zero.astype(np.int8), spec, None, lowest)
    return QuantizedLinear(weight, **more)


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("Q4_0", linear(QuantSpec(4, group_size=32))),
        ("Q4_0", linear(QuantSpec(4))),
        ("Q4_0", linear(QuantSpec(3, group_size=64))),
        ("Q4_0", linear(QuantSpec(2, grid="ternary"))),
        ("Q4_0", linear(QuantSpec(4, symmetric=False, group_size=32))),
        ("Q4_1", linear(QuantSpec(4, symmetric=False, group_size=32), minimum=True)),
        ("Q8_0", linear(QuantSpec(8, group_size=32))),
        ("Q8_0", linear(QuantSpec(8))),
        ("BF16", linear(QuantSpec(4, grid="pot"), exact=False)),
    ],
)
def test_a_weight_is_held_exactly_where_a_type_can(kind: str, made: QuantizedLinear) -> None:
    if kind == "BF16":
        scale = np.full_like(made.weight.scale_NG, 0.25)  # then all values are powers of two
        made = QuantizedLinear(QTensor(made.weight.codes_NK, scale, None, made.weight.spec))
    found = blocks_of(made)
    assert (found.type.name, found.lost) == (kind, "")
    if kind == "BF16":
        values = (found.raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = held(found.type, found.raw).dequantize()
    np.testing.assert_array_equal(values, made.weight.dequantize())


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (linear(QuantSpec(4, group_size=32), exact=False), "scales are rounded to fp16, by up to [34]"),
        (linear(QuantSpec(4, symmetric=False, group_size=32), zeros=(-8, 8), exact=False), "minima are rounded"),
        (linear(QuantSpec(8, symmetric=False), exact=False), "decoded and rounded to bf16"),
        (linear(QuantSpec(8), transform=InputTransform(np.full(64, 3, np.float32))), "decoded and rounded to bf16"),
        (linear(QuantSpec(4, group_size=8)), "decoded and rounded to bf16"),
    ],
)
def test_what_is_lost_is_said(made: QuantizedLinear, says: str) -> None:
    found = blocks_of(made)
    assert re.search(says, found.lost)


def test_codes_that_do_not_fit_are_refused() -> None:
    """They would change their neighbours."""
    with pytest.raises(NumericsError, match=r"codes lie in \[0, 16\], and 4 bits hold \[0, 15\]"):
        _blocks("Q4_0", np.array([[[0, 16] * 16]], np.int8), np.ones((1, 1), np.float32))


def test_a_file_that_is_read_and_written_has_the_same_blocks(tmp_path: Path) -> None:
    """Q4_0 with scales of both signs, as llama.cpp writes it: zero points of 0 and −1 here."""
    tensors = []
    random = np.random.default_rng(1)
    for tensor in small_llama():
        blocks = len(tensor.data) // 18
        if tensor.type == 2:
            raw = random.integers(0, 256, (blocks, 18), dtype=np.uint8)
            raw[:, :2] = random.normal(size=(blocks, 1)).astype(np.float16).view(np.uint8)
            tensor = tensor._replace(data=raw.tobytes())
        tensors.append(tensor)
    file, again = write_file(tmp_path / "a.gguf", tensors=tensors), tmp_path / "b.gguf"
    written = write_gguf(GgufDirectory(file), again)
    assert written.types == {"Q4_0": 7, "F32": 4}
    one, other = GgufDirectory(file), GgufDirectory(again)
    for name, entry in one.tensors.header.tensors.items():
        place = other.tensors.header.tensors[name]
        assert file.read_bytes()[entry.begin : entry.end] == again.read_bytes()[place.begin : place.end], name
    checkpoint = read_checkpoint(one)
    kinds = {str(x.load().weight.zero_point_NG.min()) for x in checkpoint.linears.values()}
    assert kinds == {"-1"}
    for module, pending in checkpoint.linears.items():
        assert (pending.load().form, pending.load().shape) == (pending.form, pending.shape), module


def test_a_loss_is_refused_unless_it_is_allowed(
    with_tokens: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a linear whose scales fp16 does not hold, and whose inputs are rounded."""
    source, module, file = ModelDirectory(with_tokens("llama")), "model.layers.0.mlp.down_proj", tmp_path / "m.gguf"
    random = np.random.default_rng(2)
    codes, scale = random.integers(-8, 8, (32, 64)).astype(np.int8), random.uniform(0.01, 0.1, (32, 2))
    weight = QTensor(codes, scale.astype(np.float32), None, QuantSpec(4, group_size=32))
    made = QuantizedLinear(weight, None, QuantSpec(dynamic=True))
    others = source.tensors.keys() - {f"{module}.weight"}
    checkpoint = Checkpoint(source, {module: ready(made)}, (), frozenset(others))
    source.config["quantization_config"] = {"quant_method": "bitwright"}
    monkeypatch.setattr("bitwright.checkpoints.gguf_write.read_checkpoint", lambda directory: checkpoint)
    says = r"blk.0.ffn_down.weight: scales are rounded to fp16, by up to .*; how its inputs are rounded is not stored. "
    with pytest.raises(ModelError, match=says):
        write_gguf(source, file)
    assert not list(tmp_path.iterdir())
    assert list(write_gguf(source, file, allow_loss=True).losses) == ["blk.0.ffn_down.weight"]
    (found,) = (one.load().weight for one in read_checkpoint(GgufDirectory(file)).linears.values())
    np.testing.assert_array_equal(found.codes_NK, codes)
    np.testing.assert_allclose(found.scale_NG, scale, rtol=5e-4)
    with pytest.raises(ModelError, match="there is such a file"):
        write_gguf(source, file, allow_loss=True)


@pytest.mark.parametrize(
    ("family", "config", "says"),
    [
        ("mistral", {"sliding_window": 9}, "sliding_window is 9, but llama.cpp"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7}, "use_sliding_window is True"),
        ("qwen2", {"num_attention_heads": 4}, "head_dim is 16, but llama.cpp computes with 8"),
        ("phi3", {}, "model_type is 'phi3'; Bitwright writes GGUF files of"),
        ("gemma3_text", _GEMMA | {"query_pre_attn_scalar": 40}, "query_pre_attn_scalar is 40, but llama.cpp"),
        ("llama", {}, "tokenizer of type 'WordPiece'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tiny_model: TinyModel, tmp_path: Path, family: str, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        write_gguf(ModelDirectory(tiny_model(family, **(_SIZE | config))), tmp_path / "m.gguf")


def test_a_value_that_is_no_number_is_refused_with_file_and_tensor(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf", tensors=small_llama(block=b"\x00\x7e" + bytes(16)))
    linears = read_checkpoint(GgufDirectory(file)).linears
    with pytest.raises(CheckpointError, match=r"m.gguf: blk.0.ffn_up.weight: a scale is not finite"):
        linears["model.layers.0.mlp.up_proj"].load()


def test_a_file_becomes_a_directory_with_the_same_codes(tmp_path: Path) -> None:
    entries = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
               "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 2}  # fmt: skip
    file = write_file(tmp_path / "m.gguf", LLAMA | entries)
    convert(GgufDirectory(file), "compressed-tensors", tmp_path / "out")
    found = ModelDirectory(tmp_path / "out")
    want = read_checkpoint(GgufDirectory(file)).linears
    for module, pending in read_checkpoint(found).linears.items():
        np.testing.assert_array_equal(pending.load().weight.dequantize(), want[module].load().weight.dequantize())
    assert found.transformer.object("generation_config.json") == {"eos_token_id": [2]}
    tokens = open_tokenizer(found)
    assert tokens is not None
    assert tokens.tokenizer.encode("aab").tokens == ["a", "ab"]


def test_a_file_is_not_quantized_but_its_model_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this is a GGUF file, which holds codes, and a float model is needed here"):
        open_lazily(write_file(tmp_path / "m.gguf"))


@pytest.mark.parametrize("command", ["inspect", "generate"])
def test_commands_take_a_file(with_tokens: TinyModel, tmp_path: Path, command: str) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(ModelDirectory(with_tokens("llama")), file)
    options = {"inspect": ["--json"], "generate": ["-p", "The method", "--max-tokens", "4", "--json"]}
    done = CliRunner().invoke(app, [command, str(file), *options[command]])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["format"] == "gguf" if command == "inspect" else found[0]["prompt"] == "The method"


def test_a_folder_of_gguf_files_names_one(tmp_path: Path) -> None:
    write_file(tmp_path / "m.gguf", LLAMA)
    with pytest.raises(ModelError, match=r"it holds GGUF files; give one of them, such as .*m.gguf"):
        _ = open_path(tmp_path).config


@pytest.mark.full
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_the_same(with_tokens: TinyModel, tmp_path: Path, name: str) -> None:
    """Of floats, so that it rounds no inputs: tokens and logits."""
    llama_cpp = pytest.importorskip("llama_cpp")
    family, config = FAMILIES[name]
    file = tmp_path / "model.gguf"
    write_gguf(ModelDirectory(with_tokens(family, **config)), file)
    theirs = llama_cpp.Llama(str(file), n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
    ours = bitwright.load(file, compute="bf16", kv_cache="bf16", threads=1)
    text = "The method is called whenever an attribute is not found."
    (ids,) = ours.tokenize([text])
    assert theirs.tokenize(text.encode(), add_bos=True) == ids
    theirs.eval(ids)
    want, found = np.array(theirs.scores[: len(ids)]), ours.logits(torch.tensor([ids]))[0].numpy()
    apart = np.linalg.norm(found - want, axis=1) / np.linalg.norm(want - want.mean(axis=1, keepdims=True), axis=1)
    assert apart.max() < 0.1, apart  # as of transformers, in tests/engine/test_decoders.py
