"""The architecture table: one row of data per model family.

A row says where the blocks are and what each linear in a block is for. Nothing else in Bitwright knows a family by name.
Paths are relative: block linears to their block, heads to the whole model, `blocks` to the base model (the part that
`AutoModel` returns, found through `base_model_prefix`).
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from torch import nn

from bitwright.errors import ModelError

Role = Literal["qkv", "attention_output", "ffn", "head", "embedding"]
ROLES: tuple[Role, ...] = ("qkv", "attention_output", "ffn", "head", "embedding")


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where the quantizable linears of one family are.

    blocks: path of the list of blocks in the base model, e.g. "encoder.layer".
    roles: role of each linear, by its path inside a block.
    shared_inputs: sets of linears that read the same tensor (they quantize, and fall back to 16 bit, together).
    activations: linear -> path (inside the block) of the elementwise activation that alone consumes its output.
    heads: paths in the whole model that are pooler or head linears, present or not, depending on the task.
    """

    blocks: str
    roles: dict[str, Role]
    shared_inputs: tuple[tuple[str, ...], ...]
    activations: dict[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LinearSite:
    """One quantizable linear of one model.

    name: its path in the model as loaded. block: index of its block, None for heads. unit: name of the set of linears
    that share its input: the unit of fallback. calls: how often one forward runs it (ALBERT shares a layer between blocks).
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

# model_type of config.json -> row. Add a family here, and its small random config to tests/models/test_architectures.py.
ARCHITECTURES: dict[str, Architecture] = {"bert": _BERT}


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


def find_linears(model: nn.Module, architecture: Architecture) -> list[LinearSite]:
    """Every linear of `model` that the row names, in forward order, heads last.

    Raises:
        ModelError: a path of the row is not in the model.
    """
    raise NotImplementedError
