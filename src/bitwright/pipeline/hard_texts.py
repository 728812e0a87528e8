"""Texts that different tokenizers are known to read differently from the same files."""

from collections.abc import Iterable

from bitwright.runtime.items import Pair

_TEXTS = (
    "", " ", "  two spaces before", "a space at the end ", "a newline at the end\n", "\n\tinside  and\tout \r\n",
    "The Quick BROWN Fox", "Ünïcödé naïve café, e\u0301 a\u030a", "İstanbul straße \ufb01ne Ⅷ",
    "日本語 中文 한국어 ไทย", "🙂 \U0001f469\u200d\U0001f469\u200d\U0001f467 ☃",
    "zero\u200bwidth and\u00a0hard\u3000spaces", "don't a-b, c.d; (e) 'f' \"g\" 1,000.5 $5 50% #x @y _z_",
    "<s> [CLS] </s> [SEP] <mask> [MASK] <pad> [UNK]", "x" * 300, "CamelCase ALLCAPS snake_case http://a.b/c?d=e",
    "Paris is the capital of France.",
)  # fmt: skip
_LONG = "one word after another " * 40
_AROUND = ("{}", "the {} of France", "before{}after", " {} ")


def hard_texts(added: Iterable[str], limit: int) -> list[str]:
    """Texts with unusual case, spaces, rare letters, special and added tokens, and one text longer than `limit` tokens.

    added: contents of the tokenizer's added tokens.
    """
    tokens = [template.format(token) for token in list(added)[:20] for template in _AROUND]
    longer = _LONG * (min(limit, 4096) // 100 + 1)
    return [*_TEXTS, *tokens, longer]


def hard_pairs(texts: list[str]) -> list[Pair]:
    """Each text with the one before it; the first and the second text are each long once."""
    return list(zip(texts, [texts[-1], *texts[:-1]], strict=True))
