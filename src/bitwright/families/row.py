"""The fields of one row of the family table: data about a model family, without code that runs it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from bitwright.errors import EngineError
from bitwright.families.tasks import TaskName

Role = Literal["qkv", "attention_output", "ffn", "expert", "router", "head", "embedding"]
ROLES: tuple[Role, ...] = ("qkv", "attention_output", "ffn", "expert", "router", "head", "embedding")

Making = Literal["norm", "norm_plus_1", "value", "latent_value", "up", "relu", "convolved"]

# How blocks are computed; `engine/builders.py` has a builder for each. post_norm: as in BERT. disentangled: so, with
# DeBERTa's attention. alternating: ModernBERT's, which is local in most blocks.
Style = Literal["post_norm", "disentangled", "alternating"]


class Setting(NamedTuple):
    """A key of config.json, and transformers' default if the file leaves it out; None if it never does.

    `config.get(*setting)` is its value.
    """

    key: str
    default: Any = None


_NONE: Mapping[str, Any] = MappingProxyType({})
# As in BERT.
_POSITIONS = Setting("max_position_embeddings", 512)
_ACTIVATION = Setting("hidden_act", "gelu")
_EPS = Setting("layer_norm_eps", 1e-12)


class Input(NamedTuple):
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
        convolved: a convolution of each feature by itself, multiplied by a gate.
        relu: a linear and ReLU, or no fold at all if the config puts another activation there.
    only_if: flag of config.json without which the producer is none; "" for no condition.
    """

    readers: tuple[str, ...]
    producer: str | None = None
    made_by: Making = "norm"
    only_if: str = ""


class ConfigKeys(NamedTuple):
    """Names of the keys of config.json that differ between families; of a nested one, in its config of texts.

    positions: rows of the table of positions, or the number of tokens that relative positions were trained for.
    activation, eps: inside the FFN of a block, and in every norm. An activation that no key names stands here itself.
    """

    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    hidden_size: str = "hidden_size"
    positions: Setting = _POSITIONS
    activation: Setting | str = _ACTIVATION
    eps: Setting = _EPS


class Embeddings(NamedTuple):
    """Tables that turn a token into a vector, each of which may be quantized.

    words, types: of ids and of token types. others: that a setting of config.json adds.
    projection: linear from narrow embeddings to the blocks. It stays float: it is small and reads the embedding itself.
    """

    words: str
    types: str | None = None
    others: tuple[str, ...] = ()
    projection: str | None = None


class Positions(NamedTuple):
    """How a block knows the position of a token, besides what its style implies (rotary angles, disentangled
    attention).

    table: embeddings of absolute positions. after: positions count from this number, or this setting, + 1 on, not from
        0.
    distance_bias: table of attention biases by bucket of distance, shared by all blocks.
    """

    table: str | None = None
    after: Setting | int | None = None
    distance_bias: str | None = None

    def first(self, config: Mapping[str, Any]) -> int:
        """The position of a text's first token, which is the number of table rows that are never read.

        Raises:
            EngineError: the setting is no token id.
        """
        if self.after is None:
            return 0
        if isinstance(self.after, int):
            return self.after + 1
        before = config.get(*self.after)
        if type(before) is not int or before < 0:
            raise EngineError(
                f"{self.after.key} is {before!r}, but it must be a token id, because positions begin after it"
            )
        return before + 1


class Norms(NamedTuple):
    """Norms that no `Input` names. embeddings: of their sum. attention, ffn: inside a block, after the residual is
    added. final: after the last block."""

    embeddings: str | None = None
    attention: str | None = None
    ffn: str | None = None
    final: str | None = None


class Convolution(NamedTuple):
    """A gated short convolution, which blocks of the kind "conv" have in place of attention: c · convolved(b · x).

    gates: path inside a block of the linear whose rows are b, then c, then x. kernel: of the convolution over time, of
    each feature by itself. out: of the linear that reads the result.
    taps: key of config.json, of how many tokens count for one. attends: key of the list of blocks with attention, in
    files that do not list the kinds of all blocks.
    """

    gates: str
    kernel: str
    out: str
    taps: str
    attends: str


class Decoding(NamedTuple):
    """How the engine computes a decoder: RMSNorms before the linears, rotary positions, a gated FFN, and what follows.

    query_norm, key_norm: paths inside a block of norms of each head, before positions; whole_norms: of all heads
    together. attention_norm, ffn_norm: of what attention and the FFN add to the residual. Where no `Input` names a norm
    before them they read it as it is; where it is the same norm they read that side by side. attention_sub_norm,
    ffn_sub_norm: of what their last linear reads (Wang et al. 2022, SubLN). final_norm: after the last block.
    centred: norms are layer norms. plus_one: they multiply by 1 + weight.
    gated: the FFN is f(a) · b, else f(a). names: activations that config.json calls otherwise.
    scaled: a word's embedding is multiplied by the root of its width. convolution: in some blocks, in place of
    attention.
    windows: which blocks see only the last tokens: none; all, if config.json has a window; or those that it lists.
    full_every: where it lists none, so many blocks end with one that sees all; None: a key of it says how many.
    multiplied: config.json has factors of embeddings, scores, residuals and logits (muP). logits: its key of what
    multiplies logits; else such a factor divides them.
    interleaved: neighbours rotate together, not the halves of a head. share: of a head, that rotates where config.json
    does not say. window_theta: base of the angles of blocks with a window, where config.json has not angles for each
    kind. skips: blocks that rotate nothing: none; those that config.json lists; those that see all, always or
    ("full_beside") if it has a window. scales_queries: those far from a text's beginning, by position.
    both_ways: `use_bidirectional_attention` is followed.
    needs: keys of config.json that must be there, because transformers' defaults for them are the family's own;
        "a or b": one of them.
    """

    query_norm: str | None = None
    key_norm: str | None = None
    whole_norms: bool = False
    attention_norm: str | None = None
    ffn_norm: str | None = None
    attention_sub_norm: str | None = None
    ffn_sub_norm: str | None = None
    final_norm: str = "norm"
    centred: bool = False
    plus_one: bool = False
    gated: bool = True
    names: Mapping[str, str] = _NONE
    scaled: bool = False
    convolution: Convolution | None = None
    windows: Literal["none", "all", "listed"] = "none"
    full_every: int | None = None
    multiplied: bool = False
    logits: str | None = None
    interleaved: bool = False
    share: float = 1.0
    window_theta: float | None = None
    skips: Literal["none", "listed", "full", "full_beside"] = "none"
    scales_queries: bool = False
    both_ways: bool = False
    needs: tuple[str, ...] = ()


