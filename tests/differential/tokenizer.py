"""The tokenizer's files of a layout, in the forms of several years of transformers."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.differential import vocabulary
from tests.differential.layouts import Family, Layout, tokenizer_family

_ROOM = 8  # rows of the embedding table beyond the vocabulary, for added tokens

# Role of a special token -> its spellings; the one that is in the family's vocabulary.
_ROLES = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<bos>", "<s>"),
    "eos_token": ("<eos>", "</s>", "<|endoftext|>"),
}
_DECODERS_ALONE = ("cls_token", "sep_token", "mask_token")  # that decoders do without
_INPUTS = {
    "without types": ["input_ids", "attention_mask"],
    "with types": ["input_ids", "token_type_ids", "attention_mask"],
}


def write_tokenizer(layout: Layout, path: Path) -> None:
    """Vocabulary, tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json: some of them."""
    family = tokenizer_family(layout)
    files, added = layout.get("tokenizer.files", "json"), layout["tokenizer.added"]
    tokenizer = Tokenizer.from_str(_json(family, layout.get("tokenizer.cased", False)))
    first = tokenizer.get_vocab_size()
    if added == "in tokenizer.json":
        tokenizer.add_special_tokens([vocabulary.ADDED[0]])
        tokenizer.add_tokens([AddedToken(vocabulary.ADDED[1], normalized=False)])
    if layout.get("tokenizer.json_cut"):
        tokenizer.enable_truncation(layout["tokenizer.json_cut"])
        tokenizer.enable_padding(length=layout["tokenizer.json_cut"])
    if files != "vocabulary":
        (path / "tokenizer.json").write_text(tokenizer.to_str())
    if files != "json":
        _write_vocabulary(family, path)
    if layout.get("tokenizer.config", "there") == "there":
        _write(path / "tokenizer_config.json", _config(layout, family, first))
    if added == "added_tokens.json":
        _write(path / added, {token: first + i for i, token in enumerate(vocabulary.ADDED)})
    specials: dict[str, Any] = {}
    if layout.get("tokenizer.specials") in ("special_tokens_map.json", "both"):
        specials |= _specials(family)
    if added == "special_tokens_map.json":
        specials |= _specials(family) | {"additional_special_tokens": list(vocabulary.ADDED)}
    if specials:
        _write(path / "special_tokens_map.json", specials)


@cache
def vocabulary_size(family: Family) -> int:
    """Rows of the embedding table."""
    return int(Tokenizer.from_str(_json(family, False)).get_vocab_size()) + _ROOM


@cache
def _json(row: Family, cased: bool) -> str:
    """tokenizer.json as the family's class makes it of a vocabulary."""
    if row.words == "wordpiece":
        made = _class(row)(vocab=vocabulary.word_pieces(row.specials), do_lower_case=not cased, **_specials(row))
    elif row.words == "unigram":
        made = _class(row)(vocab=vocabulary.unigrams(row.specials), **_specials(row))
    elif row.words == "gemma":
        vocab, merges = vocabulary.gemma_pairs(row.specials)
        made = _class(row)(vocab=vocab, merges=merges, **_specials(row))
    elif row.tokenizer == "PreTrainedTokenizerFast":
        return _bytes_json(row)
    else:
        vocab, merges = vocabulary.byte_pairs(row.specials)
        made = _class(row)(vocab=vocab, merges=merges, **_specials(row))
    return str(made.backend_tokenizer.to_str())


