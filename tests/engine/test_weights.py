"""Directories whose files contradict one another: told, before native code sees an address."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.ops import Multiply
from bitwright.engine.weights import open_weights
from bitwright.errors import CheckpointError, EngineError, ModelError
from bitwright.files.directory import ModelDirectory

TinyModel = Callable[..., Path]
Written = Callable[..., Path]
Open = Callable[..., Executor]
BLOCK = "encoder.layer.0."


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("bert"), tmp_path / "copy"))


def change(directory: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "embeddings.position_embeddings.weight",
            torch.zeros(40, 32),
            "66 tokens, but the position table has rows for only 40",
        ),
        ("embeddings.position_embeddings.weight", torch.zeros(66, 16), r"\[66, 16\]; rows of 32 values"),
        ("embeddings.token_type_embeddings.weight", torch.zeros(2, 8), r"\[2, 8\]; rows of 32 values"),
        ("embeddings.word_embeddings.weight", torch.zeros(32), r"\[32\], but a table has"),
        ("embeddings.LayerNorm.weight", torch.ones(31), r"\[31\]; \(32,\) is expected"),
        (f"{BLOCK}output.LayerNorm.bias", torch.ones(1, 32), r"\[1, 32\]; \(32,\) is expected"),
        (f"{BLOCK}intermediate.dense.bias", torch.ones(63), r"\[63\], but \(64,\) is expected"),
        (f"{BLOCK}output.dense.weight", torch.zeros(48, 64), r"\[32\], but \(48,\) is expected"),
        (f"{BLOCK}output.dense.weight", torch.zeros(64), r"\[64\], but a linear has"),
        (f"{BLOCK}output.dense.weight", torch.zeros(32, 64, dtype=torch.int32), "is I32, but must be a float tensor"),
        (f"{BLOCK}output.dense.weight", None, "the files hold no 'encoder.layer.0.output.dense.weight'"),
    ],
)
def test_tensors_that_do_not_fit(copy: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    change(copy, name, value)
    with pytest.raises(CheckpointError, match=message):
        lower_encoder(open_weights(ModelDirectory(copy)))


def test_a_linear_of_another_input(copy: Path) -> None:
    change(copy, f"{BLOCK}intermediate.dense.weight", torch.zeros(64, 48))
    with pytest.raises(EngineError, match="K = 48 of an input of 32 values"):
        lower_encoder(open_weights(ModelDirectory(copy)))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("num_attention_heads", 5, EngineError, "5 heads of 96 / 3 values"),
        ("num_attention_heads", "2", CheckpointError, "num_attention_heads is '2', but must be a number from 1 to"),
        ("num_hidden_layers", 3, CheckpointError, "the files hold no 'encoder.layer.2"),
        ("max_position_embeddings", 10**12, ModelError, "max_position_embeddings is 1000000000000; the files hold"),
        ("layer_norm_eps", "small", CheckpointError, "layer_norm_eps is 'small', but must be a positive number"),
        ("layer_norm_eps", 10**400, CheckpointError, "layer_norm_eps is 1000*…, but must be a positive number"),
        ("layer_norm_eps", 1e300, CheckpointError, r"layer_norm_eps is 1e\+300, but must be a positive number"),
        ("architectures", ["BertForMultipleChoice"], ModelError, "BertForMultipleChoice in config.json is for none of"),
        ("architectures", ["BertLMHeadModel"], EngineError, "does not run BertLMHeadModel"),
        ("architectures", 5, ModelError, "architectures in config.json is 5; it must be a list of class names"),
        ("architectures", {"a": 1}, ModelError, "architectures in config.json is {'a': 1}; it must be a list"),
        ("architectures", [["BertModel"]], ModelError, "it must be a list of class names"),
    ],
)
def test_configs_that_do_not_fit(copy: Path, key: str, value: object, error: type[Exception], message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(error, match=message):
        lower_encoder(open_weights(ModelDirectory(copy)))


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        open_weights(ModelDirectory(copy))


def test_truncated(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        open_weights(ModelDirectory(copy))


@pytest.mark.parametrize(
    ("family", "key", "value", "error", "message"),
    [
        ("roberta", "pad_token_id", -5, EngineError, "pad_token_id is -5, but it must be a token id"),
        ("roberta", "pad_token_id", None, EngineError, "pad_token_id is None"),
        ("modernbert", "hidden_size", 16, CheckpointError, "heads of 16 values, but 4 angles for each"),
        ("modernbert", "layer_types", ["full_attention"], EngineError, "for 1 blocks"),
        ("modernbert", "layer_types", [["a"], ["b"]], EngineError, "for 2 blocks"),
        ("modernbert", "layer_types", 7, CheckpointError, "layer_types is 7, but must be a list"),
        ("modernbert", "sliding_window", 4, EngineError, "support sliding_window together with local_attention"),
        ("modernbert", "rope_scaling", {"rope_type": "linear", "factor": 4.0}, EngineError, "does not support a rope"),
        ("modernbert", "rope_parameters", [1], EngineError, r"support a rope of \[1\]"),
        (
            "modernbert",
            "rope_parameters",
            {"rope_type": "default", "rope_theta": 9.0},
            EngineError,
            "does not support a rope",
        ),
        ("modernbert", "rope_parameters", {"full_attention": [1]}, EngineError, "does not support a rope"),
        (
            "modernbert",
            "rope_parameters",
            {"full_attention": {"rope_type": "yarn"}},
            EngineError,
            "does not support a rope",
        ),
        (
            "modernbert",
            "rope_parameters",
            {"sliding_attention": {"partial_rotary_factor": 0.5}},
            EngineError,
            "does not support",
        ),
        (
            "modernbert",
            "rope_parameters",
            {"full_attention": {"rope_theta": 10**400}},
            CheckpointError,
            "rope_theta is 1000",
        ),
        ("modernbert", "max_position_embeddings", 1 << 20, EngineError, "too many rotary angles"),
        ("deberta-v2", "max_relative_positions", 10**400, CheckpointError, "max_relative_positions = 1000"),
        (
            "mpnet",
            "max_position_embeddings",
            1 << 20,
            CheckpointError,
            "1048574 tokens, but the position table has rows for only 64",
        ),
    ],
)
def test_configs_of_other_families(
    tiny_model: TinyModel, tmp_path: Path, family: str, key: str, value: object, error: type[Exception], message: str
) -> None:
    copy = Path(shutil.copytree(tiny_model(family), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(error, match=message):
        lower_encoder(open_weights(ModelDirectory(copy)))


@pytest.mark.parametrize(
    ("family", "without", "same"),
    [
        ("bert", ["hidden_act", "layer_norm_eps"], {}),
        ("roberta", ["layer_norm_eps"], {"layer_norm_eps": 1e-12}),
        ("albert", ["hidden_act"], {"hidden_act": "gelu_new"}),
        ("modernbert", ["local_attention", "hidden_activation"], {"local_attention": 128}),
        (
            "modernbert",
            ["layer_types", "global_attn_every_n_layers"],
            {"layer_types": ["full_attention", "sliding_attention"]},
        ),
    ],
)
def test_what_a_config_leaves_out_has_the_default_of_transformers(
    tiny_model: TinyModel, tmp_path: Path, sequences: list[list[int]], opened: Open, family: str, without: list[str],
    same: dict[str, object],
) -> None:  # fmt: skip
    source = tiny_model(family)
    config = json.loads((source / "config.json").read_text()) | same
    outputs = []
    for name, dropped in (("all", []), ("less", without)):
        copy = Path(shutil.copytree(source, tmp_path / name))
        (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in dropped}))
        outputs.append(opened(copy).run(sequences, 1))
        settings = AutoConfig.from_pretrained(copy)
        assert all(getattr(settings, key, value) == value for key, value in same.items())
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(("family", "tokens"), [("bert", 512), ("deberta-v2", 512), ("modernbert", 8192)])
def test_positions_that_a_config_leaves_out(tiny_model: TinyModel, tmp_path: Path, family: str, tokens: int) -> None:
    source = tiny_model(family, max_position_embeddings=tokens)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    assert config.pop("max_position_embeddings") == tokens == AutoConfig.for_model(family).max_position_embeddings
    (copy / "config.json").write_text(json.dumps(config))
    assert lower_encoder(open_weights(ModelDirectory(copy))).max_tokens == tokens


@pytest.mark.parametrize("key", ["num_attention_heads", "num_hidden_layers"])
def test_sizes_that_a_config_leaves_out_go_to_transformers(copy: Path, key: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=f"leaves out {key}"):
        lower_encoder(open_weights(ModelDirectory(copy)))


def test_q_k_and_v_of_unequal_sizes(copy: Path) -> None:
    for part, rows in (("query", 48), ("key", 16), ("value", 32)):
        change(copy, f"{BLOCK}attention.self.{part}.weight", torch.zeros(rows, 32))
        change(copy, f"{BLOCK}attention.self.{part}.bias", torch.zeros(rows))
    with pytest.raises(CheckpointError, match=f"{BLOCK}attention.self.key has 16 rows, but .*query has 48"):
        lower_encoder(open_weights(ModelDirectory(copy)))


WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def int8_words(written: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written("bert", scheme="w8a8", embeddings="int8"), tmp_path / "copy"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scales_of_a_table_are_read_in_their_dtype(int8_words: Path, opened: Open, dtype: torch.dtype) -> None:
    scale = load_file(int8_words / "model.safetensors")[f"{WORDS}_scale"].to(dtype)
    change(int8_words, f"{WORDS}_scale", scale.float())
    want = opened(int8_words).run([[5, 6, 7]], 1)
    change(int8_words, f"{WORDS}_scale", scale)
    weights = open_weights(ModelDirectory(int8_words))
    _, got = weights.table(WORDS)
    assert got is not None
    assert got.dtype == np.float32
    np.testing.assert_array_equal(opened(int8_words).run([[5, 6, 7]], 1), want)
    codes = load_file(int8_words / "model.safetensors")[WORDS]
    np.testing.assert_array_equal(weights.floats(WORDS), codes[:, 0].float() * scale.float())


def test_floats_of_eight_bits_are_left_to_the_generic_path(written: Written, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(written("bert", scheme="w8a8"), tmp_path / "copy"))
    name = "embeddings.LayerNorm.weight"
    change(directory, name, load_file(directory / "model.safetensors")[name].to(torch.float8_e4m3fn))
    with pytest.raises(EngineError, match="is stored as F8_E4M3"):
        lower_encoder(open_weights(ModelDirectory(directory)))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{WORDS}_scale", torch.full((200, 1), math.nan), "weight_scale: every scale must be finite and positive"),
        (f"{WORDS}_scale", torch.full((200, 1), -0.5), "every scale must be finite and positive"),
        (f"{WORDS}_scale", torch.full((200, 1), 1e300, dtype=torch.float64), "every scale must be finite and positive"),
        (f"{WORDS}_scale", torch.ones(200, 1, dtype=torch.int32), f"{WORDS}_scale is I32, but must be a float tensor"),
        (f"{WORDS}_scale", torch.ones(100, 1), r"weight \[200, 1, 32\] with weight_scale \[100, 1\]"),
        (WORDS, torch.ones(200, 2, 32, dtype=torch.int8), r"weight \[200, 2, 32\] with weight_scale \[200, 1\]"),
        (WORDS, torch.ones(200, 1, 32), f"{WORDS} is F32, but must be I8"),
    ],
)  # fmt: skip
def test_tables_that_contradict(int8_words: Path, name: str, value: torch.Tensor, message: str) -> None:
    change(int8_words, name, value)
    for read in (open_weights(ModelDirectory(int8_words)).table, open_weights(ModelDirectory(int8_words)).floats):
        with pytest.raises(CheckpointError, match=message):
            read(WORDS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_scale_K", torch.zeros(32), "input_scale_K = 0.0.*: it must be finite, positive"),
        ("input_scale_K", -torch.ones(32), "input_scale_K = -1.0: it must be finite, positive"),
        ("input_scale_K", torch.full((32,), 1e-42), "input_scale_K = .*e-42.*not subnormal"),
        ("input_scale_K", torch.ones(31), r"input_scale_K is F32 \[31\]; expected F32 \[32\]"),
        ("input_scale", torch.tensor([0.1, 5.0]), r"input_scale is F32 \[2\]; expected F32 \[1\]"),
        ("input_scale", torch.zeros(0), r"input_scale is F32 \[0\]; expected F32 \[1\]"),
        ("input_scale", torch.tensor([math.inf]), "input_scale = inf: it must be finite"),
        ("input_zero_point", torch.zeros(2, dtype=torch.int8), r"input_zero_point is I8 \[2\]; expected I8 \[1\]"),
        ("input_zero_point", torch.zeros(0, dtype=torch.int8), r"input_zero_point is I8 \[0\]; expected I8 \[1\]"),
        ("input_zero_point", torch.tensor([math.nan]), r"input_zero_point is F32 \[1\]; expected I8"),
        ("input_zero_point", torch.tensor([300], dtype=torch.int32), r"input_zero_point is I32 \[1\]; expected I8"),
    ],
)  # fmt: skip
def test_grids_that_contradict(written: Written, tmp_path: Path, name: str, value: torch.Tensor, message: str) -> None:
    copy = Path(shutil.copytree(written("bert", scheme="w8a8_static", method="smoothquant"), tmp_path / "copy"))
    change(copy, f"{BLOCK}intermediate.dense.{name}", value)
    with pytest.raises(CheckpointError, match=message):
        lower_encoder(open_weights(ModelDirectory(copy)))


def test_a_block_that_runs_again_has_its_weights_once(tiny_model: TinyModel) -> None:
    program = lower_encoder(open_weights(ModelDirectory(tiny_model("albert"))))
    weights = [op.weight for op in program.ops if isinstance(op, Multiply) and "ffn_output" in op.name]
    assert len(weights) == 2
    assert weights[0] is weights[1]
