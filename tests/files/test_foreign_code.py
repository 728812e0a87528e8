"""Code of others is neither run unasked nor replaced in silence; what a model names is not opened elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.foreign_code import check_config, check_foreign_code


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "vocab.txt").write_text("a")
    (tmp_path / "secret").write_text("TOP")
    return folder


def write(model: Path, name: str, content: Any) -> None:
    old = json.loads((model / name).read_text()) if (model / name).exists() else {}
    (model / name).write_text(json.dumps(old | content if isinstance(content, dict) else content))


FOREIGN: list[tuple[str, Any, str]] = [
    ("config.json", {"auto_map": {"AutoModel": "modeling_x.X"}}, "auto_map"),
    ("config.json", {"attn_implementation": "kernels-community/flash-attn2"}, "attn_implementation"),
    ("config.json", {"_attn_implementation": "someone/kernel@v1:f"}, "_attn_implementation"),
    ("config.json", {"attn_implementation": "flash_attention_2"}, "attn_implementation"),
    ("config.json", {"attn_implementation": {"": "sdpa", "text_config": "a/b"}}, "attn_implementation"),
    ("config.json", {"attn_implementation": {"": {"": {"": "sdpa"}}}}, "attn_implementation"),
    ("config.json", {"attn_implementation": "\0a/b"}, "attn_implementation"),
    ("config.json", {"text_config": {"_experts_implementation": "sonicmoe"}}, "text_config._experts_implementation"),
    ("config.json", {"sentence_transformers": {"activation_fn": "os.abort"}}, "sentence_transformers.activation_fn"),
    ("config.json", {"sbert_ce_default_activation_function": "x.Y"}, "sbert_ce_default_activation_function"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.T", None]}}, "auto_map"),
    ("tokenizer_config.json", {"auto_map": ["tok.T", None]}, "auto_map"),
    ("tokenizer_config.json", {"vocab_file": "{there}/secret"}, "vocab_file"),
    ("tokenizer_config.json", {"merges_file": "../secret"}, "merges_file"),
    ("tokenizer_config.json", {"fast_tokenizer_files": ["vocab.txt", "../secret"]}, "fast_tokenizer_files"),
    ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "p.P"}}, "auto_map"),
    ("sentence_bert_config.json", {"model_args": {"attn_implementation": "a/b"}}, "model_args.attn_implementation"),
    ("sentence_xlnet_config.json", {"model_kwargs": {"use_kernels": True}}, "model_kwargs.use_kernels"),
    ("sentence_bert_config.json", {"tokenizer_args": {"tokenizer_file": "{there}/secret"}}, "tokenizer_args.tokenizer"),
    ("adapter_config.json", {"base_model_name_or_path": "a/b"}, "base_model_name_or_path"),
]


@pytest.mark.parametrize(("name", "content", "key"), FOREIGN)
def test_what_runs_or_fetches_is_refused_by_name_unless_it_is_trusted(
    model: Path, name: str, content: Any, key: str
) -> None:
    write(model, name, json.loads(json.dumps(content).replace("{there}", str(model.parent))))
    with pytest.raises(ModelError, match=rf"{name}: {key}.* = .*--trust-remote-code"):
        check_foreign_code(ModelDirectory(model), trusted=False)
    check_foreign_code(ModelDirectory(model), trusted=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"auto_map": {}, "attn_implementation": "sdpa", "_name_or_path": "org/name"}),
        ("config.json", {"_attn_implementation": None, "text_config": {"attn_implementation": {"": "eager"}}}),
        ("config.json", {"_experts_implementation": "grouped_mm", "activation_fn": "gelu", "vocab": "../secret"}),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}),
        ("config.json", {"_attn_implementation_autoset": True, "base_model_name_or_path": "a/b"}),
        ("tokenizer_config.json", {"tokenizer_file": "{there}/secret", "special_tokens_map_file": "{there}/secret"}),
        ("tokenizer_config.json", {"vocab_file": "vocab.txt", "merges_file": "/gone", "vocab": {"a": 1}}),
        ("tokenizer_config.json", {"vocab_file": "\0", "merges_file": "a" * 9999, "gguf_file": ""}),
        ("tokenizer_config.json", {"name_or_path": "{there}/secret", "chat_template": "{{ a }}" * 9999}),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True, "attn_implementation": "sdpa"}}),
    ],
)
def test_what_ordinary_models_say_passes(model: Path, name: str, content: Any) -> None:
    write(model, name, json.loads(json.dumps(content).replace("{there}", str(model.parent))))
    check_foreign_code(ModelDirectory(model), trusted=False)


def test_a_tokenizer_may_name_the_links_of_a_hub_cache(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("a")
    (snapshot / "vocab.txt").symlink_to(blobs / "1")
    check_config({"vocab_file": "vocab.txt"}, snapshot / "tokenizer_config.json", trusted=False)


def test_names_are_not_looked_up_where_we_are(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers opens a relative name in the working directory."""
    monkeypatch.chdir(model.parent)
    with pytest.raises(ModelError, match="merges_file = 'secret': this is a file outside"):
        check_config({"merges_file": "secret"}, model / "tokenizer_config.json", trusted=False)


@pytest.mark.parametrize("kind", ["custom_st.Transformer", "pylate.models.Dense.Dense", "Transformer"])
def test_modules_of_others_are_never_taken_for_those_of_the_library(model: Path, kind: str) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (model / "modules.json").write_text(json.dumps(modules))
    for trusted in (False, True):
        with pytest.raises(ModelError, match=rf"modules\.json: type = '{kind}'"):
            check_foreign_code(ModelDirectory(model), trusted=trusted)
    for ours in (
        "sentence_transformers.models.Transformer",
        "sentence_transformers.base.modules.transformer.Transformer",
    ):
        (model / "modules.json").write_text(json.dumps([modules[0] | {"type": f"sentence_transformers.{ours}"}]))
        check_foreign_code(ModelDirectory(model), trusted=False)
