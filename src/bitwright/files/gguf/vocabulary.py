"""tokenizer.json and its side files as the metadata of a GGUF file: the inverse of `tokenizer.py`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bitwright.errors import ModelError, foreign
from bitwright.files.directory import ModelDirectory
from bitwright.files.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NAMES,
    NORMAL,
    PRE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Pre,
    merges_of,
)
from bitwright.files.reading import MAX_TEXT_BYTES, read_bytes

_TEMPLATE = "chat_template.jinja"


def vocabulary_of(directory: ModelDirectory, size: int) -> dict[str, Any]:
    """The entries of a model's tokenizer; {} if it has none.

    size: rows of the table of words.

    Raises:
        ModelError: a tokenizer of another kind than llama.cpp has, or with more tokens than rows.
    """
    content = directory.transformer.object("tokenizer.json")
    if content is None:
        return {}
    where = directory.transformer / "tokenizer.json"
    with foreign(f"{where}: the tokenizer cannot be built", ModelError):
        tokenizer = Tokenizer.from_str(json.dumps(content))
    model, settings = content["model"], directory.transformer.object("tokenizer_config.json") or {}
    if model.get("type") != "BPE":
        raise ModelError(f"{where}: a GGUF file has no words for a tokenizer of type {model.get('type')!r:.40}")
    names: dict[int, str] = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(names) >= size:
        raise ModelError(f"{where}: the token {max(names)} has no row in the table of words, which has {size}")
    tokens = [names.get(index, f"[PAD{index}]") for index in range(size)]
    types = np.array([NORMAL if index in names else UNUSED for index in range(size)], np.int32)
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    fallback = bool(model.get("byte_fallback"))
    if fallback:
        types[[index for index, token in names.items() if token[:3] == "<0x" and len(token) == 6]] = BYTE
    for index, token in tokenizer.get_added_tokens_decoder().items():
        types[index] = CONTROL if token.special else USER_DEFINED
    if model.get("unk_token") is not None:
        types[tokenizer.token_to_id(model["unk_token"])] = UNKNOWN
    entries: dict[str, Any] = {"tokenizer.ggml.model": "llama" if fallback else "gpt2"}
    if fallback:
        entries |= _scores(tokens, types, merges, where) | {"tokenizer.ggml.add_space_prefix": _prefixed(content)}
    else:
        entries |= {"tokenizer.ggml.pre": _pre(content, where), "tokenizer.ggml.merges": [" ".join(m) for m in merges]}
    entries |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    return entries | _special(directory, settings, tokenizer) | _template(directory, settings)


def _pre(content: Mapping[str, Any], where: object) -> str:
    """What llama.cpp calls the pre-tokenizer."""
    found = content.get("pre_tokenizer") or {}
    parts = found.get("pretokenizers", [found])
    whole, nfc = bool(content["model"].get("ignore_merges")), (content.get("normalizer") or {}).get("type") == "NFC"

    def alike(pre: Pre) -> bool:
        return _plain(pre.parts) == _plain(parts) and pre.nfc == nfc and (pre.whole or not whole)

    name = next((name for name, pre in PRE.items() if alike(pre)), None)
    if name is None:
        raise ModelError(
            f"{where}: its pre-tokenizer is none that Bitwright knows llama.cpp's name of: {', '.join(PRE)}"
        )
    return name


def _plain(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Without what moves offsets alone."""
    return [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]


def _scores(tokens: Sequence[str], types: np.ndarray, merges: Sequence[Sequence[str]], where: object) -> dict[str, Any]:
    """Scores of pieces from which the merges follow: the earlier a piece is made, the higher."""
    scores, made = np.zeros(len(tokens), np.float32), dict.fromkeys("".join(merge) for merge in merges)
    ids = {token: index for index, token in enumerate(tokens)}
    for rank, piece in enumerate(made):
        scores[ids[piece]] = -rank - 1
    alone = [index for token, index in ids.items() if token not in made]
    scores[alone] = -len(made) - 1
    pieces = {token: float(scores[index]) for token, index in ids.items() if types[index] in (NORMAL, USER_DEFINED)}
    if [tuple(merge) for merge in merges_of(pieces, ids)] != [tuple(merge) for merge in merges]:
        raise ModelError(f"{where}: no scores of tokens give these merges, and a GGUF file of this kind has no others")
    return {"tokenizer.ggml.scores": scores}


def _prefixed(content: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text."""
    found = content.get("normalizer") or {}
    before = content.get("pre_tokenizer") or {}
    parts = [*found.get("normalizers", [found]), *before.get("pretokenizers", [before])]
    return any(part.get("type") == "Prepend" or part.get("prepend_scheme") in ("first", "always") for part in parts)


def _special(directory: ModelDirectory, settings: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of special tokens, and which are put around a text."""
    entries: dict[str, Any] = {}
    for key, spelled in NAMES.items():
        token = settings.get(f"{key}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (index := tokenizer.token_to_id(token)) is not None:
            entries[f"tokenizer.ggml.{spelled}_token_id"] = index
    for key in ("bos", "eos"):
        index = directory.config.get(f"{key}_token_id")
        if isinstance(index, int):
            entries.setdefault(f"tokenizer.ggml.{key}_token_id", index)
    ends = (directory.transformer.object("generation_config.json") or {}).get("eos_token_id")
    further = [index for index in (ends if isinstance(ends, list) else [ends]) if isinstance(index, int)]
    if not isinstance(ends, list) and further:
        entries["tokenizer.ggml.eos_token_id"] = further[0]
    for key, index in zip(
        ("eot", "eom"), (i for i in further if i != entries.get("tokenizer.ggml.eos_token_id")), strict=False
    ):
        entries[f"tokenizer.ggml.{key}_token_id"] = index
    around = tokenizer.encode("").ids
    begins = around[:1] == [entries.get("tokenizer.ggml.bos_token_id")]
    entries["tokenizer.ggml.add_bos_token"] = begins
    entries["tokenizer.ggml.add_eos_token"] = around[begins:] == [entries.get("tokenizer.ggml.eos_token_id")]
    return entries


def _template(directory: ModelDirectory, settings: Mapping[str, Any]) -> dict[str, Any]:
    file = directory.transformer / _TEMPLATE
    if file.is_file():
        return {"tokenizer.chat_template": read_bytes(file, MAX_TEXT_BYTES).decode("utf-8", errors="replace")}
    text = settings.get("chat_template")
    if isinstance(text, list):
        text = next(
            (one.get("template") for one in text if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return {"tokenizer.chat_template": text} if isinstance(text, str) else {}
