"""Turns a language model into a program with state: one builder, which reads the family's row."""

from typing import Literal, NamedTuple

import numpy as np

from bitwright.engine.cache_layout import CacheKind, CacheLayer, ConvolutionLayer
from bitwright.engine.linears import Inputs, Linear
from bitwright.engine.lowering import HeadShape, Lowering, Value
from bitwright.engine.program import Program
from bitwright.engine.rotary import rotary
from bitwright.engine.weights import Weights, short
from bitwright.errors import CheckpointError, EngineError
from bitwright.families import FAMILIES
from bitwright.families.row import Architecture, Decoding, Role
from bitwright.files.directory import CONFIG_FILE
from bitwright.files.task import find_task
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

HeadBits = Literal["int8", "16"]


class Arithmetic(NamedTuple):
    """How the engine computes what a checkpoint leaves open.

    inputs: of linears of at most 4 bits, where the file leaves them in 16 bits: rounded to int8 by token and group, or
    bf16. head: how one that the file keeps in 16 bits is held. cache: how keys and values are.
    """

    inputs: Inputs = "int8"
    head: HeadBits = "int8"
    cache: CacheKind = "int8"


DEFAULT = Arithmetic()
FLOAT = Arithmetic(inputs="bf16", head="16", cache="bf16")  # whatever the checkpoint does not quantize


_VALUES_AT_ONCE = 1 << 20  # of a head, while it is quantized: they stay in cache
_HEAD_GROUP = 64  # inputs, at most, that share a scale of a head

# What changes the computation, and no builder supports; a value here is the one that changes nothing.
_PLAIN = {"attention_multiplier": None, "logits_scaling": None, "residual_multiplier": None,
          "embedding_multiplier": None, "no_rope_layers": None, "attention_chunk_size": None}  # fmt: skip


class _Decoder(NamedTuple):
    """A row, and what it says of one checkpoint. base: what the names of the base model begin with."""

    row: Architecture
    how: Decoding
    lower: Lowering
    base: str
    shape: HeadShape
    eps: float
    windows: tuple[int | None, ...]  # of each block
    taps: tuple[int | None, ...]  # of the convolution that a block has in place of attention

    @property
    def plus(self) -> float:
        return 1.0 if self.how.plus_one else 0.0


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
    decoder = _opened(weights, arithmetic.inputs)
    lower, base, how, eps, plus = decoder.lower, decoder.base, decoder.how, decoder.eps, decoder.plus
    config, row = weights.config, decoder.row
    positions = min(context or _trained(weights, row), _trained(weights, row))
    width = weights.number(row.keys.hidden_size)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in decoder.windows]
    angles = {kind: rotary(weights, kind, decoder.shape.size, positions) for kind in dict.fromkeys(kinds)}
    x = lower.embed(f"{base}{row.embeddings.words}.weight", factor=width**0.5 if how.scaled else 1.0)
    before = row.producer(row.linears("qkv")[0])
    normed = lower.rms_norm(f"{base}{row.blocks}.0.{before}", x, eps=eps, plus=plus)
    layers = len(decoder.windows)
    for layer in range(layers):
        block = f"{base}{row.blocks}.{layer}"
        if (taps := decoder.taps[layer]) is not None:
            y = _convolution(decoder, block, layer, normed, ConvolutionLayer(width, taps))
        else:
            y = _attention(decoder, block, layer, normed, angles[kinds[layer]])
        x, normed = lower.rms_norm_of_sum(f"{block}.{_ffn_norm(row)}", y, x, eps=eps, plus=plus)
        y = _ffn(decoder, block, normed)
        weights.drop_pages()
        if layer + 1 < layers:
            x, normed = lower.rms_norm_of_sum(f"{base}{row.blocks}.{layer + 1}.{before}", y, x, eps=eps, plus=plus)
    x = _sum_of_wanted(decoder, y, x)
    linear = _head(decoder)
    held = _rounded(linear) if arithmetic.head == "int8" and isinstance(linear, FloatLinear) else linear
    logits = lower.head(row.head.outputs["text-generation"], held, x, stored=held is linear)
    if (cap := config.get("final_logit_softcapping")) is not None:
        logits = lower.softcap("logits", logits, weights.check_real("final_logit_softcapping", cap))
    attention = CacheLayer(decoder.shape.kv_heads, decoder.shape.size)
    cache = [attention if taps is None else ConvolutionLayer(width, taps) for taps in decoder.taps]
    return lower.finish(logits, max_tokens=positions, layers=cache)


