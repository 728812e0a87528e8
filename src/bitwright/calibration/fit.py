"""Checks whether a model can read texts: whether its vocabulary covers them, and how much of them it sees. No torch.

A text whose tokens are mostly unknown says nothing about a model, however small the loss on it. Neither does one in a
script that the vocabulary has letters of and no words: such a model was never taught the language.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.calibration.columns import Text
from bitwright.calibration.passages import Passage, language_name
from bitwright.errors import InputError

_MAX_UNKNOWN = 0.05  # share of a language's tokens that may be unknown
_MAX_UNKNOWN_GIVEN = 0.2  # of texts that the user chose, who may know why
_LEAST_SPELLING = 0.5  # letters per token, relative to the language that the vocabulary spells best
_LEAST_LETTERS = 0.7  # of scripts without spaces, where a character is a word, or half of one
_WITHOUT_SPACES = frozenset({"zh", "ja", "ko"})
_LEAST_DISTINCT = 0.5  # share of texts that are still different as tokens
_TRIED = 40  # texts of a language, of all its kinds: shares need no more
_OFTEN_CUT = 0.2  # share of texts longer than the model, which is told


@dataclass(frozen=True, slots=True)
class Reader:
    """How a model reads texts. name: for messages. tokenize: gives the ids of each text, special tokens included, cut
    at `max_tokens`. unknown: the id of the unknown token; None if the vocabulary covers everything.
    """

    name: str
    tokenize: Callable[[Sequence[Text]], Sequence[Sequence[int]]]
    unknown: int | None
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Statistics of texts as tokens. unknown: the share of unknown tokens.

    letters: characters other than white space, per token. distinct: share of texts that differ as tokens. cut: share
    that is as long as the model takes, and may have been longer.
    """

    n: int
    unknown: float
    letters: float
    distinct: float
    cut: float


def fit_of(texts: Sequence[Text], reader: Reader) -> Fit:
    """Compute the statistics of texts as tokens."""
    ids, unknown = [list(row) for row in reader.tokenize(texts)], reader.unknown
    n_tokens = max(1, sum(map(len, ids)))
    n_unknown = sum(row.count(unknown) for row in ids) if unknown is not None else 0
    letters = sum(len("".join(_whole(text).split())) for text in texts)
    return Fit(
        n=len(texts),
        unknown=n_unknown / n_tokens,
        letters=letters / n_tokens,
        distinct=len({tuple(row) for row in ids}) / max(1, len(ids)),
        cut=sum(len(row) >= reader.max_tokens for row in ids) / max(1, len(ids)),
    )


def readable(passages: Sequence[Passage], reader: Reader) -> tuple[tuple[Passage, ...], tuple[str, ...]]:
    """The passages in languages that a model's vocabulary covers, and the codes of the languages that it does not.

    Raises:
        InputError: it spells none of them; the message has the numbers.
    """
    by_language: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        by_language[passage.language].append(passage)
    fits = {
        language: fit_of([passage.text for passage in some[:: max(1, len(some) // _TRIED)]], reader)
        for language, some in by_language.items()
    }
    known = {
        language: fit
        for language, fit in fits.items()
        if fit.unknown <= _MAX_UNKNOWN and fit.distinct >= _LEAST_DISTINCT
    }
    best = max((fit.letters for language, fit in known.items() if language not in _WITHOUT_SPACES), default=0.0)
    kept = {
        language
        for language, fit in known.items()
        if fit.letters >= (_LEAST_LETTERS if language in _WITHOUT_SPACES else _LEAST_SPELLING * best)
    }
    if not kept:
        name, fit = min(fits.items(), key=lambda found: found[1].unknown)
        raise InputError(
            f"{reader.name}: the built-in texts do not fit the model's vocabulary. Of {fit.n} texts in "
            f"{language_name(name)}, {fit.unknown:.0%} of the tokens are unknown, and only {fit.distinct:.0%} of "
            "the texts differ as tokens. A loss on them would mean nothing. Give texts that the model is made for, "
            "with --data or --eval"
        )
    dropped = tuple(sorted(language for language in fits if language not in kept))
    return tuple(passage for passage in passages if passage.language in kept), dropped


def require_fit(texts: Sequence[Text], reader: Reader, what: str) -> list[str]:
    """Refuse the user's texts if a model cannot read them.

    what: where they come from, for messages.

    Returns:
        What a reader should know of them.

    Raises:
        InputError: over a fifth of the tokens unknown, or most texts alike as tokens.
    """
    if not texts:
        return []
    fit = fit_of(texts, reader)
    numbers = f"its vocabulary does not know {fit.unknown:.0%} of the tokens of {fit.n} texts"
    if fit.unknown > _MAX_UNKNOWN_GIVEN:
        raise InputError(
            f"{what}: {reader.name} cannot read these texts: {numbers}. They may be in another language or "
            "notation. A loss on them would mean nothing; give texts that the model is made for"
        )
    if fit.distinct < _LEAST_DISTINCT:
        raise InputError(
            f"{what}: only {fit.distinct:.0%} of {fit.n} texts differ as tokens of {reader.name}; give more "
            "different texts"
        )
    if fit.cut > _OFTEN_CUT:
        return [
            (f"{what}: {fit.cut:.0%} of the texts reach the limit of {reader.max_tokens} tokens, so they may be cut")
        ]
    return []


def _whole(text: Text) -> str:
    return text if isinstance(text, str) else " ".join(text)
