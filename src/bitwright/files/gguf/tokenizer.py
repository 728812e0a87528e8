"""The tokenizer in a GGUF file as tokenizer.json and tokenizer_config.json, and back.

llama.cpp knows a vocabulary's pre-tokenizer by name (`tokenizer.ggml.pre`); the table here has those of the families
that Bitwright reads. A SentencePiece vocabulary holds scores, and tokenizer.json the merges that follow from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitwright.errors import brief
from bitwright.files.gguf.header import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
_SPACE = "\u2581"  # of SentencePiece
NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}  # llama.cpp's spelling

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _bytes(use_regex=False)]


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


class Pre(NamedTuple):
    """A pre-tokenizer of byte-level BPE. parts: as tokenizer.json has them. whole: whether a word that is in the
    vocabulary stays whole, whatever merges make of it. bos: whether a text begins with BOS, unless the file says. nfc:
    whether texts are normalized.
    """

    parts: list[dict[str, Any]]
    whole: bool = False
    bos: bool = False
    nfc: bool = False


_LLAMA3 = Pre(_split(_WORDS.replace("DIGITS", r"\p{N}{1,3}")), whole=True, bos=True)
_QWEN2 = Pre(_split(_WORDS.replace("DIGITS", r"\p{N}")), nfc=True)
PRE: dict[str, Pre] = {
    "gpt-2": Pre([_bytes(use_regex=True)]),
    "smollm": Pre([{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)]),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": Pre(_split(_TEKKEN), whole=True, bos=True),
}


class Vocabulary(NamedTuple):
    """The tokens of a file by id, and the type of each."""

    tokens: list[str]
    types: list[int]

    @classmethod
    def of(cls, metadata: Metadata) -> "Vocabulary":
        """Raises:
        CheckpointError: lists of different lengths, or a token that occurs twice.
        """
        tokens, types = metadata.texts("tokenizer.ggml.tokens"), [NORMAL]
        if "tokenizer.ggml.token_type" in metadata:
            types = metadata.numbers("tokenizer.ggml.token_type").tolist()
            if len(types) != len(tokens):
                raise metadata.refuse("tokenizer.ggml.token_type", f"{len(types)} types of {len(tokens)} tokens")
        else:
            types *= len(tokens)
        if len(set(tokens)) != len(tokens):
            twice = next(token for place, token in enumerate(tokens) if tokens.index(token) != place)
            raise metadata.refuse("tokenizer.ggml.tokens", f"{brief(twice)} is there twice")
        return cls(tokens, types)

    def special(self, metadata: Metadata, key: str) -> str | None:
        """The token that metadata names as BOS and so on; None if it names none."""
        name = f"tokenizer.ggml.{key}_token_id"
        if name not in metadata:
            return None
        index = metadata.number(name)
        if index >= len(self.tokens):
            raise metadata.refuse(name, f"it is {index}, but there are {len(self.tokens)} tokens")
        return self.tokens[index]


def tokenizer_of(metadata: Metadata) -> dict[str, Any] | None:
    """tokenizer.json; None if the file has no vocabulary.

    Raises:
        CheckpointError: a vocabulary of another kind, or entries that contradict each other.
    """
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    kind = metadata.text("tokenizer.ggml.model", "")
    if kind not in _KINDS:
        raise metadata.refuse("tokenizer.ggml.model", f"{kind!r:.80} is unknown; known are {', '.join(_KINDS)}")
    vocabulary = Vocabulary.of(metadata)
    return {"version": "1.0", "truncation": None, "padding": None, **_KINDS[kind](metadata, vocabulary)}


def tokenizer_settings(metadata: Metadata) -> dict[str, Any] | None:
    """tokenizer_config.json: names of special tokens, and the chat template."""
    if "tokenizer.ggml.tokens" not in metadata:
        return None
    vocabulary = Vocabulary.of(metadata)
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for key, spelled in NAMES.items():
        if (token := vocabulary.special(metadata, spelled)) is not None:
            found[f"{key}_token"] = token
    if "tokenizer.chat_template" in metadata:
        found["chat_template"] = metadata.text("tokenizer.chat_template")
    return found


def _byte_level(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, Any]:
    name = metadata.text("tokenizer.ggml.pre", "default")
    if name not in PRE:
        raise metadata.refuse(
            "tokenizer.ggml.pre", f"the pre-tokenizer {name!r:.80} is unknown; known are {', '.join(PRE)}"
        )
    pre, ids = PRE[name], {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = []
    for merge in metadata.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not (left in ids and right in ids and left + right in ids):
            raise metadata.refuse("tokenizer.ggml.merges", f"{brief(merge)} is no pair of tokens that make another")
        merges.append([left, right])
    return {
        "added_tokens": _added(metadata, vocabulary),
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": pre.parts[0] if len(pre.parts) == 1 else {"type": "Sequence", "pretokenizers": pre.parts},
        "post_processor": _around(metadata, vocabulary, bos=pre.bos),
        "decoder": _bytes(use_regex=True),
        "model": _bpe(ids, merges) | {"ignore_merges": pre.whole},
    }


def _sentence_piece(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, Any]:
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    scores = metadata.numbers("tokenizer.ggml.scores").tolist()
    if len(scores) != len(ids):
        raise metadata.refuse("tokenizer.ggml.scores", f"{len(scores)} scores of {len(ids)} tokens")
    pieces = {token: scores[index] for token, index in ids.items() if vocabulary.types[index] in (NORMAL, USER_DEFINED)}
    unknown = next((token for token, kind in zip(*vocabulary, strict=True) if kind == UNKNOWN), None)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix),
    ]  # fmt: skip
    normalizers = [*([{"type": "Prepend", "prepend": _SPACE}] * prefix), spaces]
    fallback = BYTE in vocabulary.types
    return {
        "added_tokens": _added(metadata, vocabulary),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _around(metadata, vocabulary, bos=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(ids, merges_of(pieces, ids))
        | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": fallback},
    }


_KINDS = {"gpt2": _byte_level, "llama": _sentence_piece}


def merges_of(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[list[str]]:
    """The merges that SentencePiece makes by its scores: every pair of pieces that makes a third, best first."""
    found = []
    for piece, score in scores.items():
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in scores and piece[i:] in scores]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[left, right] for *_, left, right in found]


def _bpe(ids: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": ids, "merges": merges,
    }  # fmt: skip


def _added(metadata: Metadata, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The tokens that are found in a text before it is cut into words: special ones, and those of users."""
    named = {vocabulary.special(metadata, spelled) for spelled in NAMES.values()}
    return [
        {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != USER_DEFINED}
        for index, (token, kind) in enumerate(zip(*vocabulary, strict=True))
        if token and (kind in (CONTROL, UNKNOWN, USER_DEFINED) or token in named)
    ]  # fmt: skip


def _around(metadata: Metadata, vocabulary: Vocabulary, *, bos: bool) -> dict[str, Any] | None:
    """What is put around a text. bos: whether BOS is, where the file says nothing."""
    first = (metadata.flag("tokenizer.ggml.add_bos_token", bos) and vocabulary.special(metadata, "bos")) or ""
    last = (metadata.flag("tokenizer.ggml.add_eos_token", False) and vocabulary.special(metadata, "eos")) or ""
    if not (first or last):
        return None

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        before, after = ([{"SpecialToken": {"id": token, "type_id": kind}}] * (token != "") for token in (first, last))
        return [*before, {"Sequence": {"id": name, "type_id": kind}}, *after]

    special = {token: {"id": token, "ids": [vocabulary.tokens.index(token)], "tokens": [token]}
               for token in (first, last) if token}  # fmt: skip
    return {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": special,
    }  # fmt: skip
