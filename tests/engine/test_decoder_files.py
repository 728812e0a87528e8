"""What config.json and the files of a language model say to the engine: followed as transformers does, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bitwright.engine.decoders import Arithmetic, lower_decoder
from bitwright.engine.lowering import MOST_TAPS
from bitwright.engine.weights import open_weights
from bitwright.errors import BitwrightError, CheckpointError, EngineError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import native
from tests.engine.running import HEADS, KINDS, MINISTRAL3, WIDE, YARN, Running

TinyModel = Callable[..., Path]


@pytest.mark.parametrize(
    ("family", "config", "error", "says"),
    [
        ("bert", {}, EngineError, "no language model"),
        ("mixtral", {}, EngineError, "model_type 'mixtral'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, EngineError, "rope_type 'dynamic'"),
        ("llama", {"head_dim": 12}, EngineError, "multiples of 16"),
        ("lfm2", {"conv_L_cache": 9, "head_dim": 16}, EngineError, "a convolution over 9 tokens; .* up to 8"),
        ("llama", HEADS | {"residual_multiplier": 0.5}, EngineError, "residual_multiplier = 0.5"),
        ("llama", HEADS | {"is_causal": False}, EngineError, "generates no text"),
        ("smollm3", HEADS | {"no_rope_layers": [1, 2]}, EngineError, r"no_rope_layers \[1, 2\] for 2 blocks"),
        (
            "smollm3",
            HEADS | {"use_sliding_window": False, "sliding_window": 7, "layer_types": ["sliding_attention"] * 2},
            EngineError,
            "with use_sliding_window = False",
        ),
        ("llama", HEADS | {"rope_parameters": MINISTRAL3}, EngineError, "llama_4_scaling_beta in this family"),
        ("stablelm", WIDE | {"use_parallel_residual": True}, EngineError, "use_parallel_residual = True"),
        ("stablelm", WIDE | {"qk_layernorm": True}, EngineError, "qk_layernorm = True"),
        ("cohere", HEADS | {"use_qk_norm": True}, EngineError, "use_qk_norm = True"),
        ("hyperclovax", HEADS | {"use_post_norm": False}, EngineError, "use_post_norm = False"),
        ("gemma", HEADS | {"use_bidirectional_attention": True}, EngineError, "use_bidirectional_attention = True"),
    ],
)
def test_what_the_engine_cannot_run_is_refused(
    tiny_model: TinyModel, family: str, config: dict[str, Any], error: type[BitwrightError], says: str
) -> None:
    with pytest.raises(error, match=says):
        lower_decoder(open_weights(ModelDirectory(tiny_model(family, **config))))


@pytest.mark.parametrize(
    ("family", "key"),
    [("mistral", "sliding_window"), ("qwen2", "use_sliding_window"), ("qwen3", "head_dim"),
     ("gemma3_text", "query_pre_attn_scalar"), ("llama", "rms_norm_eps"), ("granite", "attention_multiplier"),
     ("ministral3", "head_dim"), ("smollm3", "layer_types"), ("lfm2", "conv_L_cache"), ("olmo3", "sliding_window"),
     ("olmo3", "rope_parameters"), ("exaone4", "layer_types"), ("gemma2", "attn_logit_softcapping"),
     ("helium", "rope_parameters"), ("cohere", "logit_scale"), ("glm4", "head_dim"), ("starcoder2", "norm_epsilon")],
)  # fmt: skip
def test_a_key_whose_default_is_the_familys_own_is_left_to_transformers(
    tiny_model: TinyModel, tmp_path: Path, family: str, key: str
) -> None:
    import json
    import shutil

    shutil.copytree(tiny_model(family, **(WIDE if family == "helium" else HEADS)), tmp_path / "less")
    config = json.loads((tmp_path / "less" / "config.json").read_text())
    del config[key]
    (tmp_path / "less" / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=f"config.json leaves out {key}"):
        lower_decoder(open_weights(ModelDirectory(tmp_path / "less")))


def test_a_rope_with_keys_that_nobody_follows_is_refused(tiny_model: TinyModel) -> None:
    directory = tiny_model("llama", **(HEADS | {"rope_parameters": YARN | {"short_factor": [1.0]}}))
    with pytest.raises(EngineError, match="rope's keys 'short_factor'"):
        lower_decoder(open_weights(ModelDirectory(directory)))


def test_blocks_are_of_the_kinds_that_older_files_count(tiny_model: TinyModel, tmp_path: Path, ids: list[int]) -> None:
    import json
    import shutil

    directory = tiny_model("lfm2", **HEADS)
    shutil.copytree(directory, tmp_path / "older")
    config = json.loads((directory / "config.json").read_text())
    assert config.pop("layer_types") == ["conv", "full_attention"]
    assert config["full_attn_idxs"] == [1, 3]
    (tmp_path / "older" / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(Running(tmp_path / "older").logits(ids, []), Running(directory).logits(ids, []))
    (tmp_path / "older" / "config.json").write_text(json.dumps(config | {"layer_types": ["conv", "mamba"]}))
    with pytest.raises(EngineError, match=r"does not support layer_types \['conv', 'mamba'\] for 2 blocks"):
        Running(tmp_path / "older")
    (tmp_path / "older" / "config.json").write_text(json.dumps(config | {"layer_types": ["conv"] * 2}))
    with pytest.raises(CheckpointError, match=r"conv.in_proj"):
        Running(tmp_path / "older")
    (tmp_path / "older" / "config.json").write_text(json.dumps(config | {"conv_L_cache": 4}))
    with pytest.raises(
        CheckpointError, match=r"conv.conv.weight has the shape \[32, 1, 3\], .* \(32, 1, 4\) and 32 are"
    ):
        Running(tmp_path / "older")


@pytest.mark.parametrize(
    ("family", "config", "left_out", "old"),
    [
        ("olmo3", {"sliding_window": 7, "num_hidden_layers": 4}, ("layer_types",), {}),
        ("gemma2", {"sliding_window": 7, "num_hidden_layers": 3}, ("layer_types",), {}),
        ("vaultgemma", {"sliding_window": 7, "num_hidden_layers": 3}, ("layer_types",), {}),
        ("gemma", {}, (), {"hidden_act": "gelu"}),
        ("glm", {}, ("rope_parameters",), {"rope_theta": 5000.0}),
        ("nemotron", {}, ("rope_parameters",), {}),
        ("phi", {"hidden_size": 64}, ("rope_parameters",), {"partial_rotary_factor": 0.25}),
        ("cohere2", {"hidden_size": 64, "sliding_window": 7, "num_hidden_layers": 3}, ("layer_types",),
         {"sliding_window_pattern": 3}),
        ("stablelm", {"hidden_size": 64}, ("rope_parameters",), {}),
        ("olmo3", {"sliding_window": 7}, ("rope_parameters",), {"rope_theta": 500000.0}),
        ("olmo3", {"sliding_window": 7, "layer_types": ["full_attention"] * 2}, ("rope_parameters",),
         {"rope_theta": 3000.0}),
        ("olmo3", {"sliding_window": 7, "layer_types": KINDS}, ("rope_parameters",),
         {"rope_theta": 500000.0, "rope_scaling": {key: YARN[key] for key in YARN if key != "rope_theta"}}),
    ],
    ids=str,
)  # fmt: skip
def test_older_files_mean_what_they_mean_to_transformers(
    tiny_model: TinyModel, tmp_path: Path, ids: list[int], family: str, config: dict[str, Any],
    left_out: tuple[str, ...], old: dict[str, Any],
) -> None:  # fmt: skip
    import json
    import shutil

    shutil.copytree(tiny_model(family, **(HEADS | config)), tmp_path / "older")
    file = tmp_path / "older" / "config.json"
    said = json.loads(file.read_text())
    for key in left_out:
        del said[key]
    file.write_text(json.dumps(said | old))
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "older", dtype=torch.float32).eval()
    with torch.inference_mode():
        want = hf(torch.tensor([ids])).logits[0].numpy()
    found = Running(tmp_path / "older", arithmetic=Arithmetic(head="16")).logits(ids, [])
    assert np.linalg.norm(found - want) < 0.03 * np.linalg.norm(want - want.mean(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("old", "says"),
    [
        ({"rope_theta": 3000.0}, "rope_theta = 3000.0 where config.json has not rope_parameters for each kind"),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}, "a rope of .* in this family"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "a rope of .* in this family"),
    ],
)
def test_angles_that_versions_of_transformers_read_differently_are_refused(
    tiny_model: TinyModel, tmp_path: Path, old: dict[str, Any], says: str
) -> None:
    import json
    import shutil

    shutil.copytree(tiny_model("olmo3", **HEADS), tmp_path / "older")
    file = tmp_path / "older" / "config.json"
    said = json.loads(file.read_text())
    del said["rope_parameters"]
    file.write_text(json.dumps(said | old))
    with pytest.raises(EngineError, match=says):
        Running(tmp_path / "older")


def test_a_convolution_as_wide_as_config_json_does_not_say_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Its cache would be as wide as the model."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model("lfm2", **HEADS), tmp_path / "wide")
    tensors, name = load_file(tmp_path / "wide" / "model.safetensors"), "model.layers.0.conv."
    tensors |= {name + part: torch.cat([tensors[name + part]] * 2) for part in ("in_proj.weight", "conv.weight")}
    tensors[name + "out_proj.weight"] = torch.cat([tensors[name + "out_proj.weight"]] * 2, 1)
    save_file(tensors, tmp_path / "wide" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"has the shape \[64, 1, 3\], and reads 192 / 3 values; \(32, 1, 3\) and 32"
    ):
        Running(tmp_path / "wide")


def test_convolutions_are_as_long_as_native_code_takes_them() -> None:
    assert native.load().MOST_TAPS == MOST_TAPS


def test_a_head_that_is_missing_is_named(tiny_model: TinyModel, tmp_path: Path) -> None:
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model("llama", **HEADS), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("lm_head.weight", None)
    save_file(tensors, broken / "model.safetensors")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"no lm_head.weight"):
        lower_decoder(open_weights(ModelDirectory(broken)))
