"""Tokenizers in GGUF files: what tokenizer.json says of them, and the other way."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bitwright.errors import CheckpointError, EngineError
from bitwright.files.gguf.directory import GgufDirectory
from bitwright.files.gguf.tokenizer import BYTE, CONTROL, NORMAL, PRE, UNKNOWN, USER_DEFINED
from bitwright.files.gguf.vocabulary import vocabulary_of
from bitwright.files.tokenizer import open_tokenizer
from tests.gguf_files import LLAMA, floats, small_llama, write_file

# A SentencePiece vocabulary: pieces with scores, and every byte.
_PIECES = {
    "\u2581": -1.0, "a": -2.0, "b": -3.0, "c": -4.0, "ab": -0.5, "bc": -0.2, "abc": -0.9, "\u2581a": -0.8, "cab": -0.7,
    "\u2581abc": -0.95, "ca": -0.75,
}  # fmt: skip
SPM: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<|user|>", *(f"<0x{i:02X}>" for i in range(256)), *_PIECES],
    "tokenizer.ggml.scores": [0.0] * 260 + list(_PIECES.values()),
    "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, USER_DEFINED] + [BYTE] * 256 + [NORMAL] * len(_PIECES),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
BPE: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["a", "b", "Ġ", "ab", "Ġab", "1", "<|begin|>", "<|eot_id|>"],
    "tokenizer.ggml.token_type": [NORMAL] * 6 + [CONTROL] * 2,
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.ggml.bos_token_id": 6,
    "tokenizer.ggml.eos_token_id": 6,
    "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
}


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., GgufDirectory]:
    """A small Llama with this vocabulary."""

    def opened(vocabulary: dict[str, Any], **changed: Any) -> GgufDirectory:
        entries = vocabulary | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
        tensors = [floats("token_embd.weight", 300, 32), *small_llama()[1:]]
        return GgufDirectory(write_file(tmp_path / "m.gguf", LLAMA | entries, tensors))

    return opened


def tokenizer(directory: GgufDirectory) -> Tokenizer:
    found = open_tokenizer(directory)
    assert found is not None
    return found.tokenizer


def by_scores(text: str) -> list[str]:
    """SentencePiece's way: join the two neighbours that make the piece of the best score, the leftmost of several."""
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        pairs = [(_PIECES[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in _PIECES]
        if not pairs:
            return [part for symbol in symbols for part in ([symbol] if symbol in _PIECES else
                    [f"<0x{byte:02X}>" for byte in symbol.encode()])]  # fmt: skip
        place = -max(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def test_a_sentencepiece_vocabulary_joins_by_score(opened: Callable[..., GgufDirectory]) -> None:
    found = tokenizer(opened(SPM))
    for text in ("abc", "cabcab bcab", "aabbcc abcabc", "a  b", "xé abc\n", "bcbcabc ca b"):
        assert found.encode(text).tokens == ["<s>", *by_scores(text)], text
        assert found.decode(found.encode(text).ids) == text
    assert found.encode("<|user|>").tokens[1:] == ["<|user|>"]


def test_a_prefix_and_bos_are_as_the_file_says(opened: Callable[..., GgufDirectory]) -> None:
    found = tokenizer(opened(SPM, add_space_prefix=False, add_bos_token=False, add_eos_token=True))
    assert found.encode("abc").tokens == ["abc", "</s>"]


def test_byte_level_words_special_tokens_and_the_template(opened: Callable[..., GgufDirectory]) -> None:
    directory = opened(BPE)
    found = tokenizer(directory)
    assert found.encode("ab ab<|eot_id|>1").tokens == ["<|begin|>", "ab", "Ġab", "<|eot_id|>", "1"]
    assert found.get_added_tokens_decoder()[7].special
    settings = directory.transformer.object("tokenizer_config.json")
    assert settings is not None
    assert settings["bos_token"] == "<|begin|>"
    assert settings["chat_template"] == BPE["tokenizer.chat_template"]
    assert directory.transformer.object("generation_config.json") == {"eos_token_id": [6, 7]}


@pytest.mark.parametrize("vocabulary", [SPM, BPE], ids=["sentencepiece", "byte-level"])
def test_a_vocabulary_comes_back(opened: Callable[..., GgufDirectory], vocabulary: dict[str, Any]) -> None:
    entries = vocabulary_of(opened(vocabulary), 300)
    size = len(vocabulary["tokenizer.ggml.tokens"])
    assert entries["tokenizer.ggml.tokens"][:size] == vocabulary["tokenizer.ggml.tokens"]
    assert entries["tokenizer.ggml.tokens"][size:] == [f"[PAD{i}]" for i in range(size, 300)]
    assert entries["tokenizer.ggml.token_type"][:size].tolist() == vocabulary["tokenizer.ggml.token_type"]
    for key in ("model", "pre", "bos_token_id", "eos_token_id"):
        assert entries.get(f"tokenizer.ggml.{key}") == vocabulary.get(f"tokenizer.ggml.{key}")
    assert entries.get("tokenizer.chat_template") == vocabulary.get("tokenizer.chat_template")
    first, again = tokenizer(opened(vocabulary)), tokenizer(opened(LLAMA | entries))
    for text in ("abcab  ab 1 cab", "<|eot_id|>ab<|user|>"):
        assert first.encode(text).ids == again.encode(text).ids


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model: 't5' is unknown"),
        ({"pre": "poro"}, "tokenizer.ggml.pre: the pre-tokenizer 'poro' is unknown; .*Put the model's tokenizer.json"),
        ({"merges": ["a x"]}, "tokenizer.ggml.merges: 'a x' is no pair"),
        ({"tokens": ["a"] * 8}, "tokenizer.ggml.tokens: 'a' is there twice"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type: 1 types of 8 tokens"),
        ({"bos_token_id": 99}, "tokenizer.ggml.bos_token_id: it is 99, but there are 8 tokens"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(
    opened: Callable[..., GgufDirectory], changed: dict[str, Any], says: str
) -> None:
    with pytest.raises((CheckpointError, EngineError), match=says):
        open_tokenizer(opened(BPE, **changed))


def test_an_unknown_kind_takes_the_tokenizer_that_lies_beside(
    opened: Callable[..., GgufDirectory], tmp_path: Path
) -> None:
    content = tokenizer(opened(BPE)).to_str()
    (tmp_path / "tokenizer.json").write_text(content)
    assert tokenizer(opened(BPE, pre="poro")).encode("ab").tokens == ["<|begin|>", "ab"]


def hard_texts(alphabet: str, count: int) -> list[str]:
    """Random texts of these characters and of what pre-tokenizers treat apart."""
    random = Random(1)
    pieces = [
        *alphabet,
        "'s",
        "I'LL",
        "  ",
        " \n\n ",
        "\r\n",
        "12345",
        "a/b?c=1",
        "snake_case",
        "HTMLParser",
        "\t\tif",
        "…",
    ]
    return ["".join(random.choices(pieces, k=random.randint(1, 60))) for _ in range(count)]


def differences(file: Path, texts: list[str]) -> list[str]:
    """The texts of which llama.cpp has other tokens."""
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs, ours = llama_cpp.Llama(str(file), vocab_only=True, verbose=False), tokenizer(GgufDirectory(file))
    return [text for text in texts if theirs.tokenize(text.encode(), special=True) != ours.encode(text).ids]


@pytest.mark.full
@pytest.mark.parametrize("name", PRE)
def test_byte_level_tokens_are_those_of_llama_cpp(
    opened: Callable[..., GgufDirectory], texts: list[str], name: str
) -> None:
    """Of composed characters: llama.cpp leaves out the NFC that transformers' Qwen2 does. Marks alone are left out."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=299, initial_alphabet=letters, show_progress=False)
    )
    content = json.loads(trained.to_str())["model"]
    entries = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.bos_token_id": 299,
        "tokenizer.ggml.tokens": [*sorted(content["vocab"], key=content["vocab"].__getitem__), "<s>"],
        "tokenizer.ggml.token_type": [NORMAL] * 299 + [CONTROL],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["merges"]],
    }  # fmt: skip
    file = opened(entries).path
    assert not differences(
        file, hard_texts("abcXYZéñßÀ中文日本 0123456789.,;:!?'()[]{}<>/@#$%^&*-_=+~\t\n\u00a0\u3000😀ابﬁ½Ａ", 1000)
    )


@pytest.mark.full
@pytest.mark.parametrize("changed", [{}, {"add_space_prefix": False}, {"add_bos_token": False}])
def test_sentencepiece_tokens_are_those_of_llama_cpp(
    opened: Callable[..., GgufDirectory], changed: dict[str, Any]
) -> None:
    random, pieces = Random(2), dict.fromkeys("\u2581abcde")
    while len(pieces) < 40:
        pieces["".join(random.choices("\u2581abcde", k=random.randint(2, 6)))] = None
    scores = random.sample(range(-40, 0), 40)
    entries = SPM | {
        "tokenizer.ggml.tokens": [*SPM["tokenizer.ggml.tokens"][:260], *pieces],
        "tokenizer.ggml.scores": [0.0] * 260 + [float(score) for score in scores],
        "tokenizer.ggml.token_type": [*SPM["tokenizer.ggml.token_type"][:260], *[NORMAL] * 40],
    }
    assert not differences(opened(entries, **changed).path, hard_texts("aaabbbcccddd   é", 1000))
