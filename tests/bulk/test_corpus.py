"""Rows of files and folders of every form, in one order, and what changes between the two readings."""

import csv
import json
from pathlib import Path

import pytest

from bitwright.bulk.corpus import Texts, ids_of, read_corpus
from bitwright.errors import DataError

TEXTS = ["one text", 'two, "quoted"', "three\tparts", "the fourth"]


def written(folder: Path) -> list[str]:
    """A file of each form with the same texts, and files that are not read; the texts as they are read back."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "deep").mkdir(parents=True)
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS)))
    parquet.write_table(pa.table({"wide": [[0.5] * 9] * 4, "text": TEXTS}), folder / "c.parquet", row_group_size=3)
    (folder / "deep" / "d.txt").write_text("\n".join([*TEXTS, "", "  "]))
    for other in ("README.md", "_SUCCESS", ".hidden.jsonl"):
        (folder / other).write_text("nothing")
    return TEXTS * 4


def read_all(folder: Path, size: int, wanted: range) -> list[str]:
    corpus = read_corpus(Texts([str(folder)]), folder.parent / "out")
    return [text for _, texts in corpus.shards(size, wanted) for text in texts]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    expected = written(tmp_path / "data")
    corpus = read_corpus(Texts([str(tmp_path / "data")]), tmp_path / "out")
    assert (len(corpus), corpus.rows, corpus.ignored) == (16, (4, 4, 4, 4), 1)
    assert read_all(tmp_path / "data", 3, range(9)) == expected
    assert read_all(tmp_path / "data", 3, range(2, 4)) == expected[6:12]
    shard, _ = list(corpus.shards(5, range(9)))[1]
    assert ids_of(shard) == [5, 6, 7, 8, 9]
    assert "b.jsonl, line 2 to" in str(shard)
    assert "c.parquet, line 2" in str(shard)


def test_columns_are_named_for_all_or_for_one(tmp_path: Path) -> None:
    for name, field in (("a", "x"), ("b", "y")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "no", field: name}) + "\n")
    texts = Texts([str(tmp_path / "a.jsonl"), f"{tmp_path}/b.jsonl#y"], column="x")
    assert [text for _, found in read_corpus(texts, tmp_path / "out").shards(9, range(9)) for text in found] == [
        "a",
        "b",
    ]
    with pytest.raises(DataError, match="two columns are named"):
        read_corpus(Texts([f"{tmp_path}/b.jsonl#y,text"]), tmp_path / "out")
    with pytest.raises(DataError, match="named twice"):
        read_corpus(Texts([f"{tmp_path}/b.jsonl"] * 2), tmp_path / "out")


def test_a_missing_column_of_parquet_shows_all_that_there_are(tmp_path: Path) -> None:
    written(tmp_path / "data")
    with pytest.raises(DataError, match="there is no column body; the columns are wide, text"):
        read_corpus(Texts([str(tmp_path / "data" / "c.parquet")], column="body"), tmp_path / "out")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n")
    corpus = read_corpus(Texts([str(file)]), tmp_path / "out")
    file.write_text("one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"a\.txt: this file was changed"):
        list(corpus.shards(2, range(9)))


def test_a_folder_without_texts(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"no file in this folder has one of the endings \.jsonl"):
        read_corpus(Texts([str(tmp_path / "data")]), tmp_path / "out")