class Dense(NamedTuple):
    """A linear, its activation and a norm, between a pooled text and its classifier. in_base: of the base model."""

    linear: str
    activation: str | Setting
    norm: str | None = None
    in_base: bool = False


class Head(NamedTuple):
    """The parts of a model after its blocks.

    outputs: task -> the linear that puts out its logits; not in the base model.
    dense: before the classifier of texts; each_token: and before that of tokens.
    pooling: how a text becomes the vector that its classifier reads.
    pooler: linear of the base model that no classifier reads.
    """

    outputs: dict[TaskName, str]
    dense: Dense | None = None
    each_token: bool = False
    pooling: str | Setting = "cls"
    pooler: str | None = None


class FileNames(NamedTuple):
    """The differences of the published files from the model in memory, whose experts and Conv1D are linears.

    transposed: paths inside a block of linears that are stored as (K, N) and that transformers runs as Conv1D.
    renames: (pattern, replacement), applied in turn to a parameter's name in the model, give its name in the files.
    """

    transposed: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()


class Architecture(NamedTuple):
    """One family: where its linears are, what each is for and what it reads, and what surrounds its blocks.

    Paths are relative: those of linears and of `norms.attention` and `norms.ffn` to their block, those of heads to the
    whole model where nothing else is said, all others to the base model (the part that `AutoModel` returns).

    blocks: path of the list of blocks, e.g. "encoder.layer"; `*` goes through a list of lists.
    roles: role of each linear, by its path inside a block, in forward order; `*` stands for each expert. A router is
        listed as one, linear or not; it is never quantized.
    inputs: tensors that several linears read (these quantize, and fall back to 16 bit, together) or that a producer
        makes which can take a scale. Every other linear reads a tensor of its own.
    either: pairs of sets of paths of which a block has one and not the other (an FFN or experts).
    activations: linear -> path (inside the block) of the elementwise activation that alone consumes its output.
    run_twice: linear -> flags of config.json that, when all are true, make a block run it a second time.
    left_out: paths of linears that stay float, the reason beside them in the row; `*` stands for any part of a path.
    needs_weights: whether transformers, while loading, gives the weights of named linears their first values, and so
        fails where a linear holds packed codes instead.

    prefix: name of the base model inside a model with a head.
    style: how the engine computes a block of an encoder; decoding: and a decoder; None if it has no builder.
    tokenizer: class that transformers takes where no file of the model names one (`families/tokenizers.py` has what it
        does); None if tokenizer.json is taken as it is, whatever class a file names.
    """

    blocks: str
    roles: dict[str, Role]
    inputs: tuple[Input, ...]
    embeddings: Embeddings
    head: Head
    either: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    activations: Mapping[str, str] = _NONE
    run_twice: Mapping[str, tuple[str, ...]] = _NONE
    left_out: tuple[str, ...] = ()
    needs_weights: bool = False
    prefix: str = "model"
    keys: ConfigKeys = ConfigKeys()
    positions: Positions = Positions()
    norms: Norms = Norms()
    files: FileNames = FileNames()
    style: Style | None = None
    decoding: Decoding | None = None
    tokenizer: str | None = None

    @property
    def decodes(self) -> bool:
        """Whether it is a family of language models."""
        return "text-generation" in self.head.outputs

    @property
    def attention(self) -> str:
        """Path inside a block of the module that computes attention: the one that holds the queries' linear."""
        return self.linears("qkv")[0].rpartition(".")[0]

    def linears(self, role: Role) -> tuple[str, ...]:
        """Paths inside a block of the linears with a role, in forward order."""
        return tuple(path for path, of in self.roles.items() if of == role)

    def producer(self, linear: str) -> str | None:
        """Path inside a block of the module that makes the input of a linear, where an `Input` names it."""
        return next((entry.producer for entry in self.inputs if linear in entry.readers), None)

    def tables(self) -> tuple[str, ...]:
        """Paths of all tables that turn a token into a vector: its word, its position, its type."""
        given = (self.embeddings.words, self.positions.table, self.embeddings.types, *self.embeddings.others)
        return tuple(path for path in given if path)

    def heads(self, base: str) -> tuple[str, ...]:
        """Names of all linears of poolers and heads, in forward order; a model has those of its task.

        base: what precedes a path of the base model, "bert." or "".
        """
        dense, pooler = self.head.dense, self.head.pooler
        before = [base + pooler] if pooler else []
        before += [(base if dense.in_base else "") + dense.linear] if dense else []
        return tuple(dict.fromkeys([*before, *self.head.outputs.values()]))
