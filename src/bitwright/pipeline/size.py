"""Computes a model's size in each scheme from its config.json alone; shapes are enough to count bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from bitwright.errors import NumericsError
from bitwright.families.tasks import TaskName
from bitwright.models.build import EmptyModel
from bitwright.models.load import open_skeleton
from bitwright.models.sites import LinearSite, find_embeddings, find_linears
from bitwright.numerics.schemes import SCHEMES, fit_group
from bitwright.recipe import FLOAT, Recipe, scheme_of
from bitwright.targets import stored_bytes, stored_embedding_bytes

# What the planner lists. A named group size that does not divide some K gives way to the scheme that chooses one.
LISTED = (
    "w8a8", "w8a16", "w4a16_g128", "w4a16_g32", "w4a16_channel", "w3a16", "w2a16", "nf4", "ternary",
)  # fmt: skip
GROUPS = ("embeddings", "attention", "ffn", "experts", "head", "other")
_GROUP_OF_ROLE = {
    "qkv": "attention", "attention_output": "attention", "ffn": "ffn", "expert": "experts", "head": "head"
}  # fmt: skip
_HALF = 2  # bytes of a 16-bit value


@dataclass(frozen=True, slots=True)
class _Shapes:
    """A model without values. sites: (linear, shape, has a bias) for each linear that is not a tied copy of a table.
    others: the number of values outside embedding tables and linears: norms, routers, and what the architecture table
    leaves out.
    """

    sites: list[tuple[LinearSite, tuple[int, int], bool]]
    tables: list[tuple[int, int]]
    others: int


def size_plan(config: Path, recipe: Recipe | None = None, task: TaskName | None = None) -> dict[str, Any]:
    """The bytes of a model in each scheme, scales included; no weights are needed.

    Embeddings, heads, norms and routers count 16 bit, unless `recipe` says otherwise of them in its own row. A head
    that is tied to the embeddings counts once, with them.

    Args:
        config: a config.json, or a directory that holds one.
        recipe: gets a row of its own, "recipe", with the schemes of its rules and its embeddings.
        task: what the model is for; by default what its class says.

    Returns:
        {"model_type", "n_parameters", "kv_cache_bytes_per_token": in 16 bit, None for encoders, "rows": [{"scheme",
        "bytes", "bits_per_parameter", "groups": {group: bytes}}]}.

    Raises:
        ModelError: an architecture without a row, or a config that transformers cannot build.
        RecipeError: as `scheme_of`.
    """
    skeleton = open_skeleton(config, task=task)
    shapes = _shapes(skeleton)
    n_parameters = sum(p.numel() for p in skeleton.model.parameters())

    def row(name: str, scheme_for: Callable[[LinearSite], str], embeddings: str = "16bit") -> dict[str, Any]:
        groups = _groups(shapes, scheme_for, embeddings)
        total = sum(groups.values())
        return {"scheme": name, "bytes": total, "bits_per_parameter": 8 * total / n_parameters, "groups": groups}

    half = row(FLOAT, lambda site: FLOAT)
    double = {name: 2 * value for name, value in half["groups"].items()}
    rows = [{"scheme": "fp32", "bytes": 2 * half["bytes"], "bits_per_parameter": 32.0, "groups": double}, half]
    for name in LISTED:
        fitting = name if _fits(shapes, name) else name.rpartition("_")[0]
        if fitting not in [found["scheme"] for found in rows]:
            rows.append(row(fitting, lambda site, name=fitting: FLOAT if site.role == "head" else name))  # type: ignore[misc]
    if recipe is not None:
        rows.append(row("recipe", lambda site: scheme_of(recipe, site)[0], recipe.embeddings))
    return {
        "model_type": skeleton.config.model_type,
        "n_parameters": n_parameters,
        "kv_cache_bytes_per_token": kv_cache_bytes(skeleton.config) if skeleton.task == "text-generation" else None,
        "rows": rows,
    }


def kv_cache_bytes(config: Any) -> int:
    """The bytes that one token adds to the key-value cache in 16 bit, if every block attends to the whole sequence.
    Latent attention (MLA) keeps one compressed vector and the rotary part of the key.
    """
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    latent = getattr(text, "kv_lora_rank", None)
    if latent:
        return _HALF * layers * (int(latent) + int(text.qk_rope_head_dim))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * _HALF * layers * int(heads) * int(head_dim)


def _shapes(skeleton: EmptyModel) -> _Shapes:
    modules = dict(skeleton.model.named_modules())
    counted: set[int] = set()

    def new(module: nn.Module) -> bool:
        is_new = id(module.weight) not in counted
        counted.update(id(parameter) for parameter in module.parameters(recurse=False))
        return is_new

    tables = [modules[name] for name in find_embeddings(skeleton.model, skeleton.architecture) if new(modules[name])]
    sites = find_linears(skeleton.model, skeleton.architecture)
    linears = [(site, modules[site.name]) for site in sites if new(modules[site.name])]
    return _Shapes(
        [(site, _shape(module), getattr(module, "bias", None) is not None) for site, module in linears],
        [_shape(table) for table in tables],
        sum(p.numel() for p in skeleton.model.parameters() if id(p) not in counted),
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight.shape[0], weight.shape[1]


def _groups(shapes: _Shapes, scheme_for: Callable[[LinearSite], str], embeddings: str) -> Mapping[str, int]:
    """The bytes by group; empty groups are left out."""

    @cache  # of a hundred thousand experts few have shapes of their own
    def linear(shape: tuple[int, int], bias: bool, name: str) -> int:
        scheme = fit_group(SCHEMES[name], shape[1])[0]
        return stored_bytes(shape, scheme, bias=bias, source_bytes_per_value=_HALF)

    found = dict.fromkeys(GROUPS, 0)
    for shape in shapes.tables:
        found["embeddings"] += stored_embedding_bytes(shape, embeddings, source_bytes_per_value=_HALF)
    for site, shape, bias in shapes.sites:
        found[_GROUP_OF_ROLE[site.role]] += linear(shape, bias, scheme_for(site))
    found["other"] = _HALF * shapes.others
    return {name: value for name, value in found.items() if value}


def _fits(shapes: _Shapes, name: str) -> bool:
    try:
        for k in {shape[1] for site, shape, _ in shapes.sites if site.role != "head"}:
            fit_group(SCHEMES[name], k)
    except NumericsError:
        return False
    return True
