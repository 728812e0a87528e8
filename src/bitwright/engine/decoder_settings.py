"""What config.json says of a language model's blocks: windows, convolutions, positions; what no builder supports."""

from typing import Any

from bitwright.engine.weights import Weights, short
from bitwright.errors import EngineError
from bitwright.families.row import Architecture, Decoding

# What changes the computation, and no builder supports; a value here is the one that changes nothing.
_PLAIN = {
    "attention_chunk_size": None, "qk_layernorm": False, "use_qk_norm": False, "use_parallel_residual": False,
    "use_post_norm": True,
}  # fmt: skip
# The same, but for families whose row says so.
_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
_NO_POSITIONS = ("no_rope_layers", "no_rope_layer_interval")
_BOTH_WAYS = "use_bidirectional_attention"


def refuse(config: dict[str, Any], how: Decoding) -> None:
    """Refuse settings that change the computation, and that no builder supports."""
    plain: dict[str, Any] = dict(_PLAIN)
    if not how.multiplied:
        plain |= dict.fromkeys(_MULTIPLIERS)
    if how.skips != "listed":
        plain |= dict.fromkeys(_NO_POSITIONS)
    if not how.both_ways:
        plain[_BOTH_WAYS] = False
    elif config.get(_BOTH_WAYS) and config.get("is_causal", True) is not True:
        plain["is_causal"] = True
    for key, value in plain.items():
        if config.get(key) is not None and config[key] != value:
            raise EngineError(f"the engine does not support {key} = {short(config[key])}")


def is_causal(config: dict[str, Any]) -> bool:
    """Whether a token sees only those before it."""
    return bool(config.get("is_causal", True)) and not config.get(_BOTH_WAYS)


def rotated(weights: Weights, how: Decoding, layers: int) -> tuple[bool, ...]:
    """Of each block, whether it rotates queries and keys."""
    if how.skips == "full" or (how.skips == "full_beside" and weights.config.get("sliding_window") is not None):
        return tuple(window is not None for window in windows(weights, how, layers))
    given = weights.config.get("no_rope_layers") if how.skips == "listed" else [1] * layers
    if given is None:
        every = weights.number("no_rope_layer_interval", 4)
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if not isinstance(given, list) or len(given) < layers or not all(value in (0, 1) for value in given):
        raise EngineError(f"the engine does not support no_rope_layers {short(given)} for {layers} blocks")
    return tuple(map(bool, given[:layers]))


def trained(weights: Weights, row: Architecture) -> int:
    """Tokens of a text that the model was trained for."""
    return weights.number(row.keys.positions.key)


def windows(weights: Weights, how: Decoding, layers: int) -> tuple[int | None, ...]:
    """Of each block, how far a token sees: less than so many tokens, and no token after it if it is causal; None for
    any distance.

    Raises:
        EngineError: a kind of attention that no operator computes.
    """
    config = weights.config
    off, kinds = config.get("use_sliding_window") is False, config.get("layer_types")
    if off and isinstance(kinds, list) and "sliding_attention" in kinds:
        raise EngineError(
            "the engine does not support sliding_attention in layer_types with use_sliding_window = False"
        )
    if how.windows == "none" or config.get("sliding_window") is None or off:
        return (None,) * layers
    window = weights.number("sliding_window")
    if config.get(_BOTH_WAYS):
        window = window // 2 + 1  # transformers counts both sides
    elif not is_causal(config):
        window += 1  # and here the last one that it sees, on each side
    if how.windows == "all":
        return (window,) * layers
    if kinds is None and "use_sliding_window" in config:  # qwen2 and qwen3 before they listed them
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise EngineError(f"the engine does not support max_window_layers = {short(first)}")
        return tuple(window if layer >= first else None for layer in range(layers))
    if kinds is None:  # gemma3 before it listed them
        every = how.full_every or weights.number("sliding_window_pattern", 6)
        return tuple(window if (layer + 1) % every else None for layer in range(layers))
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list) or len(kinds) != layers or not all(str(kind) in known for kind in kinds):
        raise EngineError(f"the engine does not support layer_types {short(kinds)} for {layers} blocks")
    return tuple(known[kind] for kind in kinds)


def taps(weights: Weights, how: Decoding, layers: int) -> tuple[int | None, ...]:
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