def _bytes_json(family: Family) -> str:
    """A byte-level tokenizer that no class sets up: ModernBERT's, Llama 3's."""
    vocab, merges = vocabulary.byte_pairs(family.specials)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = _specials(family)
    tokenizer.add_special_tokens(list(dict.fromkeys(roles.values())))
    begin, end = roles.get("cls_token", roles.get("bos_token", "")), roles.get("sep_token")
    single, pair = f"{begin} $A", f"{begin} $A {begin} $B:1"
    if end is not None:
        single, pair = f"{begin} $A {end}", f"{begin} $A {end} $B {end}"
    used = [(token, vocab[token]) for token in (begin, end) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    return str(tokenizer.to_str())


def _class(family: Family) -> Any:
    return getattr(transformers, family.tokenizer.replace("Electra", "Bert"))


def _specials(family: Family) -> dict[str, str]:
    """Role -> token."""
    roles = {}
    for role, spellings in _ROLES.items():
        token = next((token for token in spellings if token in family.specials), None)
        if token is not None and not (family.decoder and role in _DECODERS_ALONE):
            roles[role] = token
    if family.decoder:
        roles.setdefault("pad_token", family.specials[-1])
    return roles


def _write_vocabulary(family: Family, path: Path) -> None:
    """vocab.txt, or vocab.json and merges.txt."""
    if family.words == "wordpiece":
        (path / "vocab.txt").write_text("".join(f"{entry}\n" for entry in vocabulary.word_pieces(family.specials)))
        return
    vocab, merges = vocabulary.byte_pairs(family.specials)
    _write(path / "vocab.json", vocab)
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def _config(layout: Layout, family: Family, first: int) -> dict[str, Any]:
    """tokenizer_config.json. first: the id of the next token."""
    config: dict[str, Any] = dict(_specials(family))
    if layout["tokenizer.specials"] == "special_tokens_map.json":
        config = {}
    elif layout["tokenizer.specials"] == "objects":
        config = {role: _added_token(token, strips=role == "mask_token") for role, token in config.items()}
    names = {
        "own": family.tokenizer,
        "Fast": family.tokenizer.removesuffix("Fast") + "Fast",
        "generic": "PreTrainedTokenizerFast",
        "of another family": {"wordpiece": "DistilBertTokenizer", "bytes": "GPT2Tokenizer"}.get(family.words),
    }
    if names.get(layout["tokenizer.class"]):
        config["tokenizer_class"] = names[layout["tokenizer.class"]]
    lower = {"as the file": not layout.get("tokenizer.cased"), "opposite": bool(layout.get("tokenizer.cased"))}
    given = {
        "do_lower_case": lower.get(layout.get("tokenizer.lower", ""), "absent"),
        "strip_accents": layout.get("tokenizer.accents", "absent"),
        "tokenize_chinese_chars": layout.get("tokenizer.chinese", "absent"),
        "add_prefix_space": layout.get("tokenizer.prefix_space", "absent"),
        "model_max_length": layout["tokenizer.max_length"],
        "truncation_side": layout["tokenizer.cut_side"],
        "padding_side": layout["tokenizer.pad_side"],
        "model_input_names": _INPUTS.get(layout.get("tokenizer.inputs", ""), "absent"),
    }
    config |= {key: value for key, value in given.items() if value != "absent"}
    if layout.get("tokenizer.sep_cls") == "others":
        config |= dict(zip(("cls_token", "sep_token"), vocabulary.UNUSED, strict=True))
    if layout["tokenizer.added"] == "added_tokens_decoder":
        config["added_tokens_decoder"] = {
            str(first + i): _added_token(token) | {"special": i == 0} for i, token in enumerate(vocabulary.ADDED)
        }
    if layout["tokenizer.added"] in ("additional_special_tokens", "extra_special_tokens"):
        config[layout["tokenizer.added"]] = list(vocabulary.ADDED)
    if layout["tokenizer.unknown_keys"]:
        config |= {"name_or_path": "someone/a-model", "do_basic_tokenize": True, "never_split": None,
                   "clean_up_tokenization_spaces": True, "use_fast": True, "stride": 0}  # fmt: skip
    if layout.get("tokenizer.chat"):
        config["chat_template"] = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    if layout.get("tokenizer.ends") == "add_eos_token":
        config["add_eos_token"] = True
    elif layout.get("tokenizer.ends") == "no add_bos_token":
        config["add_bos_token"] = False
    return config


def _added_token(token: str, *, strips: bool = False) -> dict[str, Any]:
    return {"__type": "AddedToken", "content": token, "lstrip": strips, "normalized": False, "rstrip": False,
            "single_word": False}  # fmt: skip


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False))
