"""A model directory whose Transformer has a folder of its own, and its flat twin."""

import json
import shutil
from pathlib import Path
from typing import Any

FOLDER = "0_Transformer"
TEXTS = ["A text.", "a text with more than as many tokens as are read, so that it is cut. " * 3, ""]
OF_PACKAGE = ("modules.json", "config_sentence_transformers.json", "README.md")
SETTINGS = {
    "prompts": {"query": "ask: ", "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "dot",
    "truncate_dim": 24,
}  # fmt: skip
CROSS_ENCODER = {"model_type": "CrossEncoder", "prompts": {}}
SCORES = {
    "transformer_task": "sequence-classification", "module_output_name": "scores",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
}  # fmt: skip
POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def rows(*modules: tuple[str, str]) -> list[dict[str, Any]]:
    """modules.json of (kind, path)."""
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]


def flat_embedder(model: Path, out: Path) -> Path:
    """A model of transformers as sentence-transformers has it: a prompt, cut at 48 tokens, pooled by its first one."""
    shutil.copytree(model, out)
    modules = rows(("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    (out / "modules.json").write_text(json.dumps(modules))
    (out / "config_sentence_transformers.json").write_text(json.dumps(SETTINGS))
    (out / "sentence_bert_config.json").write_text('{"max_seq_length": 48, "do_lower_case": false}')
    (out / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (out / "1_Pooling").mkdir()
    (out / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    return out


def flat_reranker(model: Path, out: Path) -> Path:
    """A classifier with one label as CrossEncoder saves it."""
    shutil.copytree(model, out)
    (out / "modules.json").write_text(json.dumps(rows(("Transformer", ""))))
    (out / "config_sentence_transformers.json").write_text(json.dumps(CROSS_ENCODER))
    (out / "sentence_bert_config.json").write_text(json.dumps(SCORES))
    return out


def nested(flat: Path, out: Path, folder: str = FOLDER) -> Path:
    """The same model with its Transformer in `folder`."""
    modules = json.loads((flat / "modules.json").read_text())
    others = {module["path"] for module in modules[1:]}
    shutil.copytree(flat, out / folder)
    for name in (*OF_PACKAGE, *others):
        if (inside := out / folder / name).is_dir():
            shutil.copytree(inside, out / name, dirs_exist_ok=True)
            shutil.rmtree(inside)
        elif inside.exists():
            inside.rename(out / name)
    (out / "modules.json").write_text(json.dumps([modules[0] | {"path": folder}, *modules[1:]]))
    return out
