"""What llama.cpp calls the tensors of a model, and what it does to them: names and rows, both ways.

llama.cpp rotates neighbouring values of a head for the architecture "llama", transformers those half a head apart. So
that architecture's files hold the rows of q and k in another order. Gemma's norms multiply by 1 + weight, and the files
hold the sum.
"""

import re
from typing import Literal, NamedTuple

import numpy as np

Role = Literal["q", "k"]

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_BLOCK = _BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class Naming(NamedTuple):
    """How an architecture of llama.cpp stores a model of transformers.

    blocks: what a block's modules are called, and how in transformers. swaps_rows: whether rows of q and k are in
    another order. plus_one: whether norms hold 1 + weight.
    """

    blocks: dict[str, str]
    swaps_rows: bool = False
    plus_one: bool = False

    def to_transformers(self, name: str) -> str | None:
        """The name in transformers of a tensor of a file; None of a name that the architecture does not have."""
        found = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.(weight|bias)", name)
        if found is None:
            return _OUTSIDE.get(name)
        layer, module, kind = found.groups()
        return f"model.layers.{layer}.{self.blocks[module]}.{kind}" if module in self.blocks else None

    def to_gguf(self, name: str) -> str | None:
        """The inverse of `to_transformers`."""
        outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
        found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            return outside.get(name)
        layer, module, kind = found.groups()
        ours = next((ours for ours, theirs in self.blocks.items() if theirs == module), None)
        return None if ours is None else f"blk.{layer}.{ours}.{kind}"

    def swapped(self, name: str) -> Role | None:
        """Whose rows a tensor, by its name in transformers, has if they are in another order."""
        found = re.search(r"self_attn\.([qk])_proj\.(weight|bias)$", name) if self.swaps_rows else None
        return found[1] if found else None  # type: ignore[return-value]

    def sums(self, name: str) -> bool:
        """Whether a tensor, by its name in transformers, is stored with 1 added."""
        return self.plus_one and name.endswith("norm.weight")


# general.architecture -> how its files are to be read.
NAMINGS: dict[str, Naming] = {
    "llama": Naming(_BLOCK, swaps_rows=True),
    "qwen2": Naming(_BLOCK),
    "qwen3": Naming(_BLOCK),
    "gemma3": Naming(_GEMMA3_BLOCK, plus_one=True),
}


def rows_in_transformers(rows: int, heads: int) -> np.ndarray:
    """At each row of transformers' order, the row of the file: (rows,). rows: a multiple of 2 · heads."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def rows_in_gguf(rows: int, heads: int) -> np.ndarray:
    """The inverse: at each row of the file, the one of transformers' order."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
