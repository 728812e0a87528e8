"""How each family of encoders becomes a program: one short builder per way of building a block, a row per family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitwright.engine.disentangled import attention_kinds, positions_of, tables_of
from bitwright.engine.lowering import Lowering, Value
from bitwright.engine.program import Program
from bitwright.engine.weights import Weights, short
from bitwright.errors import CheckpointError, EngineError, ModelError
from bitwright.files.directory import CONFIG_FILE

Config = dict[str, Any]

# What config.json may leave out takes the default of transformers.
_POSITIONS = 512
_KINDS = ("full_attention", "sliding_attention")
_MOST_ANGLES = 1 << 23  # positions times head size, for one kind of attention: 32 MiB of cosines and sines

# End of the class in config.json -> task.
_TASKS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# What follows the blocks, beside the classifier: (linear, activation); a path that begins with a dot is in the base
# model.
_POOLER = ((".pooler.dense", "tanh"),)
_ROBERTA_HEAD = (("classifier.dense", "tanh"),)


@dataclass(frozen=True, slots=True)
class PostNorm:
    """A family whose blocks normalise after the residual is added. Paths of a block's parts are below `block`.

    prefix: of the base model in the files of a model with a head. types: the table of token types, if the family has
    one. head, classifier: of a sequence classifier, after the first token; `head` is (linear, activation) each.
    projection: of narrow embeddings. heads, layers, activation: keys of config.json. after_padding: positions count
    from pad_token_id + 1. distance_bias: a table of attention biases by bucket of distance, shared by all blocks.
    default_activation: where config.json names none.
    """

    prefix: str
    block: str
    qkv: tuple[str, str, str]
    attention_output: str
    attention_norm: str
    ffn: tuple[str, str]
    ffn_norm: str
    head: tuple[tuple[str, str], ...] = _POOLER
    classifier: str = "classifier"
    types: str | None = "embeddings.token_type_embeddings.weight"
    projection: str | None = None
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    activation: str = "hidden_act"
    default_activation: str = "gelu"
    after_padding: bool = False
    distance_bias: str | None = None


_BERT = PostNorm(
    prefix="bert.",
    block="encoder.layer.{}",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn=("intermediate.dense", "output.dense"),
    ffn_norm="output.LayerNorm",
)
_ROBERTA = replace(_BERT, prefix="roberta.", head=_ROBERTA_HEAD, classifier="classifier.out_proj", after_padding=True)

# model_type of config.json -> row.
_POST_NORM: dict[str, PostNorm] = {
    "bert": _BERT,
    "ernie": replace(_BERT, prefix="ernie."),
    "electra": replace(
        _BERT, prefix="electra.", head=(("classifier.dense", "gelu"),), classifier="classifier.out_proj",
        projection="embeddings_project",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": PostNorm(
        prefix="distilbert.",
        block="transformer.layer.{}",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        ffn=("ffn.lin1", "ffn.lin2"),
        ffn_norm="output_layer_norm",
        head=(("pre_classifier", "relu"),),
        types=None,
        heads="n_heads",
        layers="n_layers",
        activation="activation",
    ),
    "albert": PostNorm(
        prefix="albert.",
        block="encoder.albert_layer_groups.0.albert_layers.0",  # the same for all layers
        qkv=("attention.query", "attention.key", "attention.value"),
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        ffn=("ffn", "ffn_output"),
        ffn_norm="full_layer_layer_norm",
        head=((".pooler", "tanh"),),
        projection="encoder.embedding_hidden_mapping_in",
        default_activation="gelu_new",
    ),
    "mpnet": PostNorm(
        prefix="mpnet.",
        block="encoder.layer.{}",
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        ffn=("intermediate.dense", "output.dense"),
        ffn_norm="output.LayerNorm",
        head=_ROBERTA_HEAD,
        classifier="classifier.out_proj",
        types=None,
        after_padding=True,
        distance_bias="encoder.relative_attention_bias.weight",
    ),
}  # fmt: skip


def task_of(weights: Weights) -> str:
    """What a model was trained for: "embedding" if it has no head.

    Raises:
        EngineError: a head without a builder. ModelError: `architectures` is no list of names.
    """
    names = weights.config.get("architectures") or [""]
    if not isinstance(names, list) or not isinstance(names[0], str):
        where = f"{weights.directory / CONFIG_FILE}: architectures"
        raise ModelError(f'{where} is {short(names)}; a list of names of classes is needed, such as ["BertModel"]')
    name = names[0]
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), "embedding")
    if task == "embedding" and "For" in name and not name.endswith(("ForMaskedLM", "ForPreTraining")):
        raise EngineError(f"{name} has no builder")
    return task


def lower_encoder(weights: Weights, *, pooling: Sequence[str] | None = ("mean",), normalize: bool = False) -> Program:
    """The program of an encoder, with its head if it has one.

    It puts out a row for each text, pooled embeddings or logits; of a token classifier, of a question answering model,
    and without `pooling`, one for each token.

    Args:
        pooling, normalize: of an embedding model (`files/pooling.py`); None puts out what the last block gives.

    Raises:
        EngineError: a family, or a setting of one, without a builder; a linear that no operator runs.
    """
    family, task = str(weights.config.get("model_type")), task_of(weights)
    if family not in _BUILDERS:
        raise EngineError(f"no builder for model_type {family!r}; there are: {', '.join(sorted(_BUILDERS))}")
    lower = Lowering(weights)
    x, head = _BUILDERS[family](lower)
    if task == "embedding":
        out = x if pooling is None else lower.pool(x, pooling, normalize=normalize)
    elif task == "sequence-classification":
        out = head.layers(lower.pool(x, (head.pooling,), normalize=False))
        out = lower.linears([head.classifier], out, out="f32")
    else:
        x = head.layers(x) if head.for_tokens else x
        out = lower.linears([head.spans if task == "question-answering" else "classifier"], x, out="f32")
    return lower.finish(out, max_tokens=head.max_tokens, types=head.types)


@dataclass(frozen=True, slots=True)
class Head:
    """What a builder knows of the rest.

    layers: what comes between a pooled text and `classifier`; for_tokens: and between each token and its classifier.
    spans: the linear of a question answering model.
    """

    layers: Callable[[Value], Value]
    classifier: str
    max_tokens: int
    types: int = 1
    pooling: str = "cls"
    for_tokens: bool = False
    spans: str = "qa_outputs"


def _post_norm(row: PostNorm) -> Callable[[Lowering], tuple[Value, Head]]:
    def build(lower: Lowering) -> tuple[Value, Head]:
        weights, config = lower.weights, lower.weights.config
        _refuse(config)
        eps, heads = weights.real("layer_norm_eps", 1e-12), weights.number(row.heads)
        words = "embeddings.word_embeddings.weight"
        base = _base(weights, row.prefix, words)
        first = _first_position(config) if row.after_padding else 0
        limit = weights.number("max_position_embeddings", _POSITIONS) - first
        types = base + row.types if row.types and base + row.types in weights else None
        x = lower.embed(base + words, f"{base}embeddings.position_embeddings.weight", types, first)
        lower.check_tokens(limit)  # before a bias is made for them
        x = lower.norm(f"{base}embeddings.LayerNorm", x, eps=eps)
        if row.projection and weights.has_linear(base + row.projection):
            x = lower.linears([base + row.projection], x, out="f32")
        bias_HD = _distance_bias(weights.rows(base + row.distance_bias, heads), limit) if row.distance_bias else None
        for layer in range(weights.number(row.layers)):
            block = base + row.block.format(layer)
            qkv = lower.qkv([f"{block}.{part}" for part in row.qkv], x)
            x = _rest_of_block(lower, row, block, lower.attention(block, qkv, heads, bias_HD=bias_HD), x, eps)

        def head(x: Value) -> Value:
            for path, function in row.head:
                name = base + path[1:] if path[0] == "." else path
                x = lower.linears([name], x, out="f32", activation=function)
            return x

        return x, Head(head, row.classifier, limit, len(weights.floats(types)) if types else 1)

    return build


def _rest_of_block(lower: Lowering, row: PostNorm, block: str, mixed: Value, x: Value, eps: float) -> Value:
    """What a block does after attention has mixed its tokens."""
    activation = str(lower.weights.config.get(row.activation, row.default_activation))
    y = lower.linears([f"{block}.{row.attention_output}"], mixed, out="f32")
    x = lower.norm(f"{block}.{row.attention_norm}", y, x, eps=eps)
    inner = lower.linears([f"{block}.{row.ffn[0]}"], x, out="bf16", activation=activation)
    y = lower.linears([f"{block}.{row.ffn[1]}"], inner, out="f32")
    return lower.norm(f"{block}.{row.ffn_norm}", y, x, eps=eps)


def _deberta(lower: Lowering) -> tuple[Value, Head]:
    """BERT's blocks with disentangled attention; absolute positions and token types only where the config says so."""
    weights, config = lower.weights, lower.weights.config
    _refuse(config)
    row, words = replace(_BERT, prefix="deberta."), "embeddings.word_embeddings.weight"
    base = _base(weights, row.prefix, words)
    eps, heads = weights.real("layer_norm_eps", 1e-7), weights.number(row.heads)
    limit = weights.number("max_position_embeddings", _POSITIONS)
    absolute = f"{base}embeddings.position_embeddings.weight" if config.get("position_biased_input", True) else None
    types = base + str(row.types) if config.get("type_vocab_size", 0) else None
    x = lower.embed(base + words, absolute, types)
    if f"{base}embeddings.embed_proj.weight" in weights:
        x = lower.linears([f"{base}embeddings.embed_proj"], x, out="f32")
    x = lower.norm(f"{base}embeddings.LayerNorm", x, eps=eps)
    positions = positions_of(weights, f"{base}encoder", limit, eps)
    for layer in range(weights.number(row.layers)):
        block = base + row.block.format(layer)
        attention = f"{block}.attention.self"
        qkv = lower.qkv([f"{attention}.{part}_proj" for part in ("query", "key", "value")], x)
        if positions is None:
            mixed = lower.attention(block, qkv, heads, terms=1 + len(attention_kinds(weights)))
        else:
            mixed = lower.disentangled(block, qkv, heads, tables_of(weights, attention, positions))
        x = _rest_of_block(lower, row, block, mixed, x, eps)

    def head(x: Value) -> Value:
        return lower.linears(["pooler.dense"], x, out="f32", activation=str(config.get("pooler_hidden_act", "gelu")))

    return x, Head(head, "classifier", limit, len(weights.floats(types)) if types else 1)


