"""Limits for the counts in config.json, checked before a model is built from it."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from bitwright.errors import ModelError, brief

# Modules or labels, an object of Python each. Of layers that share their weights the files have fewer.
_COUNTS = (
    "num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "num_hidden_groups",
    "inner_group_num", "num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts",
    "num_experts_per_tok", "num_labels", "type_vocab_size", "num_nextn_predict_layers", "depth",
)  # fmt: skip
# Each of the first has each of the second.
_MADE = (
    ("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    ("num_local_experts", "num_experts", "n_routed_experts"),
)
_ALWAYS = 1000  # so many are built within seconds
_SPARSE = 8  # of so many blocks one may have experts
_WITHOUT_FILES = 100_000  # experts of all layers: four times what the largest model has
# Rows or columns, which may be a buffer that is filled: ten times what any model has.
_SIZES = ("max_position_embeddings", "n_positions", "n_ctx", "vocab_size", "hidden_size", "intermediate_size", "n_embd")
_MOST = 1 << 24
_DEEPEST = 4  # configs in configs


def check_counts(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Compare what a config counts with what the files hold.

    shapes: of every tensor, by its name; without any, only what every model must keep to is looked at.

    Raises:
        ModelError: a count or a size that the files cannot have.
    """
    parts = sum(shape[0] if len(shape) == 3 else 1 for shape in shapes.values())  # experts may be one tensor
    rows = max((shape[0] for shape in shapes.values() if shape), default=0)
    for values in _configs(config, _DEEPEST):
        for key in (*_COUNTS, *_SIZES):
            value = values.get(key)
            if type(value) is not int:
                continue
            most = max(_ALWAYS, rows if key == "num_labels" else parts) if key in _COUNTS else _MOST
            if value < 0 or value > most:
                _refuse(f"{key} is {value}", where, shapes, most)
        made = prod(max((values[key] for key in keys if type(values.get(key)) is int), default=1) for keys in _MADE)
        most = max(_ALWAYS, _SPARSE * parts) if shapes else _WITHOUT_FILES
        if made > most:
            _refuse(f"it asks for {made} layers and experts in all", where, shapes, most)


def _configs(config: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """A config and the configs inside it (for text, for images)."""
    yield config
    for value in config.values() if depth else ():
        if isinstance(value, dict):
            yield from _configs(value, depth - 1)


def _refuse(what: str, where: str, shapes: Mapping[str, tuple[int, ...]], most: int) -> None:
    held = f"the files hold {len(shapes)} tensors, so " if shapes else ""
    raise ModelError(f"{where}: {brief(what)[1:-1]}; {held}at most {most} can be right. Check config.json")
