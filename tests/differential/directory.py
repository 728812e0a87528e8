"""A layout as a directory: config.json and weights; the other files by `tokenizer` and `sentence`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.differential.layouts import FAMILIES, VARIANTS, Layout, tokenizer_family
from tests.differential.sentence import write_sentence_files
from tests.differential.tokenizer import vocabulary_size, write_tokenizer
from tests.families import small_config, small_model

_ACTIVATION_KEYS = {"distilbert": "activation", "modernbert": "hidden_activation"}
_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BIN = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}

# Of the head for masked words: name -> shape in vocabulary V and hidden size H.
_BERT_HEAD = {
    "cls.predictions.bias": "V",
    "cls.predictions.transform.dense.weight": "HH",
    "cls.predictions.transform.dense.bias": "H",
    "cls.predictions.transform.LayerNorm.weight": "H",
    "cls.predictions.transform.LayerNorm.bias": "H",
    "cls.predictions.decoder.weight": "VH",
    "cls.seq_relationship.weight": "2H",
    "cls.seq_relationship.bias": "2",
}
_ROBERTA_HEAD = {"lm_head.bias": "V", "lm_head.dense.weight": "HH", "lm_head.dense.bias": "H",
                 "lm_head.layer_norm.weight": "H", "lm_head.layer_norm.bias": "H"}  # fmt: skip
_HEADS = {
    "albert": {"predictions.bias": "V", "predictions.dense.weight": "HH", "predictions.LayerNorm.weight": "H"},
    "distilbert": {"vocab_transform.weight": "HH", "vocab_transform.bias": "H", "vocab_projector.weight": "VH"},
    "electra": {"discriminator_predictions.dense.weight": "HH", "generator_lm_head.weight": "VH"},
    "modernbert": {"head.dense.weight": "HH", "decoder.bias": "V"},
    **dict.fromkeys(("bert", "ernie", "deberta-v2"), _BERT_HEAD),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), _ROBERTA_HEAD),
}
_DECODER_HEAD = {"lm_head.weight": "VH"}


def write(layout: Layout, path: Path) -> None:
    """All files of a layout. The same layout gives the same bytes."""
    path.mkdir(parents=True)
    model = _model(layout)
    weights = path / layout.get("sentence.folder", layout.get("cross.folder", ""))
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "config.json").write_text(json.dumps(_config(model, layout), indent=2))
    _write_tensors(_tensors(model, layout), layout["weights.file"], weights)
    write_tokenizer(layout, weights)
    write_sentence_files(layout, path, int(model.config.hidden_size))
    if layout["sentence.beside"]:
        _write_beside(path)


def _write_beside(path: Path) -> None:
    """What a download holds beside the model."""
    (path / "README.md").write_text("---\nlicense: mit\npipeline_tag: sentence-similarity\n---\n# A model\n")
    (path / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(bytes(100))
    (path / "training_args.bin").write_bytes(bytes(100))


def _model(layout: Layout) -> Any:
    """The random model, made once for layouts that differ in what lies around it."""
    named = ("hidden", "activation", "variant")
    settings = {name: layout[f"config.{name}"] for name in named if f"config.{name}" in layout}
    entries = vocabulary_size(tokenizer_family(layout))
    return _made(layout["family"], layout["task"], layout.get("labels"), entries, **settings)


@cache
def _made(
    family: str, task: str, labels: int | None, entries: int, hidden: int = 32, activation: str | None = None,
    variant: str | None = None,
) -> Any:  # fmt: skip
    how: dict[str, Any] = {"vocab_size": entries, "hidden_size": hidden}
    for key, value in VARIANTS.get(variant or "", {}).items():
        if hasattr(small_config(family), key):
            how[key] = hidden if value is None else value
    if activation is not None:
        how[_ACTIVATION_KEYS.get(family, "hidden_act")] = activation
    if labels is not None:
        how["num_labels"] = labels
    return small_model(family, task, **how)


def _config(model: Any, layout: Layout) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.config.to_json_string())
    for key in ("dtype", "architectures", "transformers_version"):
        config.pop(key, None)
    name = type(model).__name__
    if layout.get("config.architectures") == "of the masked language model":
        decoder = FAMILIES[layout["family"]].decoder
        name = name.removesuffix("Model").removesuffix("Text") + ("ForCausalLM" if decoder else "ForMaskedLM")
    if layout.get("config.architectures") != "absent":
        config["architectures"] = [name]
    if layout["config.dtype"] != "absent":
        config[layout["config.dtype"]] = layout["weights.floats"].split()[0]
    if layout.get("config.problem_type"):
        config["problem_type"] = layout["config.problem_type"]
    if layout.get("config.label_names"):
        labels = {str(i): f"label {chr(97 + i)}" for i in range(model.config.num_labels)}
        config |= {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    if layout["config.unknown_key"]:
        config |= {"_name_or_path": "someone/a-model", "gradient_checkpointing": False, "trained_by": "someone"}
    if layout["config.auto_map"]:
        config["auto_map"] = {"AutoModel": "someone/a-model--modeling.Model", "AutoConfig": "configuration.Config"}
    if layout["tokenizer.class_in_config"]:
        config["tokenizer_class"] = tokenizer_family(layout).tokenizer
    if layout.get("sentence.weighted_layers"):
        config["output_hidden_states"] = True
    activation = f"torch.nn.modules.activation.{layout.get('cross.activation')}"
    if layout.get("cross.activation") == "old key":
        config["sbert_ce_default_activation_function"] = "torch.nn.modules.linear.Identity"
    elif layout.get("cross.activation"):
        activation = activation.replace("activation.Identity", "linear.Identity")
        config["sentence_transformers"] = {"activation_fn": activation, "version": "4.1.0"}
    return config


def _tensors(model: Any, layout: Layout) -> dict[str, Tensor]:
    held = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    if layout.get("weights.pooler") == "missing":
        held = {name: tensor for name, tensor in held.items() if "pooler" not in name}
    base = f"{model.base_model_prefix}." if layout.get("weights.prefix") == "added" else ""
    held = {base + name: tensor for name, tensor in held.items()} | _extra(model, layout, base)
    if layout.get("weights.norms") == "gamma and beta":
        held = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in held.items()
        }
    floats = layout["weights.floats"]
    if floats in _FLOATS:
        return {name: t.to(_FLOATS[floats]) if t.is_floating_point() else t for name, t in held.items()}
    if floats == "float16 but for norms":
        return {name: t.half() if t.is_floating_point() and "orm" not in name else t for name, t in held.items()}
    if floats != "float32":
        return {name: t.half().float() if t.is_floating_point() else t for name, t in held.items()}
    return held


def _extra(model: Any, layout: Layout, base: str) -> dict[str, Tensor]:
    """Tensors beside the model's own, as real files have them."""
    extra, family = layout["weights.extra"], layout["family"]
    if extra == "position_ids":
        return {f"{base}embeddings.position_ids": torch.arange(66)[None]}
    if extra == "foreign":
        return {"queue": torch.ones(4, 8), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    if extra == "none":
        return {}
    size = {"V": int(model.config.vocab_size), "H": int(model.config.hidden_size), "2": 2}
    head = _DECODER_HEAD if FAMILIES[family].decoder else _HEADS[family]
    own = torch.Generator().manual_seed(1)
    return {name: torch.randn([size[d] for d in shape], generator=own) for name, shape in head.items()}


def _write_tensors(tensors: dict[str, Tensor], form: str, path: Path) -> None:
    kind, _, shards = form.partition(" in ")
    if form == "both":
        _save(tensors, path / _BIN["bin"])
        return _save(tensors, path / _BIN["safetensors"])
    if form == "bare":  # as tools other than transformers write it
        return save_file(tensors, path / _BIN["safetensors"])
    file = _BIN[kind]
    if not shards:
        return _save(tensors, path / file)
    stem, _, suffix = file.rpartition(".")
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for i, half in enumerate(halves, start=1):
        shard = f"{stem}-{i:05}-of-{len(halves):05}.{suffix}"
        weight_map |= dict.fromkeys(half, shard)
        _save({name: tensors[name] for name in half}, path / shard)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / f"{file}.index.json").write_text(json.dumps(index, indent=2))
    return None


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file, metadata={"format": "pt"})
