"""What a GGUF file's metadata says of a model, as transformers' config.json and generation_config.json say it.

Where llama.cpp's files say nothing and its code decides (Gemma's pattern of windows), that is followed.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bitwright.files.gguf.header import GgufEntry, Metadata

THETA = 10_000.0  # llama.cpp's, where a file has none
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
GEMMA3_PATTERN = 6  # of so many blocks one sees everything
GEMMA3_27B = 62  # blocks; its queries are scaled otherwise
# Tokens that end an answer by their text, beside those that metadata names, as in llama.cpp.
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>")
_END_KEYS = ("eos", "eot", "eom")

Shapes = Mapping[str, GgufEntry]


def config_of(metadata: Metadata, shapes: Shapes, factors: np.ndarray | None) -> dict[str, Any]:
    """config.json of the model.

    Args:
        shapes: the tensors, by the names of the file. factors: rope_freqs.weight, if there is one.

    Raises:
        CheckpointError: an architecture that Bitwright does not read, or an entry that is missing or cannot be.
    """
    arch = metadata.text("general.architecture")
    if arch not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise metadata.refuse("general.architecture", f"Bitwright does not read {arch!r:.80}; it reads {known}")
    if metadata.number("split.count", 0) > 1:
        raise metadata.refuse("split.count", "the model is split into files; join them with `llama-gguf-split --merge`")
    if metadata.number(f"{arch}.expert_count", 0):
        raise metadata.refuse(f"{arch}.expert_count", "Bitwright reads no mixtures of experts from GGUF files")
    hidden, heads = metadata.number(f"{arch}.embedding_length"), metadata.number(f"{arch}.attention.head_count")
    if not heads or hidden < heads:
        raise metadata.refuse(f"{arch}.attention.head_count", f"{heads} heads share {hidden} values")
    size = metadata.number(f"{arch}.attention.key_length", hidden // heads)
    if metadata.number(f"{arch}.attention.value_length", size) != size:
        raise metadata.refuse(
            f"{arch}.attention.value_length", f"keys have {size} values, and values must have as many"
        )
    if metadata.number(f"{arch}.rope.dimension_count", size) != size:
        raise metadata.refuse(f"{arch}.rope.dimension_count", f"not all {size} values of a head rotate")
    if "token_embd.weight" not in shapes:
        raise metadata.refuse("token_embd.weight", "the file has no such tensor")
    config: dict[str, Any] = {
        "vocab_size": shapes["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": metadata.number(f"{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.number(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.number(f"{arch}.attention.head_count_kv", heads),
        "head_dim": size,
        "max_position_embeddings": metadata.number(f"{arch}.context_length"),
        "rms_norm_eps": metadata.real(f"{arch}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in shapes,
        "dtype": "bfloat16",
    }
    for key in ("bos", "eos"):
        if f"tokenizer.ggml.{key}_token_id" in metadata:
            config[f"{key}_token_id"] = metadata.number(f"tokenizer.ggml.{key}_token_id")
    family = _FAMILIES[arch](metadata, config, shapes)
    if "rope_parameters" not in family:
        family["rope_parameters"] = _rope(metadata, arch, factors, size)
    return config | family | {"quantization_config": {"quant_method": "gguf"}}


def generation_config_of(metadata: Metadata) -> dict[str, Any]:
    """generation_config.json: the tokens that end an answer."""
    ends = [metadata.number(f"tokenizer.ggml.{key}_token_id") for key in _END_KEYS
            if f"tokenizer.ggml.{key}_token_id" in metadata]  # fmt: skip
    if "tokenizer.ggml.tokens" in metadata:
        tokens = metadata.texts("tokenizer.ggml.tokens")
        ends += [tokens.index(text) for text in _ENDS if text in tokens]
    return {"eos_token_id": list(dict.fromkeys(ends))} if ends else {}


def _llama(metadata: Metadata, config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Llama, or Mistral where the file has a window, which that architecture alone has."""
    if window := metadata.number("llama.attention.sliding_window", 0):
        return _of_class("MistralForCausalLM", "mistral") | {"hidden_act": "silu", "sliding_window": window}
    biases = {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes}
    return _of_class("LlamaForCausalLM", "llama") | {"hidden_act": "silu"} | biases


