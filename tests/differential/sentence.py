"""What sentence-transformers puts beside a model, in its old and its new form."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.differential.layouts import Layout
from tests.differential.vocabulary import PROMPT

_NEW_HOMES = {
    "Transformer": "base.modules.transformer",
    "Dense": "base.modules.dense",
    "Normalize": "base.modules.normalize",
    "Pooling": "sentence_transformer.modules.pooling",
    "LayerNorm": "sentence_transformer.modules.layer_norm",
    "Dropout": "sentence_transformer.modules.dropout",
    "WeightedLayerPooling": "sentence_transformer.modules.weighted_layer_pooling",
}
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_ARGUMENTS: dict[str, Any] = {
    "tokenizer_args": {"model_max_length": 20},
    "processor_kwargs": {"model_max_length": 20, "padding_side": "left"},
    "model_args": {"attn_implementation": "eager"},
}
_MODALITY = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_SCORES = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
_VERSIONS = {"sentence_transformers": "2.7.0", "transformers": "4.41.0", "pytorch": "2.3.0"}
_NARROW = 24  # width after a Dense


def write_sentence_files(layout: Layout, path: Path, hidden: int) -> None:
    """modules.json, a folder for each module, and the two configuration files."""
    if layout.get("cross.form") == "with modules.json":
        folder = layout["cross.folder"]
        _write(path / "modules.json", [_row(0, "Transformer", folder, "new")])
        _write(path / folder / "sentence_bert_config.json", _SCORES)
        _write(path / "config_sentence_transformers.json", {"model_type": "CrossEncoder", "prompts": {}})
    if layout.get("sentence.orphans") and layout.get("cross.form") != "with modules.json":
        _write(path / "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": True})
        config = {"prompts": {"query": PROMPT}, "default_prompt_name": "query", "truncate_dim": 16}
        _write(path / "config_sentence_transformers.json", config)
    if layout.get("sentence.modules") != "there":
        return
    rows: list[dict[str, Any]] = []
    folder = layout["sentence.folder"]
    for index, (kind, config, tensors) in enumerate(_modules(layout, hidden)):
        where = folder if kind == "Transformer" else f"{index}_{kind}"
        rows.append(_row(index, kind, where, layout["sentence.types"]))
        if kind != "Transformer":
            (path / where).mkdir()
            if config is not None:
                _write(path / where / "config.json", config)
            _save(tensors, path / where / layout.get("sentence.dense_file", "model.safetensors"))
    _write(path / "modules.json", rows)
    if layout["sentence.config"] != "absent":
        _write(path / folder / f"sentence_{layout['sentence.config']}_config.json", _transformer(layout))
    if model := _model(layout):
        _write(path / "config_sentence_transformers.json", model)


def _modules(layout: Layout, hidden: int) -> list[tuple[str, dict[str, Any] | None, dict[str, torch.Tensor]]]:
    """Kind, config.json and tensors of each module, in order."""
    new = layout["sentence.types"] == "new"
    width_key = "embedding_dimension" if new else "word_embedding_dimension"
    chance, modules = torch.Generator().manual_seed(2), [("Transformer", None, {})]
    if layout["sentence.weighted_layers"]:
        weights = {"layer_weights": torch.tensor([0.5, 2.0])}
        modules.append(("WeightedLayerPooling", {width_key: hidden, "layer_start": 1, "num_hidden_layers": 2}, weights))
    modules.append(("Pooling", {width_key: hidden} | _pooling(layout), {}))
    width = hidden * len(layout["sentence.pooling"])
    if (activation := layout["sentence.dense"]) is not None:
        bias, home = layout["sentence.dense_bias"], "linear" if activation == "Identity" else "activation"
        config = {
            "in_features": width,
            "out_features": _NARROW,
            "bias": bias,
            "activation_function": f"torch.nn.modules.{home}.{activation}",
        }
        tensors = {"linear.weight": torch.randn(_NARROW, width, generator=chance) / width**0.5}
        if bias:
            tensors["linear.bias"] = torch.randn(_NARROW, generator=chance) / 2
        if layout["sentence.dense_residual"]:
            config["use_residual"] = True
            if width != _NARROW:
                tensors["residual.weight"] = torch.randn(_NARROW, width, generator=chance) / width**0.5
        modules.append(("Dense", config, tensors))
        width = _NARROW
    if layout["sentence.layer_norm"]:
        tensors = {"norm.weight": 1 + torch.randn(width, generator=chance) / 4, "norm.bias": torch.ones(width) / 8}
        modules.append(("LayerNorm", {"dimension": width}, tensors))
    if layout["sentence.dropout"]:
        modules.append(("Dropout", {"dropout": 0.2}, {}))
    if layout["sentence.normalize"]:
        names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        modules.append(("Normalize", names if new else None, {}))
    return modules


def _pooling(layout: Layout) -> dict[str, Any]:
    modes = layout["sentence.pooling"]
    if "flags" in layout["sentence.pooling_form"]:
        known = list(_FLAGS.items())
        if layout["sentence.pooling_form"] == "first three flags":  # the others came later
            known = [(mode, flag) for mode, flag in known if mode in modes or mode in ("cls", "mean", "max")]
        config: dict[str, Any] = {flag: mode in modes for mode, flag in known}
    else:
        config = {"pooling_mode": modes[0] if len(modes) == 1 else list(modes)}
    if layout["sentence.include_prompt"] != "absent":
        config["include_prompt"] = layout["sentence.include_prompt"]
    return config


def _transformer(layout: Layout) -> dict[str, Any]:
    """sentence_*_config.json."""
    given = {"max_seq_length": layout["sentence.max_length"], "do_lower_case": layout["sentence.lower"]}
    config = {key: value for key, value in given.items() if value != "absent"}
    arguments = layout["sentence.arguments"]
    if arguments == "modality":
        return config | _MODALITY
    return config | ({arguments: _ARGUMENTS[arguments]} if arguments else {})


def _model(layout: Layout) -> dict[str, Any]:
    """config_sentence_transformers.json; {}: none."""
    config: dict[str, Any] = {}
    if layout["sentence.prompts"]:
        config["prompts"] = {"query": PROMPT, "document": ""}
        config["default_prompt_name"] = "query" if layout["sentence.prompts"] == "default" else None
    if layout["sentence.truncate"]:
        config["truncate_dim"] = layout["sentence.truncate"]
    if layout["sentence.similarity"] != "absent":
        config["similarity_fn_name"] = layout["sentence.similarity"]
    if layout["sentence.unknown_key"]:
        config |= {"base_model": "someone/a-model", "model_type": "SentenceTransformer"}
    return config and {"__version__": _VERSIONS} | config


def _row(index: int, kind: str, folder: str, types: str) -> dict[str, Any]:
    """A row of modules.json."""
    home = "models" if types == "old" else _NEW_HOMES[kind]
    return {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.{home}.{kind}"}


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    if tensors and file.suffix == ".bin":
        torch.save(tensors, file)
    elif tensors:
        save_file(tensors, file)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2))
