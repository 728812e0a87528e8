"""What one row of the architecture table says: data about a model family, and nothing that runs."""

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["qkv", "attention_output", "ffn", "expert", "router", "head", "embedding"]
ROLES: tuple[Role, ...] = ("qkv", "attention_output", "ffn", "expert", "router", "head", "embedding")

Making = Literal["norm", "norm_plus_1", "value", "latent_value", "up", "relu"]


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor inside a block: which linears read it, and what makes it.

    readers: their paths inside the block. The first one that a block has reads all of it, an expert only the tokens
        routed to it. `*` stands for each expert: a first reader with one means a tensor for each expert.
    producer: path of the module in which the inverse of a scale of this tensor's features fits exactly, so that the
        model's outputs stay the same; None where there is none. A norm whose output the residual adds, too, is none.
    made_by: how the producer makes the tensor.
        norm: a norm multiplies by its weight (and may add a bias). norm_plus_1: it multiplies by 1 + weight.
        value: the last rows of a linear are the values that attention averages; a head of keys and values may serve
            several query heads. latent_value: each head's rows are its keys, then its values (MLA).
        up: the last rows of a linear, multiplied by an activation of its other rows or of another linear.
        relu: a linear and ReLU, or no fold at all if the config puts another activation there.
    only_if: flag of config.json without which the producer is none; "" for no condition.
    """

    readers: tuple[str, ...]
    producer: str | None = None
    made_by: Making = "norm"
    only_if: str = ""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where the linears of one family are, what each is for, and what they read.

    Paths are relative: those of linears to their block, `blocks` and `left_out` to the base model (the part that
    `AutoModel` returns, found through `base_model_prefix`), heads to the base model or to the whole one.

    blocks: path of the list of blocks in the base model, e.g. "encoder.layer"; `*` goes through a list of lists.
    roles: role of each linear, by its path inside a block, in forward order; `*` stands for each expert. A router is
        listed as one, linear or not; it is never quantized.
    inputs: tensors that several linears read (these quantize, and fall back to 16 bit, together) or that a producer
        makes which can take a scale. Every other linear reads a tensor of its own.
    either: pairs of sets of paths of which a block has one and not the other (an FFN or experts).
    activations: linear -> path (inside the block) of the elementwise activation that alone consumes its output.
    heads: paths that are pooler or head linears, present or not, depending on the task.
    run_twice: linear -> flags of config.json that, when all are true, make a block run it a second time.
    transposed: paths of linears that the checkpoint stores as (K, N) and transformers runs as Conv1D.
    renames: (pattern, replacement), applied in turn to a parameter's name in the model, give its name in the files.
    left_out: paths of linears that stay float, the reason beside them in the row; `*` stands for any part of a path.
    """

    blocks: str
    roles: dict[str, Role]
    inputs: tuple[Input, ...]
    either: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    activations: dict[str, str] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    run_twice: dict[str, tuple[str, ...]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