def _qwen2(metadata: Metadata, config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    return _of_class("Qwen2ForCausalLM", "qwen2") | _NO_WINDOW


def _qwen3(metadata: Metadata, config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    return _of_class("Qwen3ForCausalLM", "qwen3") | _NO_WINDOW | {"attention_bias": "blk.0.attn_q.bias" in shapes}


def _gemma3(metadata: Metadata, config: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    layers, size = config["num_hidden_layers"], config["head_dim"]
    every = metadata.number("gemma3.attention.sliding_window_pattern", GEMMA3_PATTERN)
    if not every or layers > 1000:
        raise metadata.refuse("gemma3.block_count", f"{layers} blocks, of which one in {every} sees everything")
    local = metadata.real("gemma3.rope.freq_base_swa", THETA)
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == GEMMA3_27B else size
    found = _of_class("Gemma3ForCausalLM", "gemma3_text") | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": metadata.number("gemma3.attention.sliding_window"),
        "layer_types": ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
            "full_attention": _rope(metadata, "gemma3", None, size),
        },
    }
    if cap := metadata.real("gemma3.final_logit_softcapping", 0.0):
        found["final_logit_softcapping"] = cap
    return found


_NO_WINDOW = {"hidden_act": "silu", "use_sliding_window": False, "sliding_window": None}


def _of_class(name: str, model_type: str) -> dict[str, Any]:
    return {"architectures": [name], "model_type": model_type}


_FAMILIES: dict[str, Callable[[Metadata, Mapping[str, Any], Shapes], dict[str, Any]]] = {
    "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "gemma3": _gemma3,
}  # fmt: skip


def _rope(metadata: Metadata, arch: str, factors: np.ndarray | None, size: int) -> dict[str, Any]:
    """The rotary positions, in the words of transformers 5."""
    theta = metadata.real(f"{arch}.rope.freq_base", THETA)
    kind = metadata.text(f"{arch}.rope.scaling.type", "none")
    if factors is not None:
        return _llama3(metadata, factors, theta, size)
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if kind not in ("linear", "yarn"):
        raise metadata.refuse(f"{arch}.rope.scaling.type", f"{kind!r:.80} is unknown; known are none, linear and yarn")
    rope["factor"] = metadata.real(f"{arch}.rope.scaling.factor")
    if kind == "yarn":
        rope["original_max_position_embeddings"] = metadata.number(f"{arch}.rope.scaling.original_context_length")
        for key in ("beta_fast", "beta_slow", "attention_factor"):
            for spelled in (f"yarn_{key}", key.replace("attention", "attn")):
                if f"{arch}.rope.scaling.{spelled}" in metadata:
                    rope[key] = metadata.real(f"{arch}.rope.scaling.{spelled}")
    return rope


def _llama3(metadata: Metadata, factors: np.ndarray, theta: float, size: int) -> dict[str, Any]:
    """The settings of Llama 3.1 and later from what they make: the files hold only by what each angle is divided.

    Settings that differ by one factor for both ends and the length make the same, so one end is fixed.
    """
    rope: dict[str, Any] = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **_LLAMA3}
    if factors.shape == (size // 2,) and np.isfinite(factors).all() and (factors >= 1).all():
        mixed = (factors > 1.001) & (factors < 0.999 * rope["factor"])
        for settings in (_LLAMA3, *([_fitted(factors[mixed], mixed, rope)] if mixed.sum() > 1 else [])):
            if np.allclose(factors, llama3_factors(rope | settings, size), rtol=1e-3):
                return rope | settings
    raise metadata.refuse("rope_freqs.weight", "these factors of the angles are not those of Llama 3")


def _fitted(factors: np.ndarray, mixed: np.ndarray, rope: Mapping[str, Any]) -> dict[str, float]:
    """The settings by which angles are mixed: their share of the plain ones is a line over their frequency."""
    plain = (rope["rope_theta"] ** (-np.arange(len(mixed)) / len(mixed)))[mixed] / (2 * np.pi)
    share = (1 / factors.astype(np.float64) - 1 / rope["factor"]) / (1 - 1 / rope["factor"])
    slope, begin = map(float, np.polynomial.polynomial.polyfit(plain, share, 1)[::-1])
    low = _LLAMA3["low_freq_factor"]
    high = low - low / begin if begin else low + 1
    return {"low_freq_factor": low, "high_freq_factor": float(high),
            "original_max_position_embeddings": round(slope * (high - low))}  # fmt: skip


def llama3_factors(rope: Mapping[str, Any], size: int) -> np.ndarray:
    """By what Llama 3 divides each angle of a head of this size: float32 (size / 2,)."""
    plain = rope["rope_theta"] ** (-np.arange(0, size, 2) / size)
    waves, low, high = 2 * np.pi / plain, rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((rope["original_max_position_embeddings"] / waves - low) / (high - low), 0, 1)
    divided: np.ndarray = 1 / ((1 - share) / rope["factor"] + share)
    return divided.astype(np.float32)
