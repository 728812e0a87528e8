"""Labelled data that could not say anything are refused, with numbers and what to do."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bitwright.errors import DataError
from bitwright.evaluate import labelled_task, load_task
from bitwright.evaluate.usable import refuse_copies, refuse_few

CONFIG = SimpleNamespace(id2label={0: "neg", 1: "pos"}, num_labels=2)


def table(path: Path, rows: list[tuple[str, ...]], *header: str) -> Path:
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]), encoding="utf-8")
    return path


def reviews(path: Path, n: int, distinct: int) -> Path:
    return table(path, [(f"film {i % distinct}", ["neg", "pos"][i % 2]) for i in range(n)], "text", "label")


def test_one_class_tells_nothing_apart(tmp_path: Path) -> None:
    single = table(tmp_path / "a.tsv", [(f"film {i}", "pos") for i in range(30)], "text", "label")
    pairs = table(tmp_path / "b.tsv", [(f"a {i}", f"b {i}", "pos") for i in range(30)], "text1", "text2", "label")
    for file in (single, pairs):
        with pytest.raises(DataError, match=rf"{file.name}: all 30 labels are 'pos', so .*Give examples"):
            labelled_task("sequence-classification", CONFIG, file)


def test_ten_rows_are_refused_with_what_they_could_show(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^a.tsv: there are only 10 examples.* 5 can never exclude a loss of 60%.*at least 20"
    ):
        refuse_few(load_task(reviews(tmp_path / "a.tsv", 10, 10), label_names=["neg", "pos"]), "a.tsv")
    refuse_few(load_task(reviews(tmp_path / "b.tsv", 20, 20), label_names=["neg", "pos"]), "b.tsv")


def test_copies_are_no_evidence(tmp_path: Path) -> None:
    file = reviews(tmp_path / "a.tsv", 90, 44)
    with pytest.raises(DataError, match="only 44 of 90 examples are different"):
        labelled_task("sequence-classification", CONFIG, file)
    labelled_task("sequence-classification", CONFIG, reviews(file, 90, 46))
    rows = [("a", f"b {i % 5}", str(i % 3)) for i in range(30)]
    with pytest.raises(DataError, match="only 5 of 30 pairs are different"):
        labelled_task("embedding", CONFIG, table(file, rows, "sentence1", "sentence2", "score"))


def test_a_corpus_of_a_retrieval_task_may_repeat_itself(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"_id": "d{i}", "text": "same"}}\n' for i in range(30)))
    (tmp_path / "queries.jsonl").write_text("".join(f'{{"_id": "q{i}", "text": "query {i}"}}\n' for i in range(20)))
    (tmp_path / "qrels.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(20)))
    refuse_copies(load_task(tmp_path), "here")
