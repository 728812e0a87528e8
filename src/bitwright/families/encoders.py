"""The rows of the encoders.

Most normalize after the residual is added. Their norms' outputs are the next residual, so no scale folds into them;
values still fold, and so does an FFN whose config says ReLU.
"""

from bitwright.families.row import (
    Architecture,
    ConfigKeys,
    Dense,
    Embeddings,
    Head,
    Input,
    Norms,
    Positions,
    Setting,
)
from bitwright.families.tasks import TaskName

_OUTPUTS: dict[TaskName, str] = {
    "sequence-classification": "classifier",
    "token-classification": "classifier",
    "question-answering": "qa_outputs",
}
_AFTER_PADDING = Setting("pad_token_id", 1)

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
    prefix="bert",
    embeddings=Embeddings("embeddings.word_embeddings", types="embeddings.token_type_embeddings"),
    positions=Positions("embeddings.position_embeddings"),
    norms=Norms("embeddings.LayerNorm", attention="attention.output.LayerNorm", ffn="output.LayerNorm"),
    head=Head(_OUTPUTS, Dense("pooler.dense", "tanh", in_base=True)),
    style="post_norm",
    tokenizer="BertTokenizer",
)

_ERNIE = _BERT._replace(
    prefix="ernie",
    embeddings=_BERT.embeddings._replace(others=("embeddings.task_type_embeddings",)),
)

_ROBERTA = _BERT._replace(
    prefix="roberta",
    positions=Positions("embeddings.position_embeddings", after=_AFTER_PADDING),
    head=Head(
        _OUTPUTS | {"sequence-classification": "classifier.out_proj"},
        Dense("classifier.dense", "tanh"),
        pooler="pooler.dense",
    ),
    tokenizer="RobertaTokenizer",
)

_CAMEMBERT = _ROBERTA._replace(tokenizer="CamembertTokenizer")

_XLM_ROBERTA = _ROBERTA._replace(tokenizer="XLMRobertaTokenizer")

_ELECTRA = _BERT._replace(
    prefix="electra",
    embeddings=_BERT.embeddings._replace(projection="embeddings_project"),
    head=Head(_ROBERTA.head.outputs, Dense("classifier.dense", "gelu")),
)

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
    prefix="distilbert",
    keys=ConfigKeys("n_heads", "n_layers", "dim", activation=Setting("activation", "gelu")),
    embeddings=Embeddings("embeddings.word_embeddings"),
    positions=_BERT.positions,
    norms=Norms("embeddings.LayerNorm", attention="sa_layer_norm", ffn="output_layer_norm"),
    head=Head(_OUTPUTS, Dense("pre_classifier", "relu")),
    style="post_norm",
    tokenizer="BertTokenizer",
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
    prefix="albert",
    keys=ConfigKeys(activation=Setting("hidden_act", "gelu_new")),
    embeddings=_BERT.embeddings._replace(projection="encoder.embedding_hidden_mapping_in"),
    positions=_BERT.positions,
    norms=Norms("embeddings.LayerNorm", attention="attention.LayerNorm", ffn="full_layer_layer_norm"),
    head=Head(_OUTPUTS, Dense("pooler", "tanh", in_base=True)),
    style="post_norm",
    tokenizer="AlbertTokenizer",
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
    prefix="mpnet",
    embeddings=Embeddings("embeddings.word_embeddings"),
    # transformers counts from 2, whatever config.json says of padding
    positions=_ROBERTA.positions._replace(after=1, distance_bias="encoder.relative_attention_bias"),
    norms=Norms("embeddings.LayerNorm", attention="attention.LayerNorm", ffn="output.LayerNorm"),
    head=_ROBERTA.head,
    style="post_norm",
    tokenizer="MPNetTokenizer",
)

_DEBERTA_V2 = _BERT._replace(
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
    # With share_att_key the projections of the content also project the table of relative positions.
    run_twice={
        "attention.self.query_proj": ("relative_attention", "share_att_key"),
        "attention.self.key_proj": ("relative_attention", "share_att_key"),
    },
    # Without it the table has projections of its own, whose result is the same for every text.
    left_out=(
        "encoder.layer.*.attention.self.pos_key_proj",
        "encoder.layer.*.attention.self.pos_query_proj",
    ),
    prefix="deberta",
    keys=ConfigKeys(eps=Setting("layer_norm_eps", 1e-7)),
    embeddings=_BERT.embeddings._replace(projection="embeddings.embed_proj"),
    head=Head(_OUTPUTS, Dense("pooler.dense", Setting("pooler_hidden_act", "gelu"))),
    style="disentangled",
    tokenizer="DebertaV2Tokenizer",
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
    keys=ConfigKeys(
        positions=Setting("max_position_embeddings", 8192),
        activation=Setting("hidden_activation", "gelu"),
        eps=Setting("norm_eps", 1e-5),
    ),
    embeddings=Embeddings("embeddings.tok_embeddings"),
    norms=Norms("embeddings.norm", final="final_norm"),
    head=Head(
        _OUTPUTS | {"question-answering": "classifier"},
        Dense("head.dense", Setting("classifier_activation", "gelu"), norm="head.norm"),
        each_token=True,
        pooling=Setting("classifier_pooling", "cls"),
    ),
    needs_weights=True,
    style="alternating",
)

# model_type of config.json -> row.
ENCODERS: dict[str, Architecture] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _CAMEMBERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _ELECTRA,
    "ernie": _ERNIE,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "roberta": _ROBERTA,
    "xlm-roberta": _XLM_ROBERTA,
}
