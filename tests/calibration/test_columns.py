"""Columns are those that the user names, or that are known to hold texts, or pairs of them; nothing else is read."""

import json
from pathlib import Path

import pytest

from bitwright.calibration.columns import PAIR_FIELDS, TextPair, find_pair
from bitwright.calibration.data import in_pairs, load_texts, mix, parse_sources
from bitwright.errors import DataError

PAIRS = [(f"Question number {i}?", f"{i}") for i in range(30)]


def written(path: Path, fields: tuple[str, ...], rows: list[TextPair]) -> str:
    lines = ["\t".join(fields), *("\t".join((*row, "1")[: len(fields)]) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def read(spec: str) -> list[object]:
    return list(mix([in_pairs(source) for source in parse_sources([spec])], 1000))


@pytest.mark.parametrize("fields", PAIR_FIELDS)
def test_pairs_are_found_by_their_usual_names(tmp_path: Path, fields: tuple[str, str]) -> None:
    header = ("id", fields[0].upper(), "score", fields[1])
    path = tmp_path / "pairs.jsonl"
    rows = [dict(zip(header, ("7", a, "1", b), strict=True)) for a, b in PAIRS]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert sorted(map(tuple, read(str(path)))) == sorted(PAIRS)  # type: ignore[call-overload]


def test_named_columns_come_first(tmp_path: Path) -> None:
    path = written(tmp_path / "t.tsv", ("sentence2", "sentence1"), PAIRS)
    assert sorted(read(f"{path}#sentence2,sentence1")) == sorted(PAIRS)
    assert sorted(read(path)) == sorted((b, a) for a, b in PAIRS)
    assert sorted(read(f"{path}#sentence2:0.5")) == sorted(a for a, _ in PAIRS)  # one column: single texts


def test_of_questions_with_contexts_the_answers_are_not_read() -> None:
    assert find_pair(["id", "title", "context", "question", "answers", "answer"]) == ("question", "context")
    assert find_pair(["text", "label"]) is None


def test_lines_of_text_stay_single(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one line\nanother line\n", encoding="utf-8")
    assert not in_pairs(*parse_sources([str(tmp_path / "t.txt")])).pairs
    assert not in_pairs(*parse_sources(["builtin"])).pairs
    assert in_pairs(*parse_sources(["org/name"])).pairs


def test_a_pair_comes_once_in_a_seeded_order(tmp_path: Path) -> None:
    (source,) = parse_sources([written(tmp_path / "t.tsv", ("query", "document"), [*PAIRS, *PAIRS])])
    some = mix([in_pairs(source)], 10, seed=1)
    assert some == mix([in_pairs(source)], 10, seed=1)
    assert some != mix([in_pairs(source)], 10, seed=2)
    assert len(set(some)) == 10


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        (
            ("a", "b"),
            "",
            "line 1: no two columns have names that are usual for pairs; the columns are a, b. Name the columns: ",
        ),
        (("a", "b"), "#a,c", "line 1: there are no columns a and c; the columns are a, b"),
        (("a", "b"), "#a,b,c", "#a,b,c must name one column or two"),
        (("a", "b"), "#a,", "#a, must name one column or two"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, fields: tuple[str, str], spec: str, message: str) -> None:
    path = written(tmp_path / "t.tsv", fields, PAIRS)
    with pytest.raises(DataError) as caught:
        read(f"{path}{spec}")
    assert message in str(caught.value)


@pytest.mark.parametrize(("row", "empty"), [(("alone", " "), "document"), (("", "alone"), "query")])
def test_half_a_pair_is_refused_with_its_line(tmp_path: Path, row: TextPair, empty: str) -> None:
    path = written(tmp_path / "t.tsv", ("query", "document"), [*PAIRS[:3], row])
    with pytest.raises(DataError, match=f"line 5: {empty} is empty, but a pair needs two"):
        read(path)


def test_what_takes_single_texts_refuses_pairs(tmp_path: Path) -> None:
    path = written(tmp_path / "t.tsv", ("query", "document"), PAIRS)
    with pytest.raises(DataError, match="two columns are named, but single texts are read here"):
        load_texts(f"{path}#query,document")