def _opened(weights: Weights, inputs: Inputs) -> _Decoder:
    family, config = str(weights.config.get("model_type")), weights.config
    row = FAMILIES.get(family)
    if find_task(weights.source) != "text-generation":
        raise EngineError(f"{weights.directory}: it is no language model")
    if row is None or row.decoding is None:
        known = sorted(name for name, row in FAMILIES.items() if row.decoding is not None)
        raise EngineError(f"the engine does not run model_type {family!r}; it runs {', '.join(known)}")
    for key, plain in _PLAIN.items():
        if config.get(key) is not None and config[key] != plain:
            raise EngineError(f"the engine does not support {key} = {short(config[key])}")
    settings = [of.key for of in (row.keys.eps, row.keys.activation) if not isinstance(of, str)]
    needed = (*settings, *row.decoding.needs)
    if missing := [keys for keys in needed if not config.keys() & set(keys.split(" or "))]:
        raise EngineError(f"config.json leaves out {', '.join(missing)}, and only transformers knows what that means")
    words, prefix = f"{row.embeddings.words}.weight", f"{row.prefix}."
    base = next((p for p in (prefix, "") if p + words in weights), None)
    if base is None:
        raise EngineError(f"{weights.directory}: no {words!r}, with or without the prefix {prefix!r}")
    heads, keys = weights.number(row.keys.heads), row.keys
    size = weights.number("head_dim", None) if config.get("head_dim") else weights.number(keys.hidden_size) // heads
    kv_heads = weights.number("num_key_value_heads") if config.get("num_key_value_heads") else heads
    if heads % kv_heads:
        where = f"{weights.directory / CONFIG_FILE}: num_key_value_heads"
        raise CheckpointError(f"{where} is {kv_heads}, which does not divide num_attention_heads = {heads}")
    eps = weights.check_real(keys.eps.key, config[keys.eps.key])
    layers, how = weights.number(keys.layers), row.decoding
    windows, taps = _windows(weights, how, layers), _taps(weights, how, layers)
    return _Decoder(row, how, Lowering(weights, inputs), base, HeadShape(heads, kv_heads, size), eps, windows, taps)


def _trained(weights: Weights, row: Architecture) -> int:
    return weights.number(row.keys.positions.key)


def _windows(weights: Weights, how: Decoding, layers: int) -> tuple[int | None, ...]:
    """Of each block, how many tokens a token sees, itself among them; None for all.

    Raises:
        EngineError: a kind of attention that no operator computes.
    """
    config = weights.config
    if how.windows == "none" or config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return (None,) * layers
    window = weights.number("sliding_window")
    if how.windows == "all":
        return (window,) * layers
    kinds = config.get("layer_types")
    if kinds is None and "use_sliding_window" in config:  # qwen2 and qwen3 before they listed them
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise EngineError(f"the engine does not support max_window_layers = {short(first)}")
        return tuple(window if layer >= first else None for layer in range(layers))
    if kinds is None:  # gemma3 before it listed them
        every = weights.number("sliding_window_pattern", 6)
        return tuple(window if (layer + 1) % every else None for layer in range(layers))
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
        raise EngineError(f"the engine does not support layer_types {short(kinds)} for {layers} blocks")
    return tuple(known[kind] for kind in kinds)


def _taps(weights: Weights, how: Decoding, layers: int) -> tuple[int | None, ...]:
    """Of each block, how many tokens count for a token of its convolution; None if it has attention.

    Raises:
        EngineError: blocks of a kind that no operator computes.
    """
    config, convolution = weights.config, how.convolution
    if convolution is None:
        return (None,) * layers
    taps, kinds = weights.number(convolution.taps), config.get("layer_types")
    if kinds is None:
        attends = config.get(convolution.attends)
        if attends is not None and not isinstance(attends, list):
            raise EngineError(f"the engine does not support {convolution.attends} = {short(attends)}")
        kinds = ["full_attention" if attends is None or i in attends else "conv" for i in range(layers)]
    known = {"full_attention": None, "conv": taps}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
        raise EngineError(f"the engine does not support layer_types {short(kinds)} for {layers} blocks")
    return tuple(known[kind] for kind in kinds)


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


def _attention(
    decoder: _Decoder, block: str, layer: int, normed: Value, angles: tuple[np.ndarray, np.ndarray]
) -> Value:
    """What attention adds to the residual."""
    lower, how, shape = decoder.lower, decoder.how, decoder.shape
    weights, config = lower.weights, lower.weights.config
    qkv = lower.linears([f"{block}.{part}" for part in _of_attention(decoder, "qkv")], normed, out="bf16")

    def head_norm(path: str | None) -> np.ndarray | None:
        if path is None:
            return None
        return weights.vector(f"{block}.{path}.weight", shape.size) + np.float32(decoder.plus)

    scalar, cap = config.get("query_pre_attn_scalar"), config.get("attn_logit_softcapping")
    mixed = lower.attention_cached(
        block, qkv, shape,
        layer=layer,
        scale=(shape.size if scalar is None else weights.check_real("query_pre_attn_scalar", scalar)) ** -0.5,
        softcap=0.0 if cap is None else weights.check_real("attn_logit_softcapping", cap),
        window=decoder.windows[layer],
        q_weight_D=head_norm(how.query_norm),
        k_weight_D=head_norm(how.key_norm),
        eps=decoder.eps,
        cos_TF=angles[0],
        sin_TF=angles[1],
    )  # fmt: skip
    (out,) = _of_attention(decoder, "attention_output")
    return _normed(decoder, block, how.attention_norm, lower.linears([f"{block}.{out}"], mixed, out="f32"))


