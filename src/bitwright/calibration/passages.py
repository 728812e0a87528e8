"""The built-in texts: texts of many kinds, written for Bitwright, and prose of Python's documentation. No torch.

A kind is a sort of text (news, mail, law …); a language is another matter, and a kind has several. `texts/KIND.jsonl`
has a line {"language", "text"} per passage; `rerank.jsonl`, `nli.jsonl` and `questions.jsonl` there have pairs, whose
lines name their kind.

What a run calibrates on, what it makes choices on and what judges are different kinds (`ROLES`): a loss on text like
that which a model was fitted to says little about other text.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from bitwright.calibration.columns import Text
from bitwright.errors import DataError

FOLDER = Path(__file__).parent.parent / "texts"
DOCUMENTATION = "documentation"  # prose of Python's documentation, which is not in the folder

Part = Literal["calibration", "tuning", "judging"]
PairSort = Literal["rerank", "nli", "questions"]

# Each group has prose, something short and something unlike both, so that none is one sort of text alone.
ROLES: dict[str, Part] = {
    DOCUMENTATION: "calibration", "encyclopaedia": "calibration", "reviews": "calibration", "code": "calibration",
    "news": "tuning", "products": "tuning", "fiction": "tuning", "speech": "tuning",
    "law": "judging", "queries": "judging", "answers": "judging", "chat": "judging", "forum": "judging",
    "medicine": "judging", "science": "judging", "mail": "judging", "markup": "judging", "scans": "judging",
}  # fmt: skip

_DOCUMENTATION = 1000  # sentences of it
_LANGUAGES = {
    "ar": "Arabic", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "pt": "Portuguese", "ru": "Russian", "tr": "Turkish",
    "zh": "Chinese",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, or a pair of texts, with its kind and its language (ISO 639-1)."""

    text: Text
    kind: str
    language: str


def language_name(code: str) -> str:
    """ "de" -> "German"; a code that no passage has stays as it is."""
    return _LANGUAGES.get(code, code)


@cache
def passages() -> tuple[Passage, ...]:
    """Every built-in text, kind by kind."""
    return tuple(passage for kind in ROLES for passage in _of_kind(kind))


@cache
def pair_passages(sort: PairSort) -> tuple[Passage, ...]:
    """Every built-in pair of a sort.

    "rerank": (query, passage), of which a third answers the query, a third is on its subject, a third on another.
    "nli": (premise, hypothesis): one that follows, one that may be, one that contradicts. "questions": (question,
    context), which has the answer.
    """
    made = _PAIRS[sort]
    rows = _rows(FOLDER / f"{sort}.jsonl")
    return tuple(Passage(pair, row["kind"], row["language"]) for row in rows for pair in made(row))


def of_kind(kind: str) -> tuple[Passage, ...]:
    """The built-in texts of one kind.

    Raises:
        DataError: no such kind; the message names the nearest.
    """
    if kind not in ROLES:
        near = get_close_matches(kind, ROLES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(
            f"builtin#{kind}: there is no built-in kind of text with this name{hint}; the kinds are {', '.join(ROLES)}"
        )
    return tuple(passage for passage in passages() if passage.kind == kind)


def _of_kind(kind: str) -> Iterator[Passage]:
    if kind == DOCUMENTATION:
        some = islice(dict.fromkeys(documentation_sentences()), _DOCUMENTATION)
        yield from (Passage(text, kind, "en") for text in some)
        return
    for row in _rows(FOLDER / f"{kind}.jsonl"):
        yield Passage(row["text"], kind, row["language"])


def documentation_sentences() -> Iterator[str]:
    """English sentences of 40 to 200 characters from `pydoc_data.topics` of the standard library (another version of
    Python may have others), in its order.

    A sentence ends with ., ! or ? before white space; runs of white space count as one space.
    """
    from pydoc_data.topics import topics

    for topic in topics.values():
        for sentence in re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", topic).strip()):
            if 40 <= len(sentence) <= 200:
                yield sentence


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _questions(row: dict[str, Any]) -> Sequence[Text]:
    return [(asked["question"], row["context"]) for asked in row["questions"]]


_PAIRS: dict[PairSort, Callable[[dict[str, Any]], Sequence[Text]]] = {
    "rerank": lambda row: [(row["query"], passage) for passage in row["passages"]],
    "nli": lambda row: [(row["premise"], row[sort]) for sort in ("entailment", "neutral", "contradiction")],
    "questions": _questions,
}
