"""The architecture table: one row of data per model family.

A row says where the blocks are and what each linear in a block is for. Nothing else in Bitwright knows a family by
name. Paths are relative: block linears to their block, `blocks` and `left_out` to the base model (the part that
`AutoModel` returns, found through `base_model_prefix`), heads to the base model or to the whole one.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal

from torch import nn

from bitwright.errors import ModelError

Role = Literal["qkv", "attention_output", "ffn", "head", "embedding"]
ROLES: tuple[Role, ...] = ("qkv", "attention_output", "ffn", "head", "embedding")


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where the quantizable linears of one family are.

    blocks: path of the list of blocks in the base model, e.g. "encoder.layer"; `*` goes through a list of lists.
    roles: role of each linear, by its path inside a block, in forward order.
    shared_inputs: sets of linears that read the same tensor (they quantize, and fall back to 16 bit, together).
    activations: linear -> path (inside the block) of the elementwise activation that alone consumes its output.
    heads: paths that are pooler or head linears, present or not, depending on the task.
    run_twice: linear -> flags of config.json that, when all are true, make a block run it a second time.
    left_out: paths of linears that stay float, the reason beside them in the row; `*` stands for one part of a path.
    """

    blocks: str
    roles: dict[str, Role]
    shared_inputs: tuple[tuple[str, ...], ...]
    activations: dict[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    run_twice: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LinearSite:
    """One quantizable linear of one model.

    name: its path in the model as loaded. block: index of its block, None for heads. unit: name of the set of linears
    that share its input: the unit of fallback. calls: how often one forward runs it (ALBERT runs one layer many
    times). Linears of one unit with the same number of calls see exactly the same inputs.
    """

    name: str
    block: int | None
    role: Role
    unit: str
    calls: int = 1


_BERT = Architecture(
    blocks="encoder.layer",
    roles={
        "attention.self.query": "qkv",
        "attention.self.key": "qkv",
        "attention.self.value": "qkv",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn",
        "output.dense": "ffn",
    },
    shared_inputs=(("attention.self.query", "attention.self.key", "attention.self.value"),),
    activations={"intermediate.dense": "intermediate.intermediate_act_fn"},
    heads=("pooler.dense", "classifier", "qa_outputs"),
)

_ROBERTA = replace(_BERT, heads=("pooler.dense", "classifier", "classifier.dense", "classifier.out_proj", "qa_outputs"))

# The projection between narrow embeddings and the first block: small, and its input is the embedding itself.
_ELECTRA = replace(_ROBERTA, left_out=("embeddings_project",))

_DISTILBERT = Architecture(
    blocks="transformer.layer",
    roles={
        "attention.q_lin": "qkv",
        "attention.k_lin": "qkv",
        "attention.v_lin": "qkv",
        "attention.out_lin": "attention_output",
        "ffn.lin1": "ffn",
        "ffn.lin2": "ffn",
    },
    shared_inputs=(("attention.q_lin", "attention.k_lin", "attention.v_lin"),),
    activations={"ffn.lin1": "ffn.activation"},
    heads=("pre_classifier", "classifier", "qa_outputs"),
)

_ALBERT = Architecture(
    blocks="encoder.albert_layer_groups.*.albert_layers",
    roles={
        "attention.query": "qkv",
        "attention.key": "qkv",
        "attention.value": "qkv",
        "attention.dense": "attention_output",
        "ffn": "ffn",
        "ffn_output": "ffn",
    },
    shared_inputs=(("attention.query", "attention.key", "attention.value"),),
    activations={"ffn": "activation"},
    heads=("pooler", "classifier", "qa_outputs"),
    # As in ELECTRA: the projection from narrow embeddings.
    left_out=("encoder.embedding_hidden_mapping_in",),
)

_MPNET = Architecture(
    blocks="encoder.layer",
    roles={
        "attention.attn.q": "qkv",
        "attention.attn.k": "qkv",
        "attention.attn.v": "qkv",
        "attention.attn.o": "attention_output",
        "intermediate.dense": "ffn",
        "output.dense": "ffn",
    },
    shared_inputs=(("attention.attn.q", "attention.attn.k", "attention.attn.v"),),
    activations={"intermediate.dense": "intermediate.intermediate_act_fn"},
    heads=_ROBERTA.heads,
)

_DEBERTA_V2 = Architecture(
    blocks="encoder.layer",
    roles={
        "attention.self.query_proj": "qkv",
        "attention.self.key_proj": "qkv",
        "attention.self.value_proj": "qkv",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn",
        "output.dense": "ffn",
    },
    shared_inputs=(("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),),
    activations={"intermediate.dense": "intermediate.intermediate_act_fn"},
    heads=("pooler.dense", "classifier", "qa_outputs"),
    # With share_att_key the projections of the content also project the table of relative positions.
    run_twice={
        "attention.self.query_proj": ("relative_attention", "share_att_key"),
        "attention.self.key_proj": ("relative_attention", "share_att_key"),
    },
    # Without it the table has projections of its own, whose result is the same for every text.
    # embed_proj: as in ELECTRA.
    left_out=(
        "encoder.layer.*.attention.self.pos_key_proj",
        "encoder.layer.*.attention.self.pos_query_proj",
        "embeddings.embed_proj",
    ),
)

_MODERNBERT = Architecture(
    blocks="layers",
    # Wi computes value and gate of a gated unit at once: the activation sees half of its output, so none is listed.
    roles={"attn.Wqkv": "qkv", "attn.Wo": "attention_output", "mlp.Wi": "ffn", "mlp.Wo": "ffn"},
    shared_inputs=(),
    heads=("head.dense", "classifier"),
)

# model_type of config.json -> row. Add a family here, and its small random config to tests/models/conftest.py.
ARCHITECTURES: dict[str, Architecture] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "ernie": _BERT,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def architecture_of(model_type: str) -> Architecture:
    """The row of a model type.

    Raises:
        ModelError: no such row; the message lists the known ones and says what a new one needs.
    """
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    near = get_close_matches(model_type, ARCHITECTURES, n=1)
    raise ModelError(
        f"model_type {model_type!r} is not in the architecture table"
        + (f" (did you mean {near[0]!r}?)" if near else "")
        + f"; known: {', '.join(sorted(ARCHITECTURES))}. To add it, write a row in bitwright/models/architectures.py: "
        "the path of its blocks and the role of each linear"
    )


def base_prefix(model: nn.Module) -> str:
    """What precedes the base model's paths in the model as loaded: "bert." under a task head, "" if bare."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def find_blocks(model: nn.Module, architecture: Architecture) -> list[tuple[str, int]]:
    """Path of each block in the model as loaded and how often one forward runs it, in forward order.

    A family that shares blocks keeps them in G groups (the list that `*` goes through) and makes
    config.num_hidden_layers passes, pass i over group ⌊i·G / passes⌋. Every other family runs each block once.

    Raises:
        ModelError: the row's path does not lead to a list of blocks.
    """
    modules = dict(model.named_modules())
    outer, *inner = (base_prefix(model) + architecture.blocks).split(".*.")
    n_groups = len(_entries(modules, outer))
    if not inner:
        return [(f"{outer}.{index}", 1) for index in range(n_groups)]
    passes = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]  # a transformers model has one
    runs = Counter(index * n_groups // passes for index in range(passes))
    groups = [(f"{outer}.{group}.{inner[0]}", runs[group]) for group in range(n_groups)]
    return [(f"{path}.{index}", calls) for path, calls in groups for index in range(len(_entries(modules, path)))]


def find_linears(model: nn.Module, architecture: Architecture) -> list[LinearSite]:
    """Every linear of `model` that the row names, in forward order, heads last.

    Raises:
        ModelError: a path of the row is not in the model, or leads to something other than a linear; there is no block.
    """
    modules = dict(model.named_modules())
    sites: list[LinearSite] = []
    blocks = find_blocks(model, architecture)
    if not any(calls for _, calls in blocks):
        raise ModelError(f"{base_prefix(model)}{architecture.blocks}: no blocks, so there are no linears to quantize")
    for index, (block, calls) in enumerate(blocks):
        for path, role in architecture.roles.items():
            name = f"{block}.{path}"
            if not isinstance(modules.get(name), nn.Linear):
                raise ModelError(f"{name}: {_what(modules.get(name))} where the architecture table expects a linear")
            shared = any(path in group for group in architecture.shared_inputs)
            flags = architecture.run_twice.get(path, ())
            twice = bool(flags) and all(getattr(model.config, flag, False) for flag in flags)
            sites.append(LinearSite(name, index, role, f"{block}.{role}" if shared else name, calls * (1 + twice)))
    return sites + [LinearSite(name, None, "head", name) for name in _heads(model, architecture)]


def find_embeddings(model: nn.Module) -> list[str]:
    """Names of the tables that turn ids into vectors: words, positions, token types.

    Tables of relative positions belong to the attention, not to the embeddings, and are not among them.
    """
    inside = base_prefix(model) + "embeddings."
    return [n for n, module in model.named_modules() if isinstance(module, nn.Embedding) and n.startswith(inside)]


def _heads(model: nn.Module, architecture: Architecture) -> Iterator[str]:
    modules = dict(model.named_modules())
    for path in architecture.heads:
        for name in dict.fromkeys((base_prefix(model) + path, path)):
            if isinstance(modules.get(name), nn.Linear):
                yield name


def _entries(modules: dict[str, nn.Module], path: str) -> nn.ModuleList:
    blocks = modules.get(path)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(f"{path}: {_what(blocks)} where the architecture table expects a list of blocks")
    return blocks


def _what(module: nn.Module | None) -> str:
    return "nothing" if module is None else f"a {type(module).__name__}"