def _ffn(decoder: _Decoder, block: str, normed: Value) -> Value:
    """What the FFN adds to the residual."""
    lower, row = decoder.lower, decoder.row
    *ups, down = row.linears("ffn")
    given = row.keys.activation
    activation = given if isinstance(given, str) else lower.weights.config[given.key]
    names = [f"{block}.{up}" for up in ups]
    gated = lower.gated(names, normed, str(activation), f"{block}.{down}")
    return _normed(decoder, block, decoder.how.ffn_norm, lower.linears([f"{block}.{down}"], gated, out="f32"))


def _normed(decoder: _Decoder, block: str, norm: str | None, y: Value) -> Value:
    if norm is None:
        return y
    return decoder.lower.rms_norm(f"{block}.{norm}", y, eps=decoder.eps, plus=decoder.plus)


def _ffn_norm(row: Architecture) -> str | None:
    return row.producer(row.linears("ffn")[0])


def _sum_of_wanted(decoder: _Decoder, y: Value, x: Value) -> Value:
    """The last norm, of the sum of those rows alone whose logits are wanted."""
    lower, name = decoder.lower, f"{decoder.base}{decoder.how.final_norm}"
    _, normed = lower.rms_norm_of_sum(name, lower.wanted(y), lower.wanted(x), eps=decoder.eps, plus=decoder.plus)
    return normed


def _head(decoder: _Decoder) -> Linear:
    """The linear that gives the logits: the table of words, where the checkpoint ties them."""
    weights, name = decoder.lower.weights, decoder.row.head.outputs["text-generation"]
    if weights.has_linear(name):
        return weights.linear(name)
    if not weights.config.get("tie_word_embeddings", True):
        raise CheckpointError(f"{weights.directory}: there is no {name}.weight, and no word embeddings stand for it")
    return weights.linear(f"{decoder.base}{decoder.row.embeddings.words}")


def _rounded(linear: FloatLinear) -> QuantizedLinear:
    """A float linear in 8 bits, with a scale for each group of inputs, as one of 4 bits that reads its inputs twice.

    A code c + 128 is 16 · high + low, so that c · scale = (high − 8) · 16 scale + low · scale: two 4-bit weights, side
    by side along K. So inputs are rounded by groups, too. With one scale for each row and token, as int8 linears have,
    the perplexity of SmolLM2-135M rose by 0.6 %, not 0.2 %.
    """
    weight_NK, (n, k) = linear.weight_NK, linear.shape
    group = next((size for size in range(_HEAD_GROUP, 0, -8) if k % size == 0), None)
    if group is None:
        raise EngineError(f"a head with K = {k} inputs cannot be held in int8: K must be a multiple of 8")
    codes_NK, scale_NG = np.empty((n, 2 * k), np.int8), np.empty((n, 2 * k // group), np.float32)
    at_once = max(1, _VALUES_AT_ONCE // k)
    for begin in range(0, n, at_once):
        part, rows = weight_NK[begin : begin + at_once], slice(begin, begin + at_once)
        values_MGg = (part.widen() if isinstance(part, Bf16) else part).reshape(-1, k // group, group)
        scale_MG = _scales(abs(values_MGg).max(axis=2) / np.float32(127))
        above_MGg = np.divide(values_MGg, scale_MG[..., None])
        np.rint(above_MGg, out=above_MGg)
        above_MGg += np.float32(128)
        above_MK = np.clip(above_MGg, 0, 255, out=above_MGg).astype(np.uint8).reshape(-1, k)
        codes_NK[rows, :k], codes_NK[rows, k:] = above_MK >> 4, above_MK & 15
        scale_NG[rows] = np.concatenate([16 * scale_MG, scale_MG], axis=1)
    zero_NG = np.zeros(scale_NG.shape, np.int8)
    zero_NG[:, k // group :] = -8
    spec = QuantSpec(4, symmetric=False, group_size=group)
    return QuantizedLinear(QTensor(codes_NK - np.int8(8), scale_NG, zero_NG, spec), linear.bias_N)


def _scales(exact: np.ndarray) -> np.ndarray:
    """Scales that bf16 holds, not below these: kernels read such scales in half the bytes."""
    bits = np.maximum(exact, np.float32(2.0**-100)).view(np.uint32) + np.uint32(0xFFFF)
    held: np.ndarray = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return held
