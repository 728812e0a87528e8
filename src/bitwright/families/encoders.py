"""The rows of the encoders.

Most normalize after the residual is added. Their norms' outputs are the next residual, so no scale folds into them;
values still fold, and so does an FFN whose config says ReLU.
"""

from dataclasses import replace

from bitwright.families.row import Architecture, Input

_BERT = Architecture(
    blocks="encoder.layer",
    roles={
        "attention.self.query": "qkv",
        "attention.self.key": "qkv",
        "attention.self.value": "qkv",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn",
        "output.dense": "ffn",
    },
    inputs=(
        Input(("attention.self.query", "attention.self.key", "attention.self.value")),
        Input(("attention.output.dense",), "attention.self.value", "value"),
        Input(("output.dense",), "intermediate.dense", "relu"),
    ),
    activations={"intermediate.dense": "intermediate.intermediate_act_fn"},
    heads=("pooler.dense", "classifier", "qa_outputs"),
)

_ROBERTA = replace(_BERT, heads=("pooler.dense", "classifier", "classifier.dense", "classifier.out_proj", "qa_outputs"))

# The projection between narrow embeddings and the first block: small, and its input is the embedding itself.
_ELECTRA = replace(_ROBERTA, left_out=("embeddings_project",))

_DISTILBERT = Architecture(
    blocks="transformer.layer",
    roles={
        "attention.q_lin": "qkv",
        "attention.k_lin": "qkv",
        "attention.v_lin": "qkv",
        "attention.out_lin": "attention_output",
        "ffn.lin1": "ffn",
        "ffn.lin2": "ffn",
    },
    inputs=(
        Input(("attention.q_lin", "attention.k_lin", "attention.v_lin")),
        Input(("attention.out_lin",), "attention.v_lin", "value"),
        Input(("ffn.lin2",), "ffn.lin1", "relu"),
    ),
    activations={"ffn.lin1": "ffn.activation"},
    heads=("pre_classifier", "classifier", "qa_outputs"),
)

_ALBERT = Architecture(
    blocks="encoder.albert_layer_groups.*.albert_layers",
    roles={
        "attention.query": "qkv",
        "attention.key": "qkv",
        "attention.value": "qkv",
        "attention.dense": "attention_output",
        "ffn": "ffn",
        "ffn_output": "ffn",
    },
    inputs=(
        Input(("attention.query", "attention.key", "attention.value")),
        Input(("attention.dense",), "attention.value", "value"),
        Input(("ffn_output",), "ffn", "relu"),
    ),
    activations={"ffn": "activation"},
    heads=("pooler", "classifier", "qa_outputs"),
    # As in ELECTRA: the projection from narrow embeddings.
    left_out=("encoder.embedding_hidden_mapping_in",),
)

_MPNET = Architecture(
    blocks="encoder.layer",
    roles={
        "attention.attn.q": "qkv",
        "attention.attn.k": "qkv",
        "attention.attn.v": "qkv",
        "attention.attn.o": "attention_output",
        "intermediate.dense": "ffn",
        "output.dense": "ffn",
    },
    inputs=(
        Input(("attention.attn.q", "attention.attn.k", "attention.attn.v")),
        Input(("attention.attn.o",), "attention.attn.v", "value"),
        Input(("output.dense",), "intermediate.dense", "relu"),
    ),
    activations={"intermediate.dense": "intermediate.intermediate_act_fn"},
    heads=_ROBERTA.heads,
)

_DEBERTA_V2 = Architecture(
    blocks="encoder.layer",
    roles={
        "attention.self.query_proj": "qkv",
        "attention.self.key_proj": "qkv",
        "attention.self.value_proj": "qkv",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "ffn",
        "output.dense": "ffn",
    },
    inputs=(
        Input(("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj")),
        Input(("attention.output.dense",), "attention.self.value_proj", "value"),
        Input(("output.dense",), "intermediate.dense", "relu"),
    ),
    activations={"intermediate.dense": "intermediate.intermediate_act_fn"},
    heads=("pooler.dense", "classifier", "qa_outputs"),
    # With share_att_key the projections of the content also project the table of relative positions.
    run_twice={
        "attention.self.query_proj": ("relative_attention", "share_att_key"),
        "attention.self.key_proj": ("relative_attention", "share_att_key"),
    },
    # Without it the table has projections of its own, whose result is the same for every text.
    # embed_proj: as in ELECTRA.
    left_out=(
        "encoder.layer.*.attention.self.pos_key_proj",
        "encoder.layer.*.attention.self.pos_query_proj",
        "embeddings.embed_proj",
    ),
)

# Normalizes before each linear; the first block has no norm before its attention, since the embeddings have one.
_MODERNBERT = Architecture(
    blocks="layers",
    # Wi computes both halves of a gated unit: the activation sees half of its output, so none is listed.
    roles={"attn.Wqkv": "qkv", "attn.Wo": "attention_output", "mlp.Wi": "ffn", "mlp.Wo": "ffn"},
    inputs=(
        Input(("attn.Wqkv",), "attn_norm"),
        Input(("attn.Wo",), "attn.Wqkv", "value"),
        Input(("mlp.Wi",), "mlp_norm"),
        Input(("mlp.Wo",), "mlp.Wi", "up"),
    ),
    heads=("head.dense", "classifier"),
)

# model_type of config.json -> row.
ENCODERS: dict[str, Architecture] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "ernie": _BERT,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
