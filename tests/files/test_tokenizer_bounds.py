"""A tokenizer makes little of little, in little time, or is refused before it reads a text."""

import base64
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from bitwright.errors import EngineError
from bitwright.files.tokenizer import parts_of
from bitwright.files.tokenizer_bounds import check_growth, pattern_fault


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(text: str) -> dict[str, Any]:
    table = struct.pack("<I", 8) + bytes(8) + b"a\0" + text.encode() + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def several(inside: str, part: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "Sequence", inside: [part] * count}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
GOOD: dict[str, dict[str, Any]] = {
    "a letter for a letter": {"normalizer": replace("a" * 64, Regex=".")},
    "a word for a word": {"normalizer": replace("b" * 64, String="a" * 8)},
    "a usual table": {"normalizer": charsmap("\u0635\u0644\u0649 " * 4)},
    "a usual WordPiece": {"model": {"type": "WordPiece", "max_input_chars_per_word": 100}},
    "wrong patterns": {"normalizer": several("normalizers", {"type": "Replace", "pattern": {"String": 3}}, 2)},
    "wrong types": {
        "normalizer": 3,
        "pre_tokenizer": [],
        "post_processor": {"type": 1, "special_tokens": 2},
        "model": "",
    },
    "a broken table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "two that grow": (
        {"normalizer": several("normalizers", replace("ab" * 6, Regex="."), 2)},
        "the normalizer can turn one character into 144",
    ),
    "a table that grows": ({"normalizer": charsmap("x" * 1000)}, "the normalizer can turn one character into 1000"),
    "a beginning": ({"normalizer": {"type": "Prepend", "prepend": "a" * 101}}, "prepends 101 characters"),
    "many beginnings": (
        {"normalizer": several("normalizers", {"type": "Prepend", "prepend": "a" * 60}, 2)}, "prepends 120 characters"
    ),
    "many parts": ({"normalizer": several("normalizers", {"type": "NFKD"}, 101)}, "the normalizer has 102 parts"),
    "parts of parts": (
        {"pre_tokenizer": several("pretokenizers", several("pretokenizers", {"type": "Whitespace"}, 11), 11)},
        "the pre_tokenizer has 133 parts",
    ),
    "bytes of bytes": ({"pre_tokenizer": several("pretokenizers", LEVEL, 7)}, "ByteLevel 7 times"),
    "many pieces": (
        {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {}}] * 101}}, "joins 101 pieces"
    ),
    "a token of many ids": (
        {"post_processor": {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [0] * 1000}}}},
        "joins 1000 pieces",
    ),
    "long words": ({"model": {"max_input_chars_per_word": 10**9}}, "max_input_chars_per_word is 1000000000"),
    "a long piece": ({"model": {"vocab": [["a" * 600, -1.0]]}}, "a piece has 600 characters"),
    "a pattern": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa){1,22}[bc]"}}}, "could take for ever on a text"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_usual_tokenizer_passes(name: str) -> None:
    check_growth(Path("tokenizer.json"), GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_tokenizer_makes_little_of_little(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(EngineError, match=rf"tokenizer\.json: .*{message}"):
        check_growth(Path("tokenizer.json"), content)


def test_what_was_built_is_looked_at_like_a_file() -> None:
    long_words = Tokenizer(models.WordPiece({"a": 0}, unk_token="a", max_input_chars_per_word=5000))
    long_pieces = Tokenizer(models.Unigram([("a" * 600, -1.0)]))
    for tokenizer, message in ((long_words, "is 5000"), (long_pieces, "600 characters")):
        with pytest.raises(EngineError, match=message):
            check_growth(Path("tokenizer.json"), parts_of(tokenizer))


PUBLISHED = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|\s+(?!\S)|\s+",
    r"[!#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"<\|startoftext\|>|'s|'t|'re|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r" {2,}",
    r"[0-9][0-9][0-9]",
)
ENDLESS = (
    *("(a+)+b", "(a|a)*b", "(a|aa){1,22}[bc]", "a*a*a*[bc]", "a?" * 30 + "b", "(a?){50}", "(?:a{1,3})*b", "((a*)*)*"),
    *("(?x)([a-z]+) +!", "(?#[)(a+)+!(?#])", r"(?<a>a|b\g<a>)", "[)](a+)+", "[[)]](a+)+", "[]](a+)+", "[^]](a+)+"),
    *(r"\](a+)+", "a{1,100}a{1,100}a{1,100}b", "(?:(?:a|b)|c)+", "a**", "a" * 70_000, "a{1,9999999}"),
)


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_pass(pattern: str) -> None:
    assert pattern_fault(pattern) == ""


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_that_may_be_tried_for_ever_do_not(pattern: str) -> None:
    assert pattern_fault(pattern)
