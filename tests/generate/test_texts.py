"""Text that arrives token by token is the text of all tokens."""

import json
import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bitwright.generate.texts import Detokenizer, StopStrings
from tests.families import small_tokenizer

SCRIPTS = [
    "Hello world, it isn't  over — don't stop.\n\tTabs, too; x = f(a[1], **b)\r\n\r\n",
    "Ünïcode Á à ß. Œuvre; naïve café e\u0301",
    "汉字 and 漢字、ひらがな カタカナ 한국어 문장.",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم",
    "हिन्दी में पाठ। ภาษาไทย தமிழ்",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 🇩🇪 😀😀 𝔘𝔫𝔦 \U0001f9d1\U0001f3fd",
    " leading,  double   spaces and trailing  ",
    "a\ufffdb \ufffd",
    "",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trained(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: "▁" for spaces, unknown characters as bytes, the first space of a text dropped."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trained(tokenizer, trainers.BpeTrainer, special_tokens=["<unk>", "<s>"], initial_alphabet=list("abc▁"))
    state = tokenizer.to_str()
    return with_pieces(state, bytes_)


def with_pieces(state: str, pieces: list[str]) -> Tokenizer:
    """The tokenizer with further pieces in its model's vocabulary."""
    content = json.loads(state)
    vocabulary = content["model"]["vocab"]
    vocabulary |= {piece: len(vocabulary) + i for i, piece in enumerate(pieces)}
    return Tokenizer.from_str(json.dumps(content))


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trained(tokenizer, trainers.UnigramTrainer, special_tokens=["<unk>"], unk_token="<unk>")
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trained(tokenizer, trainers.WordPieceTrainer, special_tokens=["[UNK]", "[CLS]"])
    return tokenizer


def word_ends() -> Tokenizer:
    """As GPT's: </w> ends a word, and the last word's is dropped."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    trained(tokenizer, trainers.BpeTrainer, end_of_word_suffix="</w>")
    return tokenizer


def no_decoder() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trained(tokenizer, trainers.WordLevelTrainer, special_tokens=["?"])
    return tokenizer


def trained(tokenizer: Tokenizer, trainer: Callable[..., object], **how: object) -> None:
    known = SCRIPTS[:4]  # others are taken apart into bytes, or unknown
    tokenizer.train_from_iterator(known * 3, trainer(vocab_size=400, show_progress=False, **how))


MADE = {
    make.__name__: make for make in (byte_level, byte_fallback, metaspace, word_piece, word_ends, no_decoder)
}  # fmt: skip


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(one) for one in ids), detokenizer.rest()]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: make() for name, make in MADE.items()}


@pytest.mark.parametrize("name", MADE)
def test_pieces_joined_are_the_text(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[name]
    for text in [*SCRIPTS, " ".join(SCRIPTS)]:
        ids = tokenizer.encode(text).ids
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", MADE)
def test_pieces_of_any_tokens_are_the_text(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    """Also of tokens that no text has: bytes that are no character, spaces alone, special tokens between."""
    tokenizer, draw = tokenizers[name], random.Random(0)
    size = tokenizer.get_vocab_size()
    often = [
        one
        for piece in ("▁", "▁▁", "Ġ", "ð", "<0xF0>", "<0x41>", "<s>", "[CLS]")
        if (one := tokenizer.token_to_id(piece))
    ]
    for _ in range(400):
        ids = [
            draw.choice(often) if often and draw.random() < 0.3 else draw.randrange(size + 3)
            for _ in range(draw.randrange(20))
        ]
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids), ids


def test_no_half_of_a_character_is_given_out(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    for text in (one for one in SCRIPTS if "\ufffd" not in one):
        assert not any("\ufffd" in piece for piece in pieces(tokenizer, tokenizer.encode(text).ids))
    ids = tokenizer.encode("é😀").ids
    assert [piece for piece in pieces(tokenizer, [*ids, ids[-1]]) if piece] == ["é", "😀", "\ufffd"]


def test_text_comes_with_its_token(tokenizers: dict[str, Tokenizer]) -> None:
    """Nothing is held back that need not be."""
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("Hello world, stop.").ids
    assert all(pieces(tokenizer, ids)[:-1])


def test_the_small_models_tokenizer(texts: list[str]) -> None:
    tokenizer = small_tokenizer(0, texts).backend_tokenizer
    for text in texts[:40]:
        ids = tokenizer.encode(text).ids
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_special_tokens_are_as_the_model_says(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.encode("ab cd").ids
    detokenizer = Detokenizer(tokenizer, special_ids=ids[1:2])
    assert "".join(map(detokenizer.add, ids)) == tokenizer.decode([ids[0], *ids[2:]])


def stopped(strings: list[str], given: list[str]) -> tuple[list[str], str | None]:
    stops = StopStrings(strings)
    return [*map(stops.add, given), stops.rest()], stops.found


def test_a_stop_string_is_found_across_pieces() -> None:
    assert stopped(["\n\nUser:"], ["Hi.\n", "\nUs", "er: more", " x"]) == (["Hi.", "", "", "", ""], "\n\nUser:")
    assert stopped(["END"], ["a E", "N", "x E", "N"]) == (["a ", "", "ENx ", "", "EN"], None)
    assert stopped(["END", "b"], ["abEND"]) == (["a", ""], "b")
    assert stopped([], ["a", "b"]) == (["a", "b", ""], None)
    assert stopped(["aab"], ["aaa", "ab"]) == (["a", "a", ""], "aab")


def test_stops_equal_a_search_in_the_whole_text() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab", k=draw.randrange(12)))
        stop = "".join(draw.choices("ab", k=draw.randrange(1, 5)))
        cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(4)))
        given = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        parts, found = stopped([stop], given)
        assert "".join(parts) == text.partition(stop)[0]
        assert (found is not None) == (stop in text)
