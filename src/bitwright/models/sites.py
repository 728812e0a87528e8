"""Finds the linears, blocks and embedding tables of a model by its family's row (`families/row.py`)."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from bitwright.errors import ModelError
from bitwright.families import Architecture, Role


@dataclass(frozen=True, slots=True)
class LinearSite:
    """One quantizable linear of one model.

    name: its path in the model as loaded. block: index of its block, None for heads. unit: name of the set of linears
    that are quantized alike, the unit of fallback: those that share an input, or all experts of a block. calls: how
    often one forward runs it (ALBERT runs one layer many times), experts at most. input: name of the tensor it reads,
    by default the unit: linears with equal inputs and equal calls see exactly the same.
    """

    name: str
    block: int | None
    role: Role
    unit: str
    calls: int = 1
    input: str = ""

    def __post_init__(self) -> None:
        if not self.input:
            object.__setattr__(self, "input", self.unit)

    @property
    def is_whole(self) -> bool:
        """Whether it runs once in a forward, on all tokens."""
        return self.calls == 1 and self.role != "expert"

    @property
    def reads(self) -> tuple[str, int]:
        """A name of its input: equal for linears that read exactly the same input."""
        return self.input, self.calls


def base_prefix(model: nn.Module) -> str:
    """The prefix of the base model's paths in the loaded model: "bert." under a task head, "" without one."""
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
    """Every linear of `model` that the row names, except routers, in forward order, heads last.

    Raises:
        ModelError: a path of the row is not in the model, or leads to something other than a linear; there is no block.
    """
    modules = dict(model.named_modules())
    sites: list[LinearSite] = []
    blocks = find_blocks(model, architecture)
    if not any(calls for _, calls in blocks):
        raise ModelError(
            f"{base_prefix(model)}{architecture.blocks}: the model has no blocks, so there are no linears to quantize"
        )
    for index, (block, calls) in enumerate(blocks):
        for name, path in block_linears(modules, block, architecture).items():
            role = architecture.roles[path]
            if role == "router":
                continue
            if not isinstance(modules.get(name), nn.Linear):
                raise ModelError(
                    f"{name}: the architecture table expects a linear here, but the model has "
                    f"{_what(modules.get(name))}"
                )
            flags = architecture.run_twice.get(path, ())
            twice = bool(flags) and all(getattr(model.config, flag, False) for flag in flags)
            shared = any(path in entry.readers and len(entry.readers) > 1 for entry in architecture.inputs)
            read = f"{block}.{role}" if shared else name
            if role == "expert":
                own = name.rpartition(".")[0] if shared else name  # the tokens routed to it, or what it made of them
                sites.append(LinearSite(name, index, role, f"{block}.{role}", calls, own))
            else:
                sites.append(LinearSite(name, index, role, read, calls * (1 + twice)))
    return sites + [LinearSite(name, None, "head", name) for name in _heads(model, architecture)]


def find_routers(model: nn.Module, architecture: Architecture) -> list[str]:
    """Names of the modules that choose experts. They stay float: a token sent to other experts is another token."""
    modules = dict(model.named_modules())
    return [
        name
        for block, _ in find_blocks(model, architecture)
        for name, path in block_linears(modules, block, architecture).items()
        if architecture.roles[path] == "router"
    ]


def block_linears(modules: Mapping[str, nn.Module], block: str, architecture: Architecture) -> dict[str, str]:
    """Name in the model -> path in the row, of each linear and router that the row gives to one block, in forward
    order: of two alternatives the one that the block has, and each expert's own.

    modules: the model's, by name.

    Raises:
        ModelError: experts that are not a list of modules.
    """
    absent: set[str] = set()
    for one, other in architecture.either:
        absent.update(other if f"{block}.{one[0]}" in modules else one)
    linears: dict[str, str] = {}
    present = [path for path in architecture.roles if path not in absent]
    for stem, paths in groupby(present, key=lambda path: path.partition(".*.")[0] if ".*." in path else ""):
        if not stem:
            linears.update({f"{block}.{path}": path for path in paths})
            continue
        experts = modules.get(f"{block}.{stem}")
        if not isinstance(experts, nn.ModuleList):
            raise ModelError(
                f"{block}.{stem}: a list of experts is needed here, but the model has {_what(experts)}; call "
                "bitwright.models.experts.linearize on the model first"
            )
        each = list(paths)
        linears.update({f"{block}.{p.replace('*', str(i))}": p for i in range(len(experts)) for p in each})
    return linears


def find_attention(model: nn.Module, architecture: Architecture) -> list[str]:
    """Names of the modules that compute attention, one for each block of an encoder that the engine runs; none for
    other models.
    """
    if architecture.style is None:
        return []
    return [f"{block}.{architecture.attention}" for block, _ in find_blocks(model, architecture)]


def find_embeddings(model: nn.Module, architecture: Architecture) -> list[str]:
    """Names of the tables that turn ids into vectors: words, positions, token types; in the model's order."""
    names = {base_prefix(model) + path for path in architecture.tables()}
    return [name for name, module in model.named_modules() if name in names and isinstance(module, nn.Embedding)]


def file_name(architecture: Architecture, name: str) -> str:
    """Name in the published files of a parameter of the linearized model.

    Files of a bare base model may lack, or have, the base model's prefix beyond that.
    """
    for pattern, replacement in architecture.files.renames:
        name = re.sub(pattern, replacement, name)
    return name


def is_transposed(architecture: Architecture, name: str) -> bool:
    """Whether the files store a parameter of the linearized model as (K, N)."""
    return any(name.endswith(f".{path}.weight") for path in architecture.files.transposed)


def _heads(model: nn.Module, architecture: Architecture) -> Iterator[str]:
    modules = dict(model.named_modules())
    names = architecture.heads(base_prefix(model))
    return (name for name in names if isinstance(modules.get(name), nn.Linear))


def _entries(modules: dict[str, nn.Module], path: str) -> nn.ModuleList:
    blocks = modules.get(path)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"{path}: the architecture table expects a list of blocks here, but the model has {_what(blocks)}"
        )
    return blocks


def _what(module: nn.Module | None) -> str:
    return "nothing" if module is None else f"a {type(module).__name__}"
