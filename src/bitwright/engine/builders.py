"""Turns an encoder into a program. There is one builder function per style of block, and it reads the family's row."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bitwright.checkpoints.attention import ATTENTION_KEY
from bitwright.engine.decoders import lower_text_decoder, padding_id
from bitwright.engine.disentangled import attention_kinds, positions_of, tables_of
from bitwright.engine.linears import Inputs
from bitwright.engine.lowering import Lowering, Value
from bitwright.engine.positions import distance_bias, kinds_of_layers, rotary_angles
from bitwright.engine.program import Program
from bitwright.engine.weights import Weights
from bitwright.errors import CheckpointError, EngineError
from bitwright.families import FAMILIES, Architecture, Style
from bitwright.families.row import Setting
from bitwright.families.tasks import TaskName, class_of
from bitwright.files.answers import answers_by_logits
from bitwright.files.directory import CONFIG_FILE
from bitwright.files.task import find_task

Config = dict[str, Any]


def encoder_task(weights: Weights) -> TaskName:
    """What a model that reads whole texts was trained for: "embedding" if it has no head.

    Raises:
        EngineError: a language model. ModelError: as `find_task`.
    """
    task = find_task(weights.source)
    if task == "text-generation":
        raise EngineError(
            f"the engine does not run {class_of(weights.config.get('architectures'), str(weights.directory))}"
        )
    return task


def lower_encoder(
    weights: Weights, *, pooling: Sequence[str] | None = ("mean",), normalize: bool = False, inputs: Inputs = "int8"
) -> Program:
    """The program of an encoder, or of a decoder that is used like one, with its head if it has one.

    It puts out a row for each text, pooled embeddings or logits; of a token classifier, of a question answering model,
    and without `pooling`, one for each token.

    Args:
        pooling, normalize: of an embedding model (`files/pooling.py`); None puts out what the last block gives.
        inputs: of linears of at most 4 bits, where the checkpoint leaves them in 16 bits.

    Raises:
        EngineError: a family, or a setting of one, without a builder; a linear that no operator runs.
    """
    task, row = encoder_task(weights), _row_of(weights)
    if row.style is None:
        return lower_text_decoder(weights, task, pooling=pooling, normalize=normalize, inputs=inputs)
    encoder = _opened(weights, row, inputs)
    x, types = _BUILDERS[row.style](encoder)
    lower = encoder.lower
    if task != "embedding":
        out = _head(encoder, task, x)
    else:
        out = x if pooling is None else lower.pool(x, pooling, normalize=normalize)
    return lower.finish(out, max_tokens=encoder.max_tokens, types=len(weights.floats(types)) if types else 1)


def has_position_table(weights: Weights) -> bool:
    """Whether a checkpoint has embeddings of absolute positions; without, only the program bounds a text's length."""
    row = _row_of(weights)
    names = (f"{prefix}{row.positions.table}.weight" for prefix in (f"{row.prefix}.", ""))
    return row.positions.table is not None and any(name in weights for name in names)


def unread_at_the_end(weights: Weights) -> int | None:
    """The token that a decoder with a classifier, which reads the last token of a text, takes for padding there. What
    comes after the last token that it reads changes nothing, so a text may be cut. None for other models.

    Raises:
        EngineError, CheckpointError: as `padding_id`.
    """
    decodes = _row_of(weights).style is None and encoder_task(weights) == "sequence-classification"
    if not decodes or answers_by_logits(weights.source, "sequence-classification"):
        return None
    return padding_id(weights)


class _Encoder(NamedTuple):
    """A row, and what it says of one checkpoint.

    base: what the names of the base model begin with. heads, eps: of attention, of norms. max_tokens: of a text.
    """

    row: Architecture
    lower: Lowering
    base: str
    heads: int
    eps: float
    max_tokens: int

    def setting(self, of: str | Setting) -> str:
        """What config.json says, or its default; or what the row says for all models of the family."""
        return of if isinstance(of, str) else str(self.lower.weights.config.get(*of))

    def table(self, path: str | None) -> str:
        """Name of the tensor of a table of the base model."""
        return f"{self.base}{path}.weight"

    def n_layers(self) -> int:
        return self.lower.weights.number(self.row.keys.layers)

    def block(self, layer: int) -> str:
        """Name of the block that a layer runs: the only one, where layers share it."""
        blocks = self.row.blocks
        return self.base + (f"{blocks}.0".replace("*", "0") if "*" in blocks else f"{blocks}.{layer}")

    def int8_attention(self, layer: int) -> bool:
        """Whether the attention of the block that a layer runs is computed in int8."""
        return (0 if "*" in self.row.blocks else layer) in self.lower.weights.int8_attention


