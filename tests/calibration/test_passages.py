"""The built-in texts: many kinds, languages apart from kinds, nothing twice, small."""

from collections import Counter

import pytest

from bitwright.calibration.passages import FOLDER, ROLES, language_name, of_kind, pair_passages, passages
from bitwright.errors import DataError

SORTS = ("rerank", "nli", "questions")


def words(text: str) -> int:
    """Words; of scripts without spaces two characters are one."""
    spaceless = sum("\u3040" <= c <= "\u9fff" for c in text)
    return len(text.split()) + spaceless // 2


def test_kinds_and_languages_are_many() -> None:
    by_kind = Counter(passage.kind for passage in passages())
    assert len(by_kind) == len(ROLES) >= 12
    assert min(by_kind.values()) >= 100
    assert sum(by_kind.values()) - by_kind["documentation"] >= 1200
    english = Counter(passage.kind for passage in passages() if passage.language == "en")
    assert min(english.values()) >= 80
    languages = Counter(passage.language for passage in passages())
    assert len(languages) >= 8
    assert all(language_name(code) != code for code in languages)


def test_no_text_comes_twice_and_none_is_huge() -> None:
    texts = [passage.text for passage in passages()]
    assert len(set(texts)) == len(texts)
    assert all(1 <= words(str(text)) <= 400 for text in texts)
    assert sum(path.stat().st_size for path in FOLDER.glob("*.jsonl")) <= 1 << 20


@pytest.mark.parametrize("sort", SORTS)
def test_pairs_are_of_many_kinds(sort: str) -> None:
    pairs = pair_passages(sort)  # type: ignore[arg-type]
    kinds = Counter(passage.kind for passage in pairs)
    assert len(kinds) >= 12
    assert set(kinds) <= set(ROLES)
    assert len({passage.text for passage in pairs}) == len(pairs)
    assert all(isinstance(passage.text, tuple) and all(passage.text) for passage in pairs)
    parts = Counter(ROLES[kind] for kind in kinds)
    assert parts["judging"] >= 6
    assert min(parts["calibration"], parts["tuning"]) >= 3


def test_an_answer_lies_in_its_context() -> None:
    import json

    rows = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(asked["answer"] in row["context"] for row in rows for asked in row["questions"])


def test_a_kind_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"builtin#newz: .*did you mean 'news'"):
        of_kind("newz")
