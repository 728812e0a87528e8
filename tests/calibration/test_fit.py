"""Texts that a vocabulary cannot spell are left out, or refused, with the numbers."""

from collections.abc import Callable, Sequence

import pytest

from bitwright.calibration.columns import Text
from bitwright.calibration.fit import Reader, readable, require_fit
from bitwright.calibration.passages import Passage
from bitwright.errors import InputError

UNKNOWN = 1


def by_words(known: Callable[[str], bool]) -> Reader:
    """A vocabulary of the words for which `known` holds."""

    def tokenize(texts: Sequence[Text]) -> list[list[int]]:
        return [[2 + hash(word) % 1000 if known(word) else UNKNOWN for word in str(text).split()] for text in texts]

    return Reader("model", tokenize, UNKNOWN, 16)


def by_letters(text_of_words: str) -> Reader:
    """Words of this alphabet are tokens, others are spelled letter by letter."""

    def tokenize(texts: Sequence[Text]) -> list[list[int]]:
        rows = []
        for text in texts:
            words = [[word] if set(word) <= set(text_of_words) else list(word) for word in str(text).split()]
            rows.append([2 + hash(piece) % 1000 for word in words for piece in word])
        return rows

    return Reader("model", tokenize, UNKNOWN, 1000)


ENGLISH = [Passage(f"ordinary words number {i} stand here", "news", "en") for i in range(20)]
RUSSIAN = [Passage(f"обычные слова номер {i} стоят здесь", "news", "ru") for i in range(20)]


def test_languages_that_are_unknown_are_left_out() -> None:
    kept, dropped = readable([*ENGLISH, *RUSSIAN], by_words(str.isascii))
    assert kept == tuple(ENGLISH)
    assert dropped == ("ru",)


def test_languages_that_are_spelled_letter_by_letter_are_left_out() -> None:
    latin = by_letters("abcdefghijklmnopqrstuvwxyz0123456789")
    assert readable([*ENGLISH, *RUSSIAN], latin)[1] == ("ru",)
    assert readable([*ENGLISH, *RUSSIAN], by_words(lambda word: True))[1] == ()


def test_a_vocabulary_without_words_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        InputError, match=r"do not fit the model.s vocabulary. Of 20 texts in English, 100% .*--data or --eval"
    ):
        readable(ENGLISH, by_words(lambda word: False))


def test_given_texts_that_are_unknown_or_alike_are_refused() -> None:
    texts = [str(passage.text) for passage in RUSSIAN]
    with pytest.raises(InputError, match=r"eval\.tsv: model cannot read these texts: .* 83% of the tokens of 20 texts"):
        require_fit(texts, by_words(str.isascii), "eval.tsv")
    with pytest.raises(InputError, match="only 10% of 20 texts differ as tokens"):
        require_fit([f"x{' ' * i}y" for i in range(20)], by_words(lambda word: True), "eval.tsv")
    assert require_fit(texts, by_words(lambda word: True), "eval.tsv") == []
    (told,) = require_fit(["many words " * 20 + str(i) for i in range(9)], by_words(lambda word: True), "eval.tsv")
    assert "100% of the texts reach the limit of 16 tokens" in told
