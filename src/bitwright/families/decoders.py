"""The rows of the decoders, dense and mixtures of experts. All but OLMo 2 and 3, EXAONE 4 and one size of OPT normalize
before each linear.

One file although long: one table, whose rows say what is different from the one before.
"""

from bitwright.families.row import (
    Architecture,
    ConfigKeys,
    Convolution,
    Decoding,
    Embeddings,
    FileNames,
    Head,
    Input,
    Positions,
    Role,
    Setting,
)

# Defaults differ from family to family, and every published config.json has these keys.
_KEYS = ConfigKeys(
    positions=Setting("max_position_embeddings"), activation=Setting("hidden_act"), eps=Setting("rms_norm_eps")
)
_EMBEDDINGS = Embeddings("embed_tokens")
_HEAD = Head(
    {
        "text-generation": "lm_head",
        "sequence-classification": "score",
        "token-classification": "score",
        "question-answering": "qa_outputs",
    }
)

_ATTENTION: dict[str, Role] = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "attention_output",
}
_ATTENTION_INPUTS = (
    Input(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    Input(("self_attn.o_proj",), "self_attn.v_proj", "value"),
)
_FFN: dict[str, Role] = {"mlp.gate_proj": "ffn", "mlp.up_proj": "ffn", "mlp.down_proj": "ffn"}
_DOWN = Input(("mlp.down_proj",), "mlp.up_proj", "up")

_LLAMA = Architecture(
    blocks="layers",
    roles=_ATTENTION | _FFN,
    inputs=(*_ATTENTION_INPUTS, Input(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"), _DOWN),
    activations={"mlp.gate_proj": "mlp.act_fn"},
    keys=_KEYS,
    embeddings=_EMBEDDINGS,
    head=_HEAD,
    decoding=Decoding(),
)
_MISTRAL = _LLAMA._replace(decoding=Decoding(windows="all", needs=("sliding_window",)))
_MINISTRAL = _LLAMA._replace(decoding=Decoding(windows="listed", needs=("sliding_window", "layer_types")))
_MINISTRAL3 = _LLAMA._replace(
    decoding=Decoding(windows="all", scales_queries=True, needs=("head_dim", "rope_parameters or rope_scaling"))
)
_SMOLLM3 = _LLAMA._replace(
    decoding=Decoding(
        windows="listed",
        skips="listed",
        needs=("layer_types", "no_rope_layers or no_rope_layer_interval", "rope_parameters or rope_theta"),
    )
)
# Biases of attention are q's, k's and v's, or also o's.
_SEED_OSS = _LLAMA._replace(decoding=Decoding(needs=("head_dim", "num_key_value_heads")))
_CWM = _LLAMA._replace(
    decoding=Decoding(
        windows="listed",
        needs=("sliding_window", "layer_types", "head_dim", "num_key_value_heads", "rope_parameters or rope_theta"),
    )
)
# Neighbours rotate together.
_HELIUM = _LLAMA._replace(
    decoding=Decoding(interleaved=True, needs=("head_dim", "num_key_value_heads", "rope_parameters or rope_theta"))
)
_GRANITE = _LLAMA._replace(decoding=Decoding(multiplied=True, needs=("attention_multiplier",)))
# Norms after attention and FFN as well.
_HYPERCLOVAX = _LLAMA._replace(
    decoding=Decoding(
        attention_norm="post_norm1",
        ffn_norm="post_norm2",
        multiplied=True,
        logits="logits_scaling",
        needs=("attention_multiplier",),
    )
)
_QWEN_NEEDS = ("use_sliding_window", "sliding_window")
_QWEN2 = _LLAMA._replace(decoding=Decoding(windows="listed", needs=_QWEN_NEEDS))
_HEAD_NORMS = Decoding("self_attn.q_norm", "self_attn.k_norm", windows="listed", needs=(*_QWEN_NEEDS, "head_dim"))
_QWEN3 = _LLAMA._replace(decoding=_HEAD_NORMS)

# No gate in the FFN.
_UNGATED: dict[str, Role] = {"mlp.up_proj": "ffn", "mlp.down_proj": "ffn"}
_UNGATED_INPUTS = (
    Input(("mlp.up_proj",), "post_attention_layernorm"),
    Input(("mlp.down_proj",), "mlp.up_proj", "relu"),
)
_ARCEE = _LLAMA._replace(
    roles=_ATTENTION | _UNGATED,
    inputs=(*_ATTENTION_INPUTS, *_UNGATED_INPUTS),
    activations={"mlp.up_proj": "mlp.act_fn"},
    decoding=Decoding(gated=False),
)
# Layer norms: of the weight plus 1, as it is, or in blocks with a gate.
_NEMOTRON = _ARCEE._replace(
    inputs=tuple(each._replace(made_by="norm_plus_1") if each.made_by == "norm" else each for each in _ARCEE.inputs),
    keys=_KEYS._replace(eps=Setting("norm_eps")),
    decoding=Decoding(centred=True, plus_one=True, gated=False, share=0.5),
)
_JAIS2 = _ARCEE._replace(
    keys=_KEYS._replace(eps=Setting("layer_norm_eps")), decoding=Decoding(centred=True, gated=False)
)
_STABLELM = _LLAMA._replace(
    keys=_KEYS._replace(eps=Setting("layer_norm_eps")),
    decoding=Decoding(centred=True, share=0.25, needs=("num_key_value_heads",)),
)
_STARCODER2 = _LLAMA._replace(
    roles={**_ATTENTION, "mlp.c_fc": "ffn", "mlp.c_proj": "ffn"},
    inputs=(
        *_ATTENTION_INPUTS,
        Input(("mlp.c_fc",), "post_attention_layernorm"),
        Input(("mlp.c_proj",), "mlp.c_fc", "relu"),
    ),
    activations={"mlp.c_fc": "mlp.act"},
    keys=_KEYS._replace(eps=Setting("norm_epsilon")),
    decoding=Decoding(centred=True, gated=False, windows="all", needs=("num_key_value_heads",)),
)

# One norm before attention and the FFN, side by side.
_COHERE = _LLAMA._replace(
    inputs=(
        Input(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
            "input_layernorm",
        ),
        _ATTENTION_INPUTS[1],
        _DOWN,
    ),
    keys=_KEYS._replace(eps=Setting("layer_norm_eps")),
    decoding=Decoding(
        centred=True, interleaved=True, logits="logit_scale", needs=("logit_scale", "rope_parameters or rope_theta")
    ),
)
_COHERE2 = _COHERE._replace(
    decoding=Decoding(
        centred=True,
        interleaved=True,
        logits="logit_scale",
        windows="listed",
        skips="full",
        needs=("logit_scale", "sliding_window", "layer_types or sliding_window_pattern"),
    )
)
_PHI = Architecture(
    blocks="layers",
    roles={
        "self_attn.q_proj": "qkv",
        "self_attn.k_proj": "qkv",
        "self_attn.v_proj": "qkv",
        "self_attn.dense": "attention_output",
        "mlp.fc1": "ffn",
        "mlp.fc2": "ffn",
    },
    inputs=(
        Input(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"), "input_layernorm"),
        Input(("self_attn.dense",), "self_attn.v_proj", "value"),
        Input(("mlp.fc2",), "mlp.fc1", "relu"),
    ),
    activations={"mlp.fc1": "mlp.activation_fn"},
    keys=_KEYS._replace(eps=Setting("layer_norm_eps")),
    embeddings=_EMBEDDINGS,
    head=_HEAD,
    decoding=Decoding(final_norm="final_layernorm", centred=True, gated=False, share=0.5),
)

# Norms after attention and FFN alone, before the residual: linears read the residual itself.
_POST_NORM = _LLAMA._replace(
    inputs=(
        Input(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        _ATTENTION_INPUTS[1],
        Input(("mlp.gate_proj", "mlp.up_proj")),
        _DOWN,
    )
)
_AFTER = Decoding(
    "self_attn.q_norm",
    "self_attn.k_norm",
    attention_norm="post_attention_layernorm",
    ffn_norm="post_feedforward_layernorm",
)
_OLMO2 = _POST_NORM._replace(decoding=_AFTER._replace(whole_norms=True))
_OLMO3 = _POST_NORM._replace(
    decoding=_AFTER._replace(
        whole_norms=True,
        windows="listed",
        full_every=4,
        window_theta=500_000.0,
        needs=("sliding_window", "rope_parameters or rope_theta"),
    )
)
_EXAONE4 = _POST_NORM._replace(
    decoding=_AFTER._replace(
        windows="listed", skips="full_beside", needs=("sliding_window", "layer_types", "num_key_value_heads")
    )
)

# Norms before the last linears of attention and FFN as well.
_BITNET = _LLAMA._replace(
    inputs=(
        _ATTENTION_INPUTS[0],
        Input(("self_attn.o_proj",), "self_attn.attn_sub_norm"),
        Input(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
        Input(("mlp.down_proj",), "mlp.ffn_sub_norm"),
    ),
    head=Head({"text-generation": "lm_head"}),
    decoding=Decoding(
        attention_sub_norm="self_attn.attn_sub_norm",
        ffn_sub_norm="mlp.ffn_sub_norm",
        needs=("num_key_value_heads", "rope_parameters or rope_theta"),
    ),
)

_GEMMA = _LLAMA._replace(
    inputs=(
        _ATTENTION_INPUTS[0]._replace(made_by="norm_plus_1"),
        _ATTENTION_INPUTS[1],
        Input(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm", "norm_plus_1"),
        _DOWN,
    ),
    decoding=Decoding(
        plus_one=True,
        scaled=True,
        names={"gelu": "gelu_pytorch_tanh"},  # which older files mean
        needs=("head_dim", "num_key_value_heads"),
    ),
)

# Norms after attention and FFN as well, before the residual: they make no linear's input.
_GEMMA3 = _LLAMA._replace(
    inputs=(
        _ATTENTION_INPUTS[0]._replace(made_by="norm_plus_1"),
        _ATTENTION_INPUTS[1],
        Input(("mlp.gate_proj", "mlp.up_proj"), "pre_feedforward_layernorm", "norm_plus_1"),
        _DOWN,
    ),
    keys=_KEYS._replace(activation=Setting("hidden_activation")),
    decoding=_HEAD_NORMS._replace(
        attention_norm="post_attention_layernorm",
        ffn_norm="post_feedforward_layernorm",
        plus_one=True,
        scaled=True,
        both_ways=True,
        needs=("sliding_window", "head_dim", "query_pre_attn_scalar", "rope_parameters or rope_theta"),
    ),
)

_CAPPED = Decoding(
    plus_one=True,
    scaled=True,
    windows="listed",
    full_every=2,
    needs=("sliding_window", "head_dim", "num_key_value_heads", "query_pre_attn_scalar", "attn_logit_softcapping",
           "final_logit_softcapping"),
)  # fmt: skip
_GEMMA2 = _GEMMA3._replace(
    decoding=_CAPPED._replace(attention_norm="post_attention_layernorm", ffn_norm="post_feedforward_layernorm")
)
_VAULTGEMMA = _GEMMA3._replace(decoding=_CAPPED)

# The language tower of the model that also reads images.
_GEMMA3_WITH_IMAGES = _GEMMA3._replace(
    blocks="language_model.layers",
    embeddings=Embeddings("language_model.embed_tokens"),
    files=FileNames(
        renames=(
            (r"^model\.language_model\.", "language_model.model."),
            (r"^lm_head\.", "language_model.lm_head."),
            (r"^model\.vision_tower\.", "vision_tower.vision_model."),
            (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
        )
    ),
    # Calibration on texts never runs it.
    left_out=("vision_tower.*",),
    decoding=None,
)

_FUSED_FFN: dict[str, Role] = {"mlp.gate_up_proj": "ffn", "mlp.down_proj": "ffn"}
_FUSED_FFN_INPUTS = (
    Input(("mlp.gate_up_proj",), "post_attention_layernorm"),
    Input(("mlp.down_proj",), "mlp.gate_up_proj", "up"),
)

_PHI3 = Architecture(
    blocks="layers",
    roles={"self_attn.qkv_proj": "qkv", "self_attn.o_proj": "attention_output", **_FUSED_FFN},
    inputs=(
        Input(("self_attn.qkv_proj",), "input_layernorm"),
        Input(("self_attn.o_proj",), "self_attn.qkv_proj", "value"),
        *_FUSED_FFN_INPUTS,
    ),
    keys=_KEYS,
    embeddings=_EMBEDDINGS,
    head=_HEAD,
    decoding=Decoding(windows="all"),
)

# Most blocks have a gated short convolution in place of attention. It scales as its kernel does, whose bias is inside
# the gate, so that it takes no shift.
_LFM2_ATTENTION: dict[str, Role] = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.out_proj": "attention_output",
}
_LFM2_CONVOLUTION: dict[str, Role] = {"conv.in_proj": "qkv", "conv.out_proj": "attention_output"}
_LFM2 = Architecture(
    blocks="layers",
    roles={
        **_LFM2_ATTENTION,
        **_LFM2_CONVOLUTION,
        "feed_forward.w1": "ffn",
        "feed_forward.w3": "ffn",
        "feed_forward.w2": "ffn",
    },
    inputs=(
        Input(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "operator_norm"),
        Input(("self_attn.out_proj",), "self_attn.v_proj", "value"),
        Input(("conv.in_proj",), "operator_norm"),
        Input(("conv.out_proj",), "conv.conv", "convolved"),
        Input(("feed_forward.w1", "feed_forward.w3"), "ffn_norm"),
        Input(("feed_forward.w2",), "feed_forward.w3", "up"),
    ),
    either=((tuple(_LFM2_ATTENTION), tuple(_LFM2_CONVOLUTION)),),
    keys=_KEYS._replace(activation="silu", eps=Setting("norm_eps")),
    embeddings=_EMBEDDINGS,
    head=_HEAD,
    decoding=Decoding(
        "self_attn.q_layernorm",
        "self_attn.k_layernorm",
        final_norm="embedding_norm",
        convolution=Convolution("conv.in_proj", "conv.conv", "conv.out_proj", "conv_L_cache", "full_attn_idxs"),
        needs=("conv_L_cache", "layer_types or full_attn_idxs", "rope_parameters or rope_theta"),
    ),
    # The kernels: a few weights of each feature.
    left_out=("layers.*.conv.conv",),
)

_GLM = Architecture(
    blocks="layers",
    roles=_ATTENTION | _FUSED_FFN,
    inputs=(*_ATTENTION_INPUTS, *_FUSED_FFN_INPUTS),
    keys=_KEYS,
    embeddings=_EMBEDDINGS,
    head=_HEAD,
    decoding=Decoding(interleaved=True, share=0.5, needs=("head_dim", "num_key_value_heads")),
)
# Norms after attention and FFN as in Gemma; the one before the FFN is called as in Llama.
_GLM4 = _GLM._replace(
    decoding=Decoding(
        attention_norm="post_self_attn_layernorm",
        ffn_norm="post_mlp_layernorm",
        interleaved=True,
        share=0.5,
        needs=("head_dim", "num_key_value_heads"),
    )
)

_GPT2 = Architecture(
    blocks="h",
    roles={"attn.c_attn": "qkv", "attn.c_proj": "attention_output", "mlp.c_fc": "ffn", "mlp.c_proj": "ffn"},
    inputs=(
        Input(("attn.c_attn",), "ln_1"),
        Input(("attn.c_proj",), "attn.c_attn", "value"),
        Input(("mlp.c_fc",), "ln_2"),
        Input(("mlp.c_proj",), "mlp.c_fc", "relu"),
    ),
    activations={"mlp.c_fc": "mlp.act"},
    prefix="transformer",
    keys=ConfigKeys(
        heads="n_head",
        layers="n_layer",
        hidden_size="n_embd",
        positions=Setting("n_positions", 1024),
        activation=Setting("activation_function", "gelu_new"),
        eps=Setting("layer_norm_epsilon", 1e-5),
    ),
    embeddings=Embeddings("wte"),
    positions=Positions("wpe"),
    head=Head(_HEAD.outputs | {"token-classification": "classifier"}),
    files=FileNames(
        transposed=(
            "attn.c_attn",
            "attn.c_proj",
            "mlp.c_fc",
            "mlp.c_proj",
            "crossattention.q_attn",
            "crossattention.c_attn",
            "crossattention.c_proj",
        )
    ),
    # Runs only beside an encoder, whose states calibration on texts does not have.
    left_out=("h.*.crossattention.*",),
)

_OPT = Architecture(
    blocks="decoder.layers",
    roles={
        "self_attn.q_proj": "qkv",
        "self_attn.k_proj": "qkv",
        "self_attn.v_proj": "qkv",
        "self_attn.out_proj": "attention_output",
        "fc1": "ffn",
        "fc2": "ffn",
    },
    inputs=(
        # The size 350m normalizes after the residual is added.
        Input(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn_layer_norm",
            only_if="do_layer_norm_before",
        ),
        Input(("self_attn.out_proj",), "self_attn.v_proj", "value"),
        Input(("fc1",), "final_layer_norm", only_if="do_layer_norm_before"),
        Input(("fc2",), "fc1", "relu"),
    ),
    activations={"fc1": "activation_fn"},
    keys=ConfigKeys(
        positions=Setting("max_position_embeddings", 2048),
        activation=Setting("activation_function", "relu"),
        eps=Setting("layer_norm_eps", 1e-5),  # which no config.json has
    ),
    embeddings=Embeddings("decoder.embed_tokens", projection="decoder.project_in"),
    positions=Positions("decoder.embed_positions"),
    head=_HEAD,
    # Back to narrow embeddings, in the size 350m: small.
    left_out=("decoder.project_out",),
)

_EXPERTS: dict[str, Role] = {
    "mlp.gate": "router",
    "mlp.experts.*.gate_proj": "expert",
    "mlp.experts.*.up_proj": "expert",
    "mlp.experts.*.down_proj": "expert",
}
_SHARED_EXPERTS: dict[str, Role] = {
    "mlp.shared_experts.gate_proj": "ffn",
    "mlp.shared_experts.up_proj": "ffn",
    "mlp.shared_experts.down_proj": "ffn",
}
_EXPERT_READERS = ("mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj")
_EXPERT_DOWN = Input(("mlp.experts.*.down_proj",), "mlp.experts.*.up_proj", "up")

_MIXTRAL = Architecture(
    blocks="layers",
    roles=_ATTENTION | _EXPERTS,
    inputs=(*_ATTENTION_INPUTS, Input(_EXPERT_READERS, "post_attention_layernorm"), _EXPERT_DOWN),
    keys=_KEYS,
    embeddings=_EMBEDDINGS,
    head=_HEAD,
    files=FileNames(
        renames=(
            (r"\.mlp\.", ".block_sparse_moe."),
            (r"(\.experts\.\d+)\.gate_proj\.", r"\1.w1."),
            (r"(\.experts\.\d+)\.up_proj\.", r"\1.w3."),
            (r"(\.experts\.\d+)\.down_proj\.", r"\1.w2."),
        )
    ),
)

# Some blocks have experts, the others the FFN of Llama.
_QWEN3_MOE = _LLAMA._replace(
    roles=_ATTENTION | _FFN | _EXPERTS,
    inputs=(*_LLAMA.inputs, *_MIXTRAL.inputs[2:]),
    either=((tuple(_FFN), tuple(_EXPERTS)),),
    activations={},
    decoding=None,
)

_MOE_WITH_SHARED_INPUTS = (
    *_LLAMA.inputs[2:],
    Input(
        (*_EXPERT_READERS, "mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
        "post_attention_layernorm",
    ),
    _EXPERT_DOWN,
    Input(("mlp.shared_experts.down_proj",), "mlp.shared_experts.up_proj", "up"),
)

# The layers of multi-token prediction that follow the last block in some checkpoints are not part of the model that
# transformers runs; they have no row.
_GLM4_MOE = _QWEN3_MOE._replace(
    roles=_ATTENTION | _FFN | _EXPERTS | _SHARED_EXPERTS,
    inputs=(*_ATTENTION_INPUTS, *_MOE_WITH_SHARED_INPUTS),
    either=((tuple(_FFN), tuple(_EXPERTS | _SHARED_EXPERTS)),),
)

# Multi-head latent attention: queries (but in the small models) and keys with values each go through a narrow,
# normalized vector.
_DEEPSEEK_V3 = _GLM4_MOE._replace(
    roles={
        "self_attn.q_proj": "qkv",
        "self_attn.q_a_proj": "qkv",
        "self_attn.q_b_proj": "qkv",
        "self_attn.kv_a_proj_with_mqa": "qkv",
        "self_attn.kv_b_proj": "qkv",
        "self_attn.o_proj": "attention_output",
        **_FFN,
        **_EXPERTS,
        **_SHARED_EXPERTS,
    },
    inputs=(
        Input(("self_attn.q_proj", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"), "input_layernorm"),
        Input(("self_attn.q_b_proj",), "self_attn.q_a_layernorm"),
        Input(("self_attn.kv_b_proj",), "self_attn.kv_a_layernorm"),
        Input(("self_attn.o_proj",), "self_attn.kv_b_proj", "latent_value"),
        *_MOE_WITH_SHARED_INPUTS,
    ),
    either=(*_GLM4_MOE.either, (("self_attn.q_proj",), ("self_attn.q_a_proj", "self_attn.q_b_proj"))),
)

# model_type of config.json -> row.
DECODERS: dict[str, Architecture] = {
    "arcee": _ARCEE,
    "bitnet": _BITNET,
    "cohere": _COHERE,
    "cohere2": _COHERE2,
    "cwm": _CWM,
    "deepseek_v3": _DEEPSEEK_V3,
    "ernie4_5": _HELIUM,
    "exaone4": _EXAONE4,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3_WITH_IMAGES,
    "gemma3_text": _GEMMA3,
    "glm": _GLM,
    "glm4": _GLM4,
    "glm4_moe": _GLM4_MOE,
    "gpt2": _GPT2,
    "granite": _GRANITE,
    "helium": _HELIUM,
    "hyperclovax": _HYPERCLOVAX,
    "jais2": _JAIS2,
    "lfm2": _LFM2,
    "llama": _LLAMA,
    "ministral": _MINISTRAL,
    "ministral3": _MINISTRAL3,
    "mistral": _MISTRAL,
    "mixtral": _MIXTRAL,
    "nemotron": _NEMOTRON,
    "olmo2": _OLMO2,
    "olmo3": _OLMO3,
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "seed_oss": _SEED_OSS,
    "smollm3": _SMOLLM3,
    "stablelm": _STABLELM,
    "starcoder2": _STARCODER2,
    "vaultgemma": _VAULTGEMMA,
}
