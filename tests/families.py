"""One small config per model family, and the random models and tokenizers that the tests make of them.

A new family gets one row here. Sizes that differ within a family (ELECTRA's and ALBERT's narrow embeddings, DeBERTa's
shared relative projections) are set as in the models that people use. What a package of tests needs otherwise (another
width, more blocks) it passes along.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
TOKENS = {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}

# Family -> what its small config has beyond SIZE.
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "hidden_act": "gelu_new"},
    "bert": {},
    "camembert": {"pad_token_id": 1, "type_vocab_size": 1},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": {},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
}

# Heads times their size is not the hidden size, as in Qwen3 and Gemma; two heads share keys and values.
DECODER_SIZE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 48}
_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_FIRST_DENSE = {"first_k_dense_replace": 1, "n_shared_experts": 2, "n_group": 2, "topk_group": 1}
_LATENT = {"q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 12}

# Family -> what its small config has beyond SIZE and DECODER_SIZE.
DECODERS: dict[str, dict[str, Any]] = {
    "arcee": {},
    "bitnet": {"head_dim": 8},
    "cohere": {},
    "cohere2": {"head_dim": 8},
    "cwm": {},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8} | _MOE | _FIRST_DENSE | _LATENT,
    "ernie4_5": {},
    "exaone4": {},
    "gemma": {},
    "gemma2": {},
    "gemma3": {
        "mm_tokens_per_image": 4,
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
    },
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": _MOE | _FIRST_DENSE,
    "gpt2": {},
    "granite": {"attention_multiplier": 0.2, "residual_multiplier": 0.4, "embedding_multiplier": 3.0},
    "helium": {"head_dim": 8},
    "hyperclovax": {"residual_multiplier": 0.4, "embedding_multiplier": 3.0},
    "jais2": {},
    "lfm2": {"full_attn_idxs": [1, 3], "block_multiple_of": 16},
    "llama": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": _MOE,
    "nemotron": {},
    "olmo2": {},
    "olmo3": {},
    "opt": {},
    "phi": {"head_dim": 8},
    "phi3": {"head_dim": 8},
    "qwen2": {"head_dim": 8},
    "qwen3": {},
    "qwen3_moe": _MOE | {"mlp_only_layers": [0]},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {"head_dim": 8},
    "starcoder2": {},
    "vaultgemma": {},
}

# Sizes that a family spells in its own way, or twice, and transformers does not translate.
_SPELLED = {
    "distilbert": {"hidden_dim": "intermediate_size"},
    "gpt2": {"n_inner": "intermediate_size"},
    "opt": {"ffn_dim": "intermediate_size", "word_embed_proj_dim": "hidden_size"},
}

_CLASSES = {
    "embedding": "AutoModel",
    "text-generation": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}


def small_config(family: str, **config: Any) -> Any:
    """The family's transformers config, small; what `config` says comes first."""
    import transformers

    own = DECODER_SIZE | DECODERS[family] if family in DECODERS else ENCODERS[family]
    settings = SIZE | TOKENS | own | config
    settings = {name: settings[size] for name, size in _SPELLED.get(family, {}).items()} | settings
    if family == "gemma3":  # the language model's sizes stand in a config of their own
        text = {name: settings.pop(name) for name in (SIZE | TOKENS | DECODER_SIZE)}
        settings = {"text_config": text, "pad_token_id": text["pad_token_id"]} | settings
    translate = transformers.AutoConfig.for_model(family).attribute_map
    return transformers.AutoConfig.for_model(family, **{translate.get(name, name): v for name, v in settings.items()})


def small_model(family: str, task: str, *, noise: float = 0.05, dtype: Any = None, **config: Any) -> Any:
    """A random model, the same for the same arguments, as transformers builds it (fused experts, Conv1D).

    noise: standard deviation of what is added to each weight, so that no weight or bias keeps a value of 0 or 1.
    """
    import torch
    import transformers

    labels = {} if task in ("embedding", "text-generation") else {"num_labels": 2 if "question" in task else 3}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = getattr(transformers, _CLASSES[task])
        model = made.from_config(small_config(family, **labels | config), experts_implementation="eager")
        for tensor in {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values():  # ties once
            if tensor.is_floating_point():
                tensor += noise * torch.randn_like(tensor)
    return model.to(dtype).eval()


def write_model(path: Path, family: str, task: str, texts: list[str], **how: Any) -> None:
    """`small_model(...)` as a directory, with a tokenizer of the texts' words."""
    model = small_model(family, task, **how)
    model.save_pretrained(path)
    config = model.config.get_text_config()
    tokenizer = small_tokenizer(config.pad_token_id, texts, types=getattr(config, "type_vocab_size", 1) > 1)
    tokenizer.save_pretrained(path)


def small_tokenizer(pad_id: int, texts: list[str], *, types: bool = False) -> Any:
    """WordPiece over 200 entries: special tokens, characters, and the commonest words of the texts.

    types: whether it hands out token types.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if pad_id == 1:
        special[0], special[1] = special[1], special[0]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,'()-_"
    entries = [*special, *letters, *(f"##{letter}" for letter in letters)]
    words = Counter(word for text in texts for word in re.findall(r"[a-z]{2,}", text.lower()))
    entries += sorted(words, key=lambda word: (-words[word], word))[: 200 - len(entries)]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", *["token_type_ids"] * types, "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
