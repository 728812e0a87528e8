"""Values that a stranger may put where another was, and what JSON, safetensors and YAML make of them."""

import json
import struct
from random import Random
from typing import Any

from bitwright.files.safetensors import DTYPE_BITS

# What keys and strings of a model's files may be: what one file says is often what another one misunderstands.
WORDS = (
    *("bert", "roberta", "distilbert", "mpnet", "albert", "deberta-v2", "modernbert", "llama", "mixtral", "gpt2", "t5"),
    *("BertModel", "BertForSequenceClassification", "LlamaForCausalLM", "ModernBertForTokenClassification", "Model"),
    *("gelu", "relu", "silu", "gelu_new", "quick_gelu", "linear", "tanh", "xielu", "float16", "bfloat16", "float64"),
    *("eager", "sdpa", "flash_attention_2", "paged|eager", "org/kernel:name", "linear", "dynamic", "yarn", "longrope"),
    *("llama3", "proportional", "int8", "compressed-tensors", "bitwright", "gptq", "awq", "fp8", "bitsandbytes"),
    *("int-quantized", "pack-quantized", "grid-quantized", "mixed-precision", "channel", "tensor", "group", "token"),
    *("Linear", "re:.*", "re:(a+)+b", "re:[", "re:", "nf4", "ternary", "uniform", "symmetric", "asymmetric", "static"),
    *("mean", "cls", "max", "lasttoken", "weightedmean", "single_label_classification", "regression", "absolute"),
    *("relative_key", "c2p", "p2c", "full_attention", "sliding_attention", "chunked_attention", "left", "right"),
    *("WordPiece", "BPE", "Unigram", "WordLevel", "Replace", "Prepend", "Sequence", "ByteFallback", "Metaspace"),
    *("BertTokenizerFast", "PreTrainedTokenizerFast", "T5Tokenizer", "LlamaTokenizer", "[CLS]", "[PAD]", "##a", "</s>"),
    *("sentence_transformers.models.Normalize", "sentence_transformers.models.Dense", "1_Pooling", "..", "/etc/passwd"),
    *("0_Transformer", "0_Transformer/..", "./.", ".hidden", "a//b"),
    *("model.safetensors", "config.json", "tokenizer.json", "w8a8", "w4a16", "gptq", "smoothquant", "auto", "16bit"),
    *("gptq_v2", "gemm", "auto_round:auto_gptq", "auto_round:auto_awq", "affine", "mxfp4", "NVFP4", "FP8", "e4m3"),
)
KEYS = (
    *("rope_scaling", "rope_parameters", "rope_theta", "quantization_config", "auto_map", "attn_implementation"),
    *("_attn_implementation", "experts_implementation", "hidden_act", "hidden_activation", "pruned_heads", "id2label"),
    *("label2id", "num_labels", "problem_type", "torch_dtype", "dtype", "tie_word_embeddings", "is_decoder"),
    *("add_cross_attention", "is_encoder_decoder", "chunk_size_feed_forward", "layer_types", "sliding_window"),
    *("text_config", "vision_config", "encoder", "decoder", "sub_configs", "architectures", "head_dim", "vocab_size"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "pad_token_id", "position_embedding_type", "layer_norm_eps"),
    *("output_hidden_states", "output_attentions", "return_dict", "use_cache", "torchscript", "transformers_weights"),
    *("attention_dropout", "classifier_dropout", "num_local_experts", "num_experts_per_tok", "embedding_size"),
    *("num_hidden_groups", "inner_group_num", "position_buckets", "relative_attention", "global_attn_every_n_layers"),
    *("local_attention", "attention_bias", "mlp_bias", "model_type", "generation_config", "name_or_path"),
    *(
        "tokenizer_class",
        "tokenizer_file",
        "vocab_file",
        "added_tokens_decoder",
        "extra_special_tokens",
        "do_lower_case",
    ),
    *("model_max_length", "truncation_side", "padding_side", "chat_template", "add_prefix_space", "strip_accents"),
    *("max_length", "stride", "model_input_names", "backend", "legacy", "split_special_tokens", "processor_class"),
    *("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding", "added_tokens", "merges"),
    *("ignore", "config_groups", "targets", "num_bits", "strategy", "group_size", "dynamic", "actorder", "grid"),
    *("input_transform", "embeddings", "format", "weights", "input_activations", "kv_cache_scheme", "__class__"),
    *("__init__", "from_pretrained", "self", "update", "to_dict", "max_seq_length", "pooling_mode", "weight_map"),
    *("bits", "sym", "desc_act", "checkpoint_format", "w_bit", "q_group_size", "version", "modules_to_not_convert"),
    *("packing_format", "data_type", "act_bits", "extra_config", "quantization", "mode", "fmt", "weight_block_size"),
    *("quant_algo", "kv_cache_quant_algo", "exclude_modules", "quant_method", "lm_head", "-:lm_head", "+:.*"),
)
_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 8, 64, 100, 1000, 30522, 65537, 1 << 24, 1 << 31, -(1 << 31), (1 << 31) - 1, 1 << 32),
    *((1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64, 1 << 200, 10**400, 0.0, -0.0, 0.5, -1.5, 1e-45, 1e-12, 1e6, 1e308),
    *(1e30, -1e308, float("nan"), float("inf"), float("-inf")),
)
_STRINGS = (
    *(
        "",
        " ",
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "a\rb",
        "\x00",
        "\x85\x9b2J",
        "\u202edetrever",
        "\ud800",
        "\n\n",
    ),
    *("💥" * 20, "../../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "http://localhost:1/x", "%s%n{0}{x}"),
    *("a" * 300, "a" * 100_000, "1", "true", "null", "NaN", "1e999", "-1", "0x10", "{}", "[]", "$(id)", "ſ", "İ"),
)


def odd(rng: Random) -> Any:
    """A value of any type, often one that nobody expects."""
    kind = rng.randrange(12)
    if kind < 3:
        return rng.choice(_NUMBERS)
    if kind < 5:
        return rng.choice(_STRINGS)
    if kind < 7:
        return rng.choice(WORDS)
    if kind == 7:
        return rng.choice((None, True, False))
    if kind == 8:
        return rng.choice(([], {}, [None], [[]], {"": {}}, [0] * 1000, ["a"] * 1000, list(range(300))))
    if kind == 9:
        return {rng.choice(KEYS): odd(rng) for _ in range(rng.randrange(1, 4))}
    if kind == 10:
        return [odd(rng) for _ in range(rng.randrange(1, 4))]
    return nested(rng.choice((3, 30, 400, 3000)), rng.choice(([], {})), rng)


def nested(depth: int, inner: Any, rng: Random) -> Any:
    """A list or an object in which there is one in which there is one …"""
    key = rng.choice(KEYS) if rng.random() < 0.5 else None
    for _ in range(depth):
        inner = [inner] if key is None else {key: inner}
    return inner


def near(value: Any, rng: Random) -> Any:
    """A value that is almost the given one."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None, 0, 1, "true"))
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, 2 * value, value // 2, 1000 * value, float(value), str(value)))
    if isinstance(value, float):
        return rng.choice((-value, 2 * value, 1e9 * value, 1 / value if value else 1.0, int(min(abs(value), 1e9))))
    if isinstance(value, str):
        cut = rng.randrange(len(value) + 1)
        return rng.choice(
            (value[:cut], value[cut:], value.upper(), value + "\x1b[2J", value * 2, value + "/..", [value])
        )
    if isinstance(value, list):
        some = value[: rng.randrange(len(value) + 1)]
        return rng.choice((some, value + some, value[::-1], [value], value * 3, dict(enumerate(map(str, some)))))
    return rng.choice(([value], list(value), dict(list(value.items())[: rng.randrange(len(value) + 1)])))


def places(value: Any, depth: int = 0) -> list[tuple[Any, Any, int]]:
    """(container, key or index, depth) of every value inside a list or an object; of long lists some."""
    found: list[tuple[Any, Any, int]] = []
    if depth < 12 and isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys if len(keys) <= 400 else [*keys[:8], *keys[-8:]]:
            found.append((value, key, depth))
            found += places(value[key], depth + 1)
    return found


def dumped(value: Any, rng: Random, twice: bool) -> bytes:
    """JSON, now and then with a key that occurs twice."""
    try:
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    except RecursionError:
        text = json.dumps(None)
    if twice and '{"' in text:
        places_ = [at for at in range(len(text)) if text.startswith('{"', at)]
        at = rng.choice(places_[:200]) + 1
        text = f"{text[:at]}{json.dumps(rng.choice(KEYS))}: {json.dumps(odd_leaf(rng))}, {text[at:]}"
    return text.encode("utf-8", "surrogatepass")


def odd_leaf(rng: Random) -> Any:
    """A number or a short string."""
    return rng.choice((*_NUMBERS, *_STRINGS[:6], None, True))


def split_safetensors(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(header without offsets, bytes by name) of a good file."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    held = {name: body[slice(*entry.pop("data_offsets"))] for name, entry in header.items()}
    return header, held


def join_safetensors(header: dict[str, Any], held: dict[str, bytes]) -> bytes:
    """A file whose offsets are those of the bytes."""
    begin, full = 0, {}
    for name, entry in header.items():
        full[name] = {**entry, "data_offsets": [begin, begin + len(held[name])]}
        begin += len(held[name])
    text = json.dumps(full).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(held[name] for name in header)


def other_values(dtype: str, n_bytes: int, rng: Random) -> bytes:
    """So many bytes of a dtype that no honest tensor has."""
    width = max(DTYPE_BITS.get(dtype, 8) // 8, 1)
    patterns = {
        "F32": (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0, 0x80000000, 1, 0xBF800000, 0x60000000, 0x49742400),
        "BF16": (0x7FC0, 0x7F80, 0x7F7F, 0, 0xBF80, 0x6000),
        "F16": (0x7E00, 0x7C00, 0x7BFF, 0, 0xBC00),
    }
    value = rng.choice(patterns.get(dtype, (0, 1, (1 << 8 * width) - 1, 1 << (8 * width - 1), 0x7F)))
    return (value.to_bytes(width, "little") * (n_bytes // width + 1))[:n_bytes]