def _row_of(weights: Weights) -> Architecture:
    """Raises:
    EngineError: a family without a builder.
    """
    family = str(weights.config.get("model_type"))
    if family not in FAMILIES or not _has_builder(FAMILIES[family]):
        known = sorted(name for name, row in FAMILIES.items() if _has_builder(row))
        raise EngineError(f"the engine does not run model_type {family!r}; it runs {', '.join(known)}")
    return FAMILIES[family]


def _has_builder(row: Architecture) -> bool:
    return row.style is not None or row.decoding is not None


def _opened(weights: Weights, row: Architecture, inputs: Inputs) -> _Encoder:
    """Raises:
    EngineError: the table of words has neither name; positions have no beginning.
    CheckpointError: a number of config.json that is none.
    """
    words, prefix = f"{row.embeddings.words}.weight", f"{row.prefix}."
    base = next((p for p in (prefix, "") if p + words in weights), None)
    if base is None:
        raise EngineError(f"{weights.directory}: no {words!r}, with or without the prefix {prefix!r}")
    heads, eps = weights.number(row.keys.heads), weights.real(*row.keys.eps)
    max_tokens = weights.number(*row.keys.positions) - row.positions.first(weights.config)
    _check_int8_attention(weights, weights.number(row.keys.layers))
    return _Encoder(row, Lowering(weights, inputs), base, heads, eps, max_tokens)


def _check_int8_attention(weights: Weights, layers: int) -> None:
    """Raises:
    CheckpointError: config.json names a block that the model does not have.
    """
    blocks = weights.int8_attention
    if blocks and max(blocks) >= layers:
        where = f"{weights.directory / CONFIG_FILE}: {ATTENTION_KEY}"
        raise CheckpointError(f"{where}: it names block {max(blocks)}, but there are {layers}, counted from 0")


def _post_norm(encoder: _Encoder) -> tuple[Value, str | None]:
    """BERT's blocks: norms of the sum with the residual, after attention and after the FFN."""
    lower, base, positions = encoder.lower, encoder.base, encoder.row.positions
    _refuse(lower.weights.config)
    given = encoder.row.embeddings.types
    types = encoder.table(given) if given and encoder.table(given) in lower.weights else None
    x = _embed(encoder, encoder.table(positions.table), types)
    lower.check_tokens(encoder.max_tokens)  # before a bias is made for them
    x = _project(encoder, lower.norm(f"{base}{encoder.row.norms.embeddings}", x, eps=encoder.eps))
    bias_HD = None
    if positions.distance_bias:
        table_BH = lower.weights.rows(encoder.table(positions.distance_bias), encoder.heads)
        bias_HD = distance_bias(table_BH, encoder.max_tokens)
    for layer in range(encoder.n_layers()):
        block = encoder.block(layer)
        qkv = lower.qkv([f"{block}.{part}" for part in encoder.row.linears("qkv")], x)
        mixed = lower.attention(block, qkv, encoder.heads, bias_HD=bias_HD, integer=encoder.int8_attention(layer))
        x = _rest_of_block(encoder, block, mixed, x)
    return x, types


def _disentangled(encoder: _Encoder) -> tuple[Value, str | None]:
    """BERT's blocks with disentangled attention; absolute positions and token types only where the config says so."""
    lower, base, row, heads = encoder.lower, encoder.base, encoder.row, encoder.heads
    weights, config = lower.weights, lower.weights.config
    _refuse(config)
    absolute = encoder.table(row.positions.table) if config.get("position_biased_input", True) else None
    types = encoder.table(row.embeddings.types) if config.get("type_vocab_size", 0) else None
    x = _project(encoder, _embed(encoder, absolute, types))
    x = lower.norm(f"{base}{row.norms.embeddings}", x, eps=encoder.eps)
    positions = positions_of(weights, base + row.blocks.rpartition(".")[0], encoder.max_tokens, encoder.eps)
    parts = row.linears("qkv")
    for layer in range(encoder.n_layers()):
        block = encoder.block(layer)
        qkv, integer = lower.qkv([f"{block}.{part}" for part in parts], x), encoder.int8_attention(layer)
        if positions is None:
            mixed = lower.attention(block, qkv, heads, terms=1 + len(attention_kinds(weights)), integer=integer)
        else:
            attention = f"{block}.{parts[0].rpartition('.')[0]}"
            tables = tables_of(weights, attention, positions)
            mixed = lower.disentangled(block, qkv, heads, tables, integer=integer)
        x = _rest_of_block(encoder, block, mixed, x)
    return x, types


