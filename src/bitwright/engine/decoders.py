"""Turns a language model into a program with state: one builder, which reads the family's row."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from bitwright.engine import decoder_settings as settings
from bitwright.engine.cache_layout import CacheKind, CacheLayer, ConvolutionLayer
from bitwright.engine.fp8 import Fp8
from bitwright.engine.heads import head_in_int8
from bitwright.engine.linears import Inputs, Linear
from bitwright.engine.lowering import HeadShape, Lowering, Value
from bitwright.engine.program import Program
from bitwright.engine.rotary import Rotary, rotary
from bitwright.engine.weights import Weights, short
from bitwright.errors import CheckpointError, EngineError
from bitwright.families import FAMILIES
from bitwright.families.row import Architecture, Decoding, Role
from bitwright.families.tasks import TaskName
from bitwright.files.answers import Answers, answers_by_logits, read_answers
from bitwright.files.directory import CONFIG_FILE
from bitwright.files.task import find_task
from bitwright.numerics.linear import FloatLinear

HeadBits = Literal["int8", "16"]


class Arithmetic(NamedTuple):
    """How the engine computes what a checkpoint leaves open.

    inputs: of linears of at most 4 bits, where the file leaves them in 16 bits: rounded to int8 by token and group, or
    bf16. head: how one that the file keeps in 16 bits is held. cache: how keys and values are. fp8: FP8 linears, for
    who opens the weights.
    """

    inputs: Inputs = "int8"
    head: HeadBits = "int8"
    cache: CacheKind = "int8"
    fp8: Fp8 = "bf16"


DEFAULT = Arithmetic()
FLOAT = Arithmetic(inputs="bf16", head="16", cache="bf16")  # whatever the checkpoint does not quantize


class _Decoder(NamedTuple):
    """A row, and what it says of one checkpoint.

    base: what the names of the base model begin with. windows: of each block. taps: of the convolution that a block has
    in place of attention. rotated: of each, whether it knows
    positions. causal: whether a token sees only those before it.

    x + m · f(norm(x)) in every block is the same as y + f(norm(y)) of y = x / m, if eps is divided by m²: so a factor
    of residuals costs nothing. embedded: the factor of a word with it; eps: with it, inner_eps: of norms of other
    values than y.
    """

    row: Architecture
    how: Decoding
    lower: Lowering
    base: str
    shape: HeadShape
    eps: float
    inner_eps: float
    embedded: float
    windows: tuple[int | None, ...]
    taps: tuple[int | None, ...]
    rotated: tuple[bool, ...]
    causal: bool

    @property
    def plus(self) -> float:
        return 1.0 if self.how.plus_one else 0.0

    @property
    def norms(self) -> dict[str, Any]:
        """How every norm of the residual is computed."""
        return {"eps": self.eps, "centred": self.how.centred, "plus": self.plus}


def lower_decoder(
    weights: Weights, *, context: int | None = None, arithmetic: Arithmetic = DEFAULT
) -> Program:  # fmt: skip
    """The program of a language model: of each step it puts out the logits of the tokens whose output is wanted.

    Args:
        context: tokens of a sequence, at most those that the model was trained for, which is the default.
        arithmetic: of which the program has inputs and head.

    Raises:
        EngineError: a family, or a setting of one, without a builder; a linear that no operator runs.
    """
    if find_task(weights.source) != "text-generation":
        raise EngineError(f"{weights.directory}: it is no language model")
    decoder = _opened(weights, arithmetic.inputs)
    if not decoder.causal:
        raise EngineError("a model whose tokens see those after them generates no text")
    lower, config, row = decoder.lower, weights.config, decoder.row
    positions = min(context or settings.trained(weights, row), settings.trained(weights, row))
    ends = [lower.wanted(value) for value in _blocks(decoder, positions, passing=False)]
    x = _last_norm(decoder, ends, _factor_of_logits(decoder))
    linear = _head(decoder)
    convert = head_in_int8 if arithmetic.head == "int8" and isinstance(linear, FloatLinear) else None
    logits = lower.head(row.head.outputs["text-generation"], linear, x, convert=convert)
    if (cap := config.get("final_logit_softcapping")) is not None:
        logits = lower.softcap("logits", logits, weights.check_real("final_logit_softcapping", cap))
    return lower.finish(logits, max_tokens=positions, layers=_cache_layers(decoder))


def lower_text_decoder(
    weights: Weights, task: TaskName, *, pooling: Sequence[str] | None = ("lasttoken",), normalize: bool = False,
    inputs: Inputs = "int8",
) -> Program:  # fmt: skip
    """The program of a decoder that makes a vector or scores of each text; it has no state.

    It puts out a row for each text; without `pooling`, one for each token. A classifier reads the last token.

    Args:
        pooling, normalize: of an embedding model (`files/pooling.py`); None puts out what the last norm gives.
        inputs: as `Arithmetic` has them.

    Raises:
        EngineError: as `lower_decoder`, or another task; a family with convolutions.
    """
    if task not in ("embedding", "sequence-classification"):
        raise EngineError(f"the engine runs no decoder for {task}")
    decoder = _opened(weights, inputs)
    if any(decoder.taps):
        raise EngineError("the engine runs no embedding model or classifier with convolutions")
    lower, positions = decoder.lower, settings.trained(weights, decoder.row)
    answers = read_answers(weights.source)[0] if answers_by_logits(weights.source, task) else None
    factor = 1.0 if answers is None else _factor_of_logits(decoder)
    out = _last_norm(decoder, _blocks(decoder, positions, passing=True), factor)
    if task == "sequence-classification":
        if not decoder.causal:
            raise EngineError("the engine runs no classifier whose tokens see those after them")
        out = lower.pool(out, ("lasttoken",), normalize=False)
        if answers is None:
            out = lower.linears([decoder.row.head.outputs[task]], out, out="f32")
        else:
            out = lower.head("score", _of_answers(decoder, answers), out)
    elif pooling is not None:
        out = lower.pool(out, pooling, normalize=normalize)
    return lower.finish(out, max_tokens=positions, passing=_cache_layer(decoder))


def padding_id(weights: Weights) -> int | None:
    """The token that the classifier of a decoder never reads at the end of a text; None if it reads any.

    Raises:
        EngineError: config.json does not say it. CheckpointError: it is no token.
    """
    if "pad_token_id" not in weights.config:
        raise EngineError("config.json leaves out pad_token_id, and only transformers knows what that means")
    given = weights.config["pad_token_id"]
    if given is not None and type(given) is not int:
        where = f"{weights.directory / CONFIG_FILE}: pad_token_id"
        raise CheckpointError(f"{where} is {short(given)}, but must be a token id or null")
    return given


def _blocks(decoder: _Decoder, positions: int, *, passing: bool) -> list[Value]:
    """What the last norm reads the sum of: what the last FFN adds and the residual, or the residual with it. passing:
    keys and values of all blocks have the same place, one after the other."""
    lower, base, row, how = decoder.lower, decoder.base, decoder.row, decoder.how
    kinds = ["full_attention" if window is None else "sliding_attention" for window in decoder.windows]
    angles = {kind: _angles(decoder, kind, positions) for kind in dict.fromkeys(kinds)}
    x = lower.embed(f"{base}{row.embeddings.words}.weight", factor=decoder.embedded)
    before, between = (row.producer(row.linears(role)[0]) for role in ("qkv", "ffn"))
    normed = x if before is None else lower.norm(f"{base}{row.blocks}.0.{before}", x, **decoder.norms)
    layers = len(decoder.windows)
    for layer in range(layers):
        block = f"{base}{row.blocks}.{layer}"
        if (taps := decoder.taps[layer]) is not None:
            y = _convolution(decoder, block, layer, normed, ConvolutionLayer(x.buffer.width, taps))
        else:
            y = _attention(decoder, block, layer, normed, angles[kinds[layer]], place=0 if passing else layer)
        if between is not None and between == before:
            y = lower.add(f"{block}: attention and FFN", y, _ffn(decoder, block, normed))
        else:
            x, normed = _added(decoder, block, how.attention_norm, between and f"{block}.{between}", y, x)
            y = _ffn(decoder, block, normed)
        lower.weights.drop_pages()
        if layer + 1 < layers or before is None:
            following = before and f"{base}{row.blocks}.{layer + 1}.{before}"
            x, normed = _added(decoder, block, how.ffn_norm, following, y, x)
    return [x] if before is None else [_normed(decoder, block, how.ffn_norm, y), x]


def _cache_layer(decoder: _Decoder, window: int | None = None) -> CacheLayer:
    return CacheLayer(decoder.shape.kv_heads, decoder.shape.size, window)


def _cache_layers(decoder: _Decoder) -> list[CacheLayer | ConvolutionLayer]:
    width = decoder.lower.weights.number(decoder.row.keys.hidden_size)
    return [
        _cache_layer(decoder, window) if taps is None else ConvolutionLayer(width, taps)
        for taps, window in zip(decoder.taps, decoder.windows, strict=True)
    ]


def _angles(decoder: _Decoder, kind: str, positions: int) -> Rotary:
    how = decoder.how
    found = rotary(
        decoder.lower.weights, kind, decoder.shape.size, positions, share=how.share, window_theta=how.window_theta
    )
    if found.of_queries is not None and not how.scales_queries:
        raise EngineError("the engine does not support llama_4_scaling_beta in this family")
    return found


def _opened(weights: Weights, inputs: Inputs) -> _Decoder:
    family, config = str(weights.config.get("model_type")), weights.config
    row = FAMILIES.get(family)
    if row is None or row.decoding is None:
        known = sorted(name for name, row in FAMILIES.items() if row.decoding is not None)
        raise EngineError(f"the engine does not run model_type {family!r}; it runs {', '.join(known)}")
    how, keys, layers = row.decoding, row.keys, weights.number(row.keys.layers)
    settings.refuse(config, how)
    if weights.int8_attention:
        raise EngineError("the engine computes the attention of no decoder in int8, but for its cache")
    named = [of.key for of in (keys.eps, keys.activation) if not isinstance(of, str)]
    needed = (*named, *how.needs)
    if missing := [keys for keys in needed if not config.keys() & set(keys.split(" or "))]:
        raise EngineError(f"config.json leaves out {', '.join(missing)}, and only transformers knows what that means")
    words, prefix = f"{row.embeddings.words}.weight", f"{row.prefix}."
    base = next((p for p in (prefix, "") if p + words in weights), None)
    if base is None:
        raise EngineError(f"{weights.directory}: no {words!r}, with or without the prefix {prefix!r}")
    heads, width = weights.number(keys.heads), weights.number(keys.hidden_size)
    size = weights.number("head_dim", None) if config.get("head_dim") else width // heads
    kv_heads = weights.number("num_key_value_heads") if config.get("num_key_value_heads") else heads
    if heads % kv_heads:
        where = f"{weights.directory / CONFIG_FILE}: num_key_value_heads"
        raise CheckpointError(f"{where} is {kv_heads}, which does not divide num_attention_heads = {heads}")
    embedded = width**0.5 if how.scaled else 1.0
    residual = weights.real("residual_multiplier", 1.0) if how.multiplied else 1.0
    if how.multiplied:
        embedded *= weights.real("embedding_multiplier", 1.0)
    eps = weights.check_real(keys.eps.key, config[keys.eps.key])
    return _Decoder(
        row, how, Lowering(weights, inputs), base, HeadShape(heads, kv_heads, size),
        eps=eps / residual**2,
        inner_eps=eps,
        embedded=embedded / residual,
        windows=settings.windows(weights, how, layers),
        taps=settings.taps(weights, how, layers),
        rotated=settings.rotated(weights, how, layers),
        causal=settings.is_causal(config),
    )  # fmt: skip


def _convolution(decoder: _Decoder, block: str, layer: int, normed: Value, shape: ConvolutionLayer) -> Value:
    """What a convolution adds to the residual."""
    lower, convolution = decoder.lower, decoder.how.convolution
    assert convolution is not None, "a block with taps has one"
    gates = lower.linears([f"{block}.{convolution.gates}"], normed, out="bf16")
    mixed = lower.convolution_cached(f"{block}.{convolution.kernel}", gates, shape, layer=layer)
    return lower.linears([f"{block}.{convolution.out}"], mixed, out="f32")


def _of_attention(decoder: _Decoder, role: Role) -> list[str]:
    """The linears of a block with attention that have this role."""
    convolution = decoder.how.convolution
    others = () if convolution is None else (convolution.gates, convolution.out)
    return [path for path in decoder.row.linears(role) if path not in others]


def _attention(decoder: _Decoder, block: str, layer: int, normed: Value, angles: Rotary, *, place: int) -> Value:
    """What attention adds to the residual. place: of keys and values in the cache."""
    lower, how, shape = decoder.lower, decoder.how, decoder.shape
    weights, config = lower.weights, lower.weights.config
    qkv = lower.linears([f"{block}.{part}" for part in _of_attention(decoder, "qkv")], normed, out="bf16")

    def head_norm(path: str | None) -> np.ndarray | None:
        if path is None:
            return None
        return weights.vector(f"{block}.{path}.weight", shape.size) + np.float32(decoder.plus)

    if how.whole_norms:
        column = 0
        for path, heads in ((how.query_norm, shape.heads), (how.key_norm, shape.kv_heads)):
            column = lower.rms_norm_columns(f"{block}.{path}", qkv, column, heads * shape.size, eps=decoder.inner_eps)
    if angles.of_queries is not None:
        scaled = angles.of_queries
        lower.rotate_queries(f"{block}: scale of queries", qkv, shape, scaled.cos_TF, scaled.sin_TF)
    cap, rotates = config.get("attn_logit_softcapping"), decoder.rotated[layer]
    mixed = lower.attention_cached(
        block, qkv, shape,
        layer=place,
        scale=_scale(decoder),
        softcap=0.0 if cap is None else weights.check_real("attn_logit_softcapping", cap),
        window=decoder.windows[layer],
        causal=decoder.causal,
        q_weight_D=None if how.whole_norms else head_norm(how.query_norm),
        k_weight_D=None if how.whole_norms else head_norm(how.key_norm),
        eps=decoder.inner_eps,
        cos_TF=angles.cos_TF if rotates else None,
        sin_TF=angles.sin_TF if rotates else None,
        interleaved=how.interleaved,
    )  # fmt: skip
    mixed = _normed(decoder, block, how.attention_sub_norm, mixed)
    (out,) = _of_attention(decoder, "attention_output")
    return lower.linears([f"{block}.{out}"], mixed, out="f32")


def _scale(decoder: _Decoder) -> float:
    """What scores are multiplied by."""
    weights, scalar = decoder.lower.weights, decoder.lower.weights.config.get("query_pre_attn_scalar")
    if decoder.how.multiplied:
        return weights.real("attention_multiplier", 1.0)
    size = decoder.shape.size if scalar is None else weights.check_real("query_pre_attn_scalar", scalar)
    return float(size**-0.5)


def _ffn(decoder: _Decoder, block: str, normed: Value) -> Value:
    """What the FFN adds to the residual."""
    lower, row = decoder.lower, decoder.row
    *ups, down = row.linears("ffn")
    given, how = row.keys.activation, decoder.how
    activation = given if isinstance(given, str) else str(lower.weights.config[given.key])
    activation = how.names.get(activation, activation)
    names = [f"{block}.{up}" for up in ups]
    sub_norm, reader = how.ffn_sub_norm, f"{block}.{down}"
    if how.gated:
        inner = lower.gated(names, normed, activation, reader if sub_norm is None else None)
    else:
        inner = lower.linears(names, normed, out="bf16", activation=activation)
    return lower.linears([reader], _normed(decoder, block, sub_norm, inner), out="f32")


def _normed(decoder: _Decoder, block: str, norm: str | None, y: Value) -> Value:
    if norm is None:
        return y
    return decoder.lower.norm(f"{block}.{norm}", y, **(decoder.norms | {"eps": decoder.inner_eps}))


def _added(
    decoder: _Decoder, block: str, after: str | None, before: str | None, y: Value, x: Value
) -> tuple[Value, Value]:
    """The residual x with what is added to it, and what the next linears read. after: the norm of y. before: that of
    what they read, by its whole name; None where they read the residual."""
    lower = decoder.lower
    if before is None:
        x = lower.norm_and_sum(f"{block}.{after}", y, x, **decoder.norms)
        return x, x
    return lower.norm_of_sum(before, _normed(decoder, block, after, y), x, **decoder.norms)


def _last_norm(decoder: _Decoder, values: Sequence[Value], factor: float = 1.0) -> Value:
    """The last norm, of the sum of one or two values, times a factor."""
    lower, name = decoder.lower, f"{decoder.base}{decoder.how.final_norm}"
    return lower.norm(name, *values, factor=factor, **decoder.norms)


def _factor_of_logits(decoder: _Decoder) -> float:
    how, weights = decoder.how, decoder.lower.weights
    if how.logits is not None:
        return weights.real(how.logits, 1.0)
    return 1 / weights.real("logits_scaling", 1.0) if how.multiplied else 1.0


def _of_answers(decoder: _Decoder, answers: Answers) -> FloatLinear:
    """The head of which only a score is wanted: the row of one answer, less that of the other."""
    if decoder.lower.weights.config.get("final_logit_softcapping") is not None:
        raise EngineError("the engine has no scores from logits with final_logit_softcapping")
    linear = _head(decoder)

    def row(token: int) -> tuple[np.ndarray, np.ndarray]:
        one = linear.rows(token, token + 1)
        weight_1K = one.widened() if isinstance(one, FloatLinear) else one.weight.dequantize()
        return weight_1K, np.zeros(1, np.float32) if one.bias_N is None else one.bias_N

    weight_1K, bias_1 = row(answers.yes)
    if answers.no is None:
        return FloatLinear(weight_1K, bias_1)
    other_1K, other_1 = row(answers.no)
    return FloatLinear(weight_1K - other_1K, bias_1 - other_1)


def _head(decoder: _Decoder) -> Linear:
    """The linear that gives the logits: the table of words, where the checkpoint ties them."""
    weights, name = decoder.lower.weights, decoder.row.head.outputs["text-generation"]
    if weights.has_linear(name):
        return weights.linear(name)
    if not weights.config.get("tie_word_embeddings", True):
        raise CheckpointError(f"{weights.directory}: there is no {name}.weight, and no word embeddings stand for it")
    return weights.linear(f"{decoder.base}{decoder.row.embeddings.words}")