def _base(weights: Weights, prefix: str, words: str) -> str:
    """What the names of the base model begin with.

    Raises:
        EngineError: the table of words has neither name.
    """
    base = next((p for p in (prefix, "") if p + words in weights), None)
    if base is None:
        raise EngineError(f"{weights.directory}: no {words!r}, with or without the prefix {prefix!r}")
    return base


def _modernbert(lower: Lowering) -> tuple[Value, Head]:
    """Norms before the linears, rotary positions, a gated FFN, and attention that in most blocks is local."""
    weights, config = lower.weights, lower.weights.config
    base = "model." if "model.embeddings.tok_embeddings.weight" in weights else ""
    eps, heads = weights.real("norm_eps", 1e-5), weights.number("num_attention_heads")
    layers, limit = weights.number("num_hidden_layers"), weights.number("max_position_embeddings", 8192)
    activation = str(config.get("hidden_activation", "gelu"))
    kinds, span = _kinds_of_layers(weights, layers), weights.number("local_attention", 128)
    tables = {kind: _rotary(weights, kind, limit, weights.number("hidden_size") // heads) for kind in set(kinds)}
    x = lower.norm(
        f"{base}embeddings.norm", lower.embed(f"{base}embeddings.tok_embeddings.weight", None, None), eps=eps
    )
    normed = x
    for layer, kind in enumerate(kinds):
        block = f"{base}layers.{layer}"
        qkv = lower.linears([f"{block}.attn.Wqkv"], normed, out="bf16")
        qkv = lower.rotate(f"{block}.attn", qkv, heads, *tables[kind])
        window = span // 2 if kind == "sliding_attention" else None
        y = lower.linears([f"{block}.attn.Wo"], lower.attention(block, qkv, heads, window=window), out="f32")
        x, normed = lower.norm_of_sum(f"{block}.mlp_norm", y, x, eps=eps)
        y = lower.linears([f"{block}.mlp.Wo"], lower.gated(f"{block}.mlp.Wi", normed, activation), out="f32")
        if layer + 1 < layers:
            x, normed = lower.norm_of_sum(f"{base}layers.{layer + 1}.attn_norm", y, x, eps=eps)
    x = lower.norm(f"{base}final_norm", y, x, eps=eps)

    def head(x: Value) -> Value:
        y = lower.linears(["head.dense"], x, out="f32", activation=str(config.get("classifier_activation", "gelu")))
        return lower.norm("head.norm", y, eps=eps)

    pooling = str(config.get("classifier_pooling", "cls"))
    return x, Head(head, "classifier", limit, pooling=pooling, for_tokens=True, spans="classifier")


def _kinds_of_layers(weights: Weights, layers: int) -> list[str]:
    """How each block of a ModernBERT sees: "full_attention" or "sliding_attention".

    Raises:
        EngineError: another kind, or not one for each block. CheckpointError: no list.
    """
    if weights.config.get("sliding_window") is not None:
        raise EngineError("sliding_window, beside local_attention, has no builder")
    given = weights.config.get("layer_types")
    if given is None:
        every = weights.number("global_attn_every_n_layers", 3)
        return [_KINDS[layer % every > 0] for layer in range(layers)]
    if not isinstance(given, list):
        where = f"{weights.directory / CONFIG_FILE}: layer_types"
        raise CheckpointError(f"{where} is {short(given)}, not a list of a name for each block")
    if len(given) != layers or not all(kind in _KINDS for kind in given):
        raise EngineError(f"layer_types {sorted(set(map(str, given)))} of {len(given)} blocks have no builder")
    return given


def _rotary(weights: Weights, kind: str, limit: int, head_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary angles: float32 (limit, head_size / 2) each.

    Raises:
        EngineError: settings that scale the angles, or as many of them as no program holds.
    """
    config, local = weights.config, kind == "sliding_attention"
    found = {key: config[key] for key in ("rope_parameters", "rope_scaling") if config.get(key) is not None}
    parameters = found.get("rope_parameters", {})
    rope = parameters.get(kind, {}) if isinstance(parameters, dict) and parameters.keys() <= set(_KINDS) else None
    plain = isinstance(rope, dict) and rope.keys() <= {"rope_type", "rope_theta"}
    if rope is None or not plain or rope.get("rope_type", "default") != "default" or "rope_scaling" in found:
        wrong = short(found.get("rope_scaling", parameters))
        raise EngineError(f"a rope of {wrong} has no builder; there is one for type 'default', by kind of attention")
    older = weights.real("local_rope_theta" if local else "global_rope_theta", 10_000.0 if local else 160_000.0)
    theta = weights.check_real("rope_theta", rope.get("rope_theta", older))
    if limit * head_size > _MOST_ANGLES:
        raise EngineError(f"max_position_embeddings = {limit} with heads of {head_size} values: too many rotary angles")
    angles_TF = np.arange(limit)[:, None] * theta ** (-np.arange(0, head_size, 2) / head_size)
    return np.cos(angles_TF).astype(np.float32), np.sin(angles_TF).astype(np.float32)


def _first_position(config: Config) -> int:
    """The position of a text's first token where positions count from the padding token's id on."""
    padding = config.get("pad_token_id", 1)
    if type(padding) is not int or padding < 0:
        raise EngineError(f"pad_token_id is {padding!r}, so positions have no beginning")
    return padding + 1


def _refuse(config: Config) -> None:
    """Settings that change the computation and that no builder knows."""
    plain = {"position_embedding_type": "absolute", "is_decoder": False, "num_hidden_groups": 1, "inner_group_num": 1,
             "use_task_id": False, "conv_kernel_size": 0}  # fmt: skip
    for key, value in plain.items():
        if config.get(key, value) != value:
            raise EngineError(f"{key} = {config[key]!r} has no builder")


def _distance_bias(table_BH: np.ndarray, limit: int) -> np.ndarray:
    """T5's buckets of distance, spelled out: float32 (heads, 2 · limit − 1), by key − query from −(limit − 1) on.

    Half of the buckets are for keys behind the query, half for those before it. In each, half are single distances, the
    other half grow as the logarithm, up to 128 (Raffel et al. 2020, 1910.10683, section 2.1).
    """
    half = len(table_BH) // 2
    if half < 4 or limit < 1:
        raise EngineError(f"{len(table_BH)} buckets of distance for {limit} tokens have no builder")
    distance = np.arange(-(limit - 1), limit)
    near, far = half // 2, np.abs(distance)
    growth = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(near)) / np.log(np.float32(128 / near))
    bucket = np.where(far < near, far, np.minimum(near + (growth * (half - near)).astype(np.int64), half - 1))
    return np.ascontiguousarray(table_BH[bucket + half * (distance > 0)].T)


_BUILDERS: dict[str, Callable[[Lowering], tuple[Value, Head]]] = {
    **{family: _post_norm(row) for family, row in _POST_NORM.items()},
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
}
