"""config.json as the metadata of a GGUF file, and the bytes of a header: the inverse of `config.py` and `header.py`."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bitwright.errors import ModelError, brief
from bitwright.files.gguf.config import GEMMA3_27B, GEMMA3_PATTERN, THETA
from bitwright.files.gguf.header import ALIGNMENT, MAGIC
from bitwright.numerics.ggml import BlockType

# model_type of config.json -> general.architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
# Keys of config.json that change the computation, and that llama.cpp has no words for; with what changes nothing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu"), "hidden_activation": (None, "gelu_pytorch_tanh"), "use_sliding_window": (None, False),
    "attn_logit_softcapping": (None,), "partial_rotary_factor": (None, 1, 1.0), "attention_multiplier": (None,),
    "residual_multiplier": (None,), "logits_scaling": (None,), "use_bidirectional_attention": (None, False),
}  # fmt: skip


def metadata_of(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The entries that a model's config.json becomes.

    where: for messages.

    Raises:
        ModelError: a family that llama.cpp does not run so, or a setting that a GGUF file has no words for.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"{where}: model_type is {brief(kind)}; Bitwright writes GGUF files of {', '.join(ARCHITECTURES)}"
        )
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise ModelError(f"{where}: {key} is {brief(config[key])}, which a GGUF file has no words for")
    arch, heads = ARCHITECTURES[kind], config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    if arch == "qwen2" and size * heads != config["hidden_size"]:
        raise ModelError(f"{where}: head_dim is {size}, but llama.cpp computes with {config['hidden_size'] // heads}")
    entries = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": size,
        "vocab_size": config["vocab_size"],
    }
    if arch == "gemma3":
        entries |= _gemma3(config, size, where)
    else:
        entries |= _rope(rope_of(config), where)
    window = config.get("sliding_window") if kind == "mistral" else None
    if window is not None and window < config["max_position_embeddings"]:
        raise ModelError(f"{where}: sliding_window is {window}, but llama.cpp lets a token see all before it")
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in entries.items()}}


def rope_of(config: Mapping[str, Any], kind: str = "full_attention") -> dict[str, Any]:
    """What config.json says of the rotary positions, in the words of transformers 5."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(given.get(kind, given))
    rope.setdefault("rope_theta", config.get("rope_theta") or THETA)
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return rope


def _rope(rope: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Llama 3's rope is a tensor, `rope_freqs.weight`."""
    entries: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    match rope["rope_type"]:
        case "default" | "llama3":
            pass
        case "linear":
            entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
        case "yarn" if rope.get("original_max_position_embeddings") and rope.get("attention_factor") is None:
            entries |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(rope["factor"])}
            entries["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
            for key in ("beta_fast", "beta_slow"):
                if rope.get(key) is not None:
                    entries[f"rope.scaling.yarn_{key}"] = float(rope[key])
        case other:
            raise ModelError(f"{where}: the rope {brief(other)} is one that a GGUF file has no words for")
    return entries


def _gemma3(config: Mapping[str, Any], size: int, where: object) -> dict[str, Any]:
    """llama.cpp knows by itself which blocks see everything, and how queries are scaled."""
    layers, local = config["num_hidden_layers"], rope_of(config, "sliding_attention")
    base = config.get("rope_local_base_freq") or local["rope_theta"]
    pattern = ["sliding_attention" if (i + 1) % GEMMA3_PATTERN else "full_attention" for i in range(layers)]
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == GEMMA3_27B else size
    known = {
        "layer_types": (pattern, config.get("layer_types") or pattern),
        "query_pre_attn_scalar": (scalar, config["query_pre_attn_scalar"]),
        "the rope of sliding_attention": ((THETA, "default"), (base, local["rope_type"])),
    }
    for key, (theirs, ours) in known.items():
        if theirs != ours:
            raise ModelError(f"{where}: {key} is {brief(ours)}, but llama.cpp computes with {brief(theirs)}")
    if config.get("final_logit_softcapping"):
        raise ModelError(f"{where}: final_logit_softcapping, which llama.cpp does not follow in this architecture")
    return {"attention.sliding_window": config["sliding_window"]} | _rope(rope_of(config), where)


def header_bytes(entries: Mapping[str, Any], tensors: Iterable[tuple[str, BlockType, Sequence[int], int]]) -> bytes:
    """The header of a file, up to where the tensors begin.

    Args:
        entries: values of Python, lists of texts, and arrays of float32 or int32. tensors: name, type, shape as numpy
            has it, and offset of each.
    """
    tensors = list(tensors)
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(entries))]
    for key, value in entries.items():
        parts += [_text(key), _value(value)]
    for name, kind, shape, offset in tensors:
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_text(name), sizes, struct.pack("<IQ", kind.number, offset)]
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Any) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, np.ndarray):
        number, dtype = (6, "<f4") if value.dtype.kind == "f" else (5, "<i4")
        return struct.pack("<IIQ", 9, number, len(value)) + value.astype(dtype).tobytes()
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
