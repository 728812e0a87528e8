"""What a model directory may look like: the dimensions, their choices, and which of them go together.

A layout is one choice for each dimension that applies: a plain dict that can be read, kept as JSON and changed by hand.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from bitwright.families.tasks import TaskName

Layout = dict[str, Any]


class Family(NamedTuple):
    """words: how its tokenizer cuts. tokenizer: the class of transformers. specials: the first entries of its
    vocabulary."""

    words: str
    tokenizer: str
    specials: tuple[str, ...]
    decoder: bool = False


_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_END = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA = ("<unk>", "<s>", "</s>")

FAMILIES: dict[str, Family] = {
    "albert": Family("unigram", "AlbertTokenizer", ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "bert": Family("wordpiece", "BertTokenizer", _BERT),
    "camembert": Family("unigram", "CamembertTokenizer", _FAIRSEQ),
    "deberta-v2": Family("unigram", "DebertaV2Tokenizer", ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")),
    "distilbert": Family("wordpiece", "DistilBertTokenizer", _BERT),
    "electra": Family("wordpiece", "ElectraTokenizer", _BERT),
    "ernie": Family("wordpiece", "BertTokenizer", _BERT),
    "modernbert": Family("bytes", "PreTrainedTokenizerFast", _BERT),
    "mpnet": Family("wordpiece", "MPNetTokenizer", ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
    "roberta": Family("bytes", "RobertaTokenizer", _FAIRSEQ),
    "xlm-roberta": Family("unigram", "XLMRobertaTokenizer", _FAIRSEQ),
    "gemma3_text": Family("gemma", "GemmaTokenizer", ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), decoder=True),
    "llama": Family("bytes", "PreTrainedTokenizerFast", _LLAMA, decoder=True),
    "mistral": Family("bytes", "PreTrainedTokenizerFast", _LLAMA, decoder=True),
    "qwen2": Family("bytes", "Qwen2Tokenizer", _END, decoder=True),
    "qwen3": Family("bytes", "Qwen2Tokenizer", _END, decoder=True),
}
# What members of a family differ in; each applies to the families that know the key.
VARIANTS: dict[str, dict[str, Any]] = {
    "one token type": {"type_vocab_size": 1},
    "two token types": {"type_vocab_size": 2},
    "own relative projections": {"share_att_key": False},
    "content to position": {"pos_att_type": ["c2p"]},
    "absolute positions too": {"position_biased_input": True},
    "global attention": {"global_attn_every_n_layers": 1},
    "mean of the classifier": {"classifier_pooling": "mean"},
    "embeddings as wide": {"embedding_size": None},
}
_TYPED = {"albert", "bert", "deberta-v2", "electra", "ernie"}  # families with token types, or tables for them
_POOLERS = {"bert", "ernie", "roberta", "xlm-roberta", "camembert", "mpnet", "albert"}
EMBEDDING = "embedding"
HEADS = ("sequence-classification", "token-classification", "question-answering")
FLOATS = ("float32", "float16", "bfloat16", "float32 that float16 holds", "float16 but for norms")


class Dimension(NamedTuple):
    """choices: the first is the plain one. odd: how often it is another; None: all are as frequent. when: whether it
    applies to what was chosen so far."""

    name: str
    choices: tuple[Any, ...]
    odd: float | None = 0.15
    when: Callable[[Layout], bool] = lambda layout: True


def tokenizer_family(layout: Layout) -> Family:
    """The row whose tokenizer a layout has."""
    other = layout.get("tokenizer.of", "own")
    return FAMILIES[layout["family"] if other == "own" else other]


def _words(*kinds: str) -> Callable[[Layout], bool]:
    return lambda layout: tokenizer_family(layout).words in kinds


def _family(names: set[str]) -> Callable[[Layout], bool]:
    return lambda layout: layout["family"] in names


def _embeds(layout: Layout) -> bool:
    return bool(layout["task"] == EMBEDDING)


def _modules(layout: Layout) -> bool:
    return _embeds(layout) and layout["sentence.modules"] == "there"


def _bare(layout: Layout) -> bool:
    """Without modules.json, where side files of sentence-transformers say nothing."""
    return layout.get("sentence.modules") == "absent" or layout.get("labels") == 1


def _classifies(layout: Layout) -> bool:
    return bool(layout["task"] == "sequence-classification")


def _configured(layout: Layout) -> bool:
    return bool(layout.get("tokenizer.config", "there") == "there")


def _both(*conditions: Callable[[Layout], bool]) -> Callable[[Layout], bool]:
    return lambda layout: all(condition(layout) for condition in conditions)


def _encoder(layout: Layout) -> bool:
    return not FAMILIES[layout["family"]].decoder


def _decodes(layout: Layout) -> bool:
    return FAMILIES[layout["family"]].decoder


def _dense(layout: Layout) -> bool:
    return _modules(layout) and layout["sentence.dense"] is not None


_POOLINGS = (
    ("mean",), ("cls",), ("max",), ("lasttoken",), ("mean_sqrt_len_tokens",), ("weightedmean",), ("cls", "mean"),
    ("mean", "max"), ("cls", "max", "mean"),
)  # fmt: skip

DIMENSIONS: tuple[Dimension, ...] = (
    Dimension("task", (EMBEDDING, *HEADS), 0.4),
    Dimension("family", ("bert", *sorted(FAMILIES.keys() - {"bert"})), 0.75),
    Dimension("labels", (1, 3), None, _classifies),
    Dimension("items", ("texts", "pairs"), None, lambda layout: layout["task"] in (HEADS[0], HEADS[2])),
    # config.json
    Dimension("config.architectures", ("named", "absent", "of the masked language model"), 0.2, _embeds),
    Dimension("config.dtype", ("torch_dtype", "dtype", "absent"), 0.3),
    Dimension("config.activation", ("gelu", "relu", "gelu_new"), 0.1, _encoder),
    Dimension("config.problem_type", (None, "multi_label_classification", "regression"), 0.3, _classifies),
    Dimension("config.label_names", (False, True), 0.5, lambda layout: not _embeds(layout)),
    Dimension("config.unknown_key", (False, True)),
    Dimension("config.hidden", (32, 48, 64), 0.2, _encoder),
    Dimension("config.variant", (None, *VARIANTS), 0.1, _encoder),
    Dimension("config.auto_map", (False, True), 0.02),
    # weights
    Dimension("weights.floats", FLOATS, 0.3),
    Dimension("weights.file", ("safetensors", "safetensors in shards", "bin", "bin in shards", "both", "bare"), 0.3),
    Dimension("weights.prefix", ("as built", "added"), 0.15, _embeds),
    Dimension(
        "weights.norms", ("weight and bias", "gamma and beta"), 0.15, _family({"bert", "electra", "ernie", "roberta"})
    ),
    Dimension("weights.extra", ("none", "position_ids", "masked language model's head", "foreign"), 0.25),
    Dimension("weights.pooler", ("there", "missing"), 0.25, _both(_family(_POOLERS), _embeds)),
    # tokenizer: of: the family whose kind of words it has, as the multilingual MiniLM has XLM-RoBERTa's
    Dimension("tokenizer.of", ("own", "xlm-roberta", "roberta", "bert"), 0.1, _family({"bert", "roberta", "mpnet"})),
    Dimension("tokenizer.files", ("json", "json and vocabulary", "vocabulary"), 0.3, _words("wordpiece", "bytes")),
    Dimension("tokenizer.cased", (False, True), 0.3, _words("wordpiece")),
    Dimension("tokenizer.json_cut", (None, 12), 0.15, lambda layout: layout.get("tokenizer.files") != "vocabulary"),
    Dimension("tokenizer.config", ("there", "absent"), 0.1, lambda layout: layout.get("tokenizer.of", "own") == "own"),
    Dimension("tokenizer.class", ("own", "Fast", "generic", "absent", "of another family"), 0.3, _configured),
    Dimension("tokenizer.class_in_config", (False, True), 0.2),
    Dimension("tokenizer.lower", ("as the file", "absent", "opposite"), 0.25, _both(_words("wordpiece"), _configured)),
    Dimension("tokenizer.accents", ("absent", True, False), 0.15, _both(_words("wordpiece"), _configured)),
    Dimension("tokenizer.chinese", ("absent", True, False), 0.15, _both(_words("wordpiece"), _configured)),
    Dimension("tokenizer.prefix_space", ("absent", True, False), 0.2, _both(_words("bytes", "unigram"), _configured)),
    Dimension("tokenizer.sep_cls", ("own", "others"), 0.08, _both(_words("wordpiece"), _configured)),
    Dimension("tokenizer.max_length", (48, "absent", 12, 512, int(1e30)), 0.4, _configured),
    Dimension("tokenizer.cut_side", ("absent", "left", "right"), 0.15, _configured),
    Dimension("tokenizer.pad_side", ("absent", "left", "right"), 0.15, _configured),
    Dimension("tokenizer.inputs", ("absent", "without types", "with types"), 0.2, _both(_family(_TYPED), _configured)),
    Dimension("tokenizer.specials", ("strings", "objects", "special_tokens_map.json", "both"), 0.25, _configured),
    Dimension("tokenizer.unknown_keys", (False, True), 0.1, _configured),
    Dimension("tokenizer.chat", (False, True), 0.25, _both(_decodes, _configured)),
    Dimension("tokenizer.ends", ("absent", "add_eos_token", "no add_bos_token"), 0.2, _both(_decodes, _configured)),
    Dimension(
        "tokenizer.added",
        (
            "none",
            "added_tokens.json",
            "special_tokens_map.json",
            "in tokenizer.json",
            "added_tokens_decoder",
            "additional_special_tokens",
            "extra_special_tokens",
        ),
        0.35,
    ),
    # sentence-transformers
    Dimension("sentence.modules", ("there", "absent"), 0.2, _embeds),
    Dimension("sentence.types", ("old", "new"), 0.35, _modules),
    Dimension("sentence.folder", ("", "0_Transformer"), 0.06, _modules),
    Dimension("sentence.pooling", _POOLINGS, 0.7, _modules),
    Dimension("sentence.pooling_form", ("flags", "names", "first three flags"), 0.45, _modules),
    Dimension("sentence.include_prompt", ("absent", True, False), 0.25, _modules),
    Dimension("sentence.weighted_layers", (False, True), 0.05, _modules),
    Dimension("sentence.dense", (None, "Tanh", "Identity", "ReLU", "GELU"), 0.2, _modules),
    Dimension("sentence.dense_bias", (True, False), 0.4, _dense),
    Dimension("sentence.dense_file", ("model.safetensors", "pytorch_model.bin"), 0.5, _dense),
    Dimension("sentence.dense_residual", (False, True), 0.15, _dense),
    Dimension("sentence.layer_norm", (False, True), 0.06, _modules),
    Dimension("sentence.dropout", (False, True), 0.06, _modules),
    Dimension("sentence.normalize", (True, False), 0.5, _modules),
    Dimension(
        "sentence.config",
        ("bert", "absent", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"),
        0.3,
        _modules,
    ),
    Dimension("sentence.max_length", (32, None, "absent", 10, 300), 0.4, _modules),
    Dimension("sentence.lower", (False, "absent", True), 0.25, _modules),
    Dimension(
        "sentence.arguments", (None, "tokenizer_args", "processor_kwargs", "model_args", "modality"), 0.15, _modules
    ),
    Dimension("sentence.prompts", (None, "named", "default"), 0.3, _modules),
    Dimension("sentence.truncate", (None, 16, 1000), 0.12, _modules),
    Dimension("sentence.similarity", ("absent", "cosine", "dot"), 0.2, _modules),
    Dimension("sentence.unknown_key", (False, True), 0.1, _modules),
    Dimension(
        "sentence.asked",
        (None, "prompt_name", "prompt", "normalize_embeddings", "truncate_dim"),
        0.3,
        lambda layout: _modules(layout) and layout["sentence.prompts"] is not None,
    ),
    Dimension("sentence.orphans", (False, True), 0.3, _bare),
    Dimension("sentence.beside", (False, True), 0.1),
    # a cross-encoder
    Dimension("cross.form", ("config.json alone", "with modules.json"), 0.3, lambda layout: layout.get("labels") == 1),
    Dimension("cross.activation", (None, "Identity", "Sigmoid", "old key"), 0.5, _classifies),
    Dimension(
        "cross.folder", ("", "0_Transformer"), 0.3, lambda layout: layout.get("cross.form") == "with modules.json"
    ),
)


def draw(seed: int) -> Layout:
    """The layout of a seed: most dimensions plain, a few not."""
    chance = random.Random(seed)

    def choose(dimension: Dimension) -> Any:
        plain, *others = dimension.choices
        if dimension.odd is None:
            return chance.choice(dimension.choices)
        return chance.choice(others) if chance.random() < dimension.odd else plain

    return {"seed": seed} | _filled({}, choose)


def settle(layout: Layout) -> Layout:
    """A layout that was changed by hand, with the dimensions that now apply, and none that do not."""
    return {"seed": layout["seed"]} | _filled(layout, lambda dimension: dimension.choices[0])


def odd_ones(layout: Layout) -> Layout:
    """What is not plain in a layout."""
    plain = {dimension.name: dimension.choices[0] for dimension in DIMENSIONS}
    return {name: value for name, value in layout.items() if name in plain and value != plain[name]}


def named_task(layout: Layout) -> TaskName | None:
    """The task that a user has to name: of a language model's files, that it embeds texts."""
    named = layout.get("config.architectures") == "of the masked language model"
    return "embedding" if named and _decodes(layout) and layout["sentence.modules"] == "absent" else None


def _filled(layout: Layout, choose: Callable[[Dimension], Any]) -> Layout:
    made: Layout = {}
    for dimension in DIMENSIONS:
        if dimension.name == "family" and made["task"] != EMBEDDING:
            encoders = tuple(name for name in dimension.choices if not FAMILIES[name].decoder)
            dimension = dimension._replace(choices=encoders)
        if dimension.when(made):
            made[dimension.name] = layout[dimension.name] if dimension.name in layout else choose(dimension)
    return made
