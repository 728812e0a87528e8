"""Writes a fleet of eight models of many families, and its fleet.yaml: what the figures of `bitwright fleet` are from.

    python benchmarks/fleet_models.py MINILM ALBERT LANGUAGE_MODEL OUT
    bitwright fleet run OUT/fleet.yaml

MINILM, ALBERT and LANGUAGE_MODEL are directories of real models. The others are as large as MiniLM and have its
vocabulary, but random weights; one is MiniLM itself with a random head for three classes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

_SIZE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
_NAMES = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
          "hidden_dim": "intermediate_size"}  # fmt: skip
SHAPED: dict[str, dict[str, Any]] = {
    "distilbert": {ours: _SIZE[name] for ours, name in _NAMES.items()},
    "electra": _SIZE | {"embedding_size": 128},
    "deberta-v2": _SIZE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 256},
    "mpnet": _SIZE,
}


def write_models(minilm: Path, out: Path) -> None:
    """The random models, with MiniLM's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    special = {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    headed = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=3)
    models = {"three-classes": headed}
    for name, shape in SHAPED.items():
        models[name] = AutoModel.from_config(AutoConfig.for_model(name, **shape, **special))
    for name, model in models.items():
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


def main() -> None:
    """Write models and fleet.yaml."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("minilm", "albert", "language_model", "out"):
        parser.add_argument(name, type=Path)
    asked = parser.parse_args()
    write_models(asked.minilm, asked.out)
    real = {"minilm": asked.minilm, "albert": asked.albert, "smollm2": asked.language_model}
    rows: list[dict[str, Any]] = [{"name": name, "model": str(path.resolve())} for name, path in real.items()]
    rows += [{"name": name, "model": name} for name in ("three-classes", *SHAPED)]
    rows[1]["task"] = "embedding"
    rows[2] |= {"max_loss": "5%", "samples": 32}
    text = yaml.safe_dump({"out": "results", "defaults": {"max_loss": "2%"}, "models": rows}, sort_keys=False)
    (asked.out / "fleet.yaml").write_text(text)


if __name__ == "__main__":
    main()
