"""Small vocabularies: of each kind that tokenizers have, the entries come from the texts that are compared."""

import re
from functools import cache

# Ordinary and awkward: capitals, accents, other scripts, emoji, spaces and line ends, long ones, added tokens inside.
TEXTS: tuple[str, ...] = (
    "a man is eating food.",
    "The Quick Brown Fox jumps over the LAZY dog.",
    "Paris is the capital of France",
    "Café crème à la Crémerie, naïve façade; ÉTÉ",
    "東京は日本の首都です。中国 text",
    "emoji 🙂 and 👩‍💻 stay",
    "  leading and trailing  spaces   ",
    "two\nlines\tand a tab\n",
    "hello",
    "",
    "it's 3.5% of $1,000 -- isn't it? (yes)",
    "a <ent> of NEWTOK and newtok, <ent>!",
    "unaffable ﬁne Ǆ ẞtraße İstanbul",
    "the cat sat on the mat and the dog sat on the log while the man was eating the food that the fox had left " * 4,
    "special [MASK] and <mask> in [CLS] a <s> text </s> [SEP] with [PAD] and <pad> or [UNK] <unk> <|endoftext|> inside",
    "say <pad> or [PAD] and go on",
)
PAIRS: tuple[tuple[str, str], ...] = (
    ("what is eating food?", "a man is eating food."),
    ("The Capital of France", TEXTS[2]),
    (TEXTS[3], TEXTS[1]),
    ("hello", "hello"),
    (TEXTS[4], TEXTS[11]),
    ("which dog", TEXTS[13]),
    (TEXTS[13], TEXTS[13][20:]),
)
PROMPT = "Query: the "
UNUSED = ("[unused1]", "[unused2]")
ADDED = ("<ent>", "NEWTOK")  # special, and not

# Every second word of the texts, so that words are found whole, in pieces, and not at all.
_WORDS = list(dict.fromkeys(word for text in (PROMPT, *TEXTS) for word in re.findall(r"\w+|[^\w\s]", text)))[::2]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:'()-%$?!<>éèçàÉïß東京日本中国🙂"


def word_pieces(specials: tuple[str, ...]) -> dict[str, int]:
    """Of WordPiece: the id of each entry."""
    words = [form for word in _WORDS for form in (word, word.lower())]
    entries = [*specials, *UNUSED, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *words]
    return {entry: i for i, entry in enumerate(dict.fromkeys(entries))}


def unigrams(specials: tuple[str, ...]) -> list[tuple[str, float]]:
    """Of SentencePiece's unigram model: each piece and its score."""
    words = [form for word in _WORDS for form in (f"▁{word}", f"▁{word.lower()}", word[:3])]
    pieces = (
        dict.fromkeys(specials, 0.0) | {"▁": -3.0} | {letter: -9.0 for letter in _LETTERS if letter not in specials}
    )
    for rank, word in enumerate(words):
        pieces.setdefault(word, -4.0 - rank / 100)
    return list(pieces.items())


def byte_pairs(specials: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Of byte-level BPE: the id of each entry, and the merges."""
    words = [form for word in _WORDS for form in (f" {word}", word.lower(), f" {word.lower()}")]
    spelled = ["".join(_BYTES[byte] for byte in word.encode()) for word in words]
    return _merged([*specials, *_BYTES.values()], spelled)


def gemma_pairs(specials: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Of BPE over characters with bytes to fall back on: the id of each entry, and the merges."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    return _merged([*specials, *fallback, "▁", *_LETTERS], [f"▁{word}" for word in _WORDS])


def _merged(entries: list[str], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Merges that put each word together from its left end."""
    known, merges = dict.fromkeys(entries), []
    for word in words:
        for end in range(1, len(word)):
            made = word[: end + 1]
            if word[end] not in known or made in known:
                continue
            if word[:end] in known:
                merges.append((word[:end], word[end]))
                known[made] = None
    return {entry: i for i, entry in enumerate(known)}, merges


@cache
def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones stand for themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return dict(sorted({b: chr(b) for b in plain}.items() | {b: chr(256 + i) for i, b in enumerate(others)}.items()))


_BYTES = _byte_letters()