def _embed(encoder: _Encoder, positions: str | None, types: str | None) -> Value:
    """The sum of a token's embeddings."""
    first = encoder.row.positions.first(encoder.lower.weights.config)
    return encoder.lower.embed(encoder.table(encoder.row.embeddings.words), positions, types, first)


def _project(encoder: _Encoder, x: Value) -> Value:
    """Narrow embeddings as wide as the blocks; others as they are."""
    path = encoder.row.embeddings.projection
    there = path is not None and encoder.lower.weights.has_linear(f"{encoder.base}{path}")
    return encoder.lower.linears([f"{encoder.base}{path}"], x, out="f32") if there else x


def _rest_of_block(encoder: _Encoder, block: str, mixed: Value, x: Value) -> Value:
    """The part of a block after attention."""
    lower, row, eps = encoder.lower, encoder.row, encoder.eps
    (out,), (up, down) = row.linears("attention_output"), row.linears("ffn")
    y = lower.linears([f"{block}.{out}"], mixed, out="f32")
    x = lower.norm(f"{block}.{row.norms.attention}", y, x, eps=eps)
    inner = lower.linears([f"{block}.{up}"], x, out="bf16", activation=encoder.setting(row.keys.activation))
    y = lower.linears([f"{block}.{down}"], inner, out="f32")
    return lower.norm(f"{block}.{row.norms.ffn}", y, x, eps=eps)


def _alternating(encoder: _Encoder) -> tuple[Value, None]:
    """ModernBERT's blocks: norms before the linears, rotary positions, a gated FFN, and attention that in most blocks
    is local."""
    lower, base, row, eps = encoder.lower, encoder.base, encoder.row, encoder.eps
    weights, heads, layers = lower.weights, encoder.heads, encoder.n_layers()
    kinds, span = kinds_of_layers(weights, layers), weights.number("local_attention", 128)
    size = weights.number(row.keys.hidden_size) // heads
    tables = {kind: rotary_angles(weights, kind, encoder.max_tokens, size) for kind in set(kinds)}
    (qkv_in,), (out,), (up, down) = row.linears("qkv"), row.linears("attention_output"), row.linears("ffn")
    attention, (before, between) = qkv_in.rpartition(".")[0], (row.producer(qkv_in), row.producer(up))
    x = lower.norm(f"{base}{row.norms.embeddings}", _embed(encoder, None, None), eps=eps)
    normed = x
    for layer, kind in enumerate(kinds):
        block = encoder.block(layer)
        qkv = lower.linears([f"{block}.{qkv_in}"], normed, out="bf16")
        qkv = lower.rotate(f"{block}.{attention}", qkv, heads, *tables[kind])
        window = span // 2 if kind == "sliding_attention" else None
        mixed = lower.attention(block, qkv, heads, window=window, integer=encoder.int8_attention(layer))
        y = lower.linears([f"{block}.{out}"], mixed, out="f32")
        x, normed = lower.norm_of_sum(f"{block}.{between}", y, x, eps=eps)
        gated = lower.gated([f"{block}.{up}"], normed, encoder.setting(row.keys.activation), f"{block}.{down}")
        y = lower.linears([f"{block}.{down}"], gated, out="f32")
        if layer + 1 < layers:
            x, normed = lower.norm_of_sum(f"{encoder.block(layer + 1)}.{before}", y, x, eps=eps)
    return lower.norm(f"{base}{row.norms.final}", y, x, eps=eps), None


def _head(encoder: _Encoder, task: TaskName, x: Value) -> Value:
    """The logits of a text, or of each token."""
    lower, head = encoder.lower, encoder.row.head
    of_texts, dense = task == "sequence-classification", head.dense
    if of_texts:
        x = lower.pool(x, (encoder.setting(head.pooling),), normalize=False)
    if dense is not None and (of_texts or head.each_token):
        name = (encoder.base if dense.in_base else "") + dense.linear
        x = lower.linears([name], x, out="f32", activation=encoder.setting(dense.activation))
        if dense.norm is not None:
            x = lower.norm(dense.norm, x, eps=encoder.eps)
    return lower.linears([head.outputs[task]], x, out="f32")


def _refuse(config: Config) -> None:
    """Refuse settings that change the computation and that no builder supports."""
    plain = {"position_embedding_type": "absolute", "is_decoder": False, "num_hidden_groups": 1, "inner_group_num": 1,
             "use_task_id": False, "conv_kernel_size": 0}  # fmt: skip
    for key, value in plain.items():
        if config.get(key, value) != value:
            raise EngineError(f"the engine does not support {key} = {config[key]!r}")


_BUILDERS: dict[Style | None, Callable[[_Encoder], tuple[Value, str | None]]] = {
    "post_norm": _post_norm,
    "disentangled": _disentangled,
    "alternating": _alternating,
}
