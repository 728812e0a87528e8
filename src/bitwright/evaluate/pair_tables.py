"""Reads tables of labelled pairs, for rerankers and classifiers that read both texts of a pair together."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from bitwright.calibration.columns import PAIR_FIELDS, find_pair, named_columns
from bitwright.calibration.tables import read_rows
from bitwright.errors import DataError
from bitwright.evaluate.kinds import Classification, Items, Ranking
from bitwright.evaluate.labelled_rows import (
    COLUMNS,
    cell,
    class_index,
    find_column,
    number_in,
    read_header,
    refuse_constant,
    refuse_one_class,
)
from bitwright.evaluate.tasks import Task

# Kind of task -> names of the column with a pair's score, or its class.
_GOLD = {
    "similarity": (*COLUMNS["score"], "relevance", "gain"),
    "classification": (*COLUMNS["label"], "gold_label", "is_duplicate", "score"),
}
_TABLES = (".tsv", ".csv", ".jsonl", ".ndjson", ".parquet")


def load_pair_task(
    spec: str | Path, kind: str | None, *, label_names: Sequence[str] | None, evidence: str | None = None
) -> Task | None:
    """The task of a table of pairs; None if the table holds something else that the model can read.

    Args:
        spec: a table; "FILE#FIRST,SECOND" names the columns of the two texts, else `PAIR_FIELDS` does.
        kind: "similarity" for scores, "classification" for classes, None for what fits the model.
        label_names: the classes, in the order of the logits; None for a model that puts out one score.
        evidence: what shows that the model reads pairs, and nothing else.

    Raises:
        DataError: no pairs, and they are needed; a named column that is missing; a cell that is empty; scores that are
            no numbers or all equal, labels that are unknown to the classifier.
    """
    head, columns = (str(spec), []) if Path(spec).exists() else named_columns(str(spec))
    path, fitting = Path(head), "similarity" if label_names is None else "classification"
    if not path.exists() and not columns:
        return None
    fits = path.suffix.lower() in _TABLES and kind in (None, fitting) and len(columns) != 1
    found = _rows(path, columns, _GOLD[fitting]) if fits else None
    if found is None and (columns or evidence):
        what = "score" if label_names is None else "label"
        raise DataError(
            f"{path}: this model reads pairs of texts ({evidence or 'columns are named'}). Give a table with two "
            f"columns of texts, such as sentence1 and sentence2, and a column {what}. If the texts have other "
            f"names, write {path.name}#FIRST,SECOND"
        )
    if found is None:
        return None
    numbers, pairs = [number for number, _ in found], cast(Items, tuple((row[0], row[1]) for _, row in found))
    labels = [row[2] for _, row in found]
    if label_names is None:
        gold = np.array([number_in(label, path, number) for number, label in zip(numbers, labels, strict=True)])
        refuse_constant(gold, str(path))
        queries = {query: i for i, query in enumerate(dict.fromkeys(row[0] for _, row in found))}
        return Task(path.stem, pairs, Ranking(gold, np.array([queries[row[0]] for _, row in found])))
    index = {name.casefold(): i for i, name in enumerate(label_names)}
    classes = np.array([class_index(label, index, path, number) for number, label in zip(numbers, labels, strict=True)])
    refuse_one_class(classes, labels[0], str(path))
    return Task(path.stem, pairs, Classification(classes, len(label_names)))


def _rows(path: Path, columns: Sequence[str], gold: Sequence[str]) -> list[tuple[int, list[str]]] | None:
    """[first text, second text, score or label] of each row, with line numbers; None if the table lacks one of the
    columns.

    Raises:
        DataError: no rows; an empty cell; a named column that is missing.
    """
    numbered = list(read_rows(path))
    if not numbered:
        raise DataError(f"{path}: empty")
    known = {*(name for pair in PAIR_FIELDS for name in pair), *gold, *(name.casefold() for name in columns)}
    header, rows = read_header(path, numbered, known)
    if missing := [name for name in columns if name not in header]:
        raise DataError(
            f"{path}: there is no column {' and no column '.join(missing)}; the columns are {', '.join(header)}"
        )
    texts, label = columns or find_pair(header), find_column({name.casefold(): name for name in header}, gold)
    if not texts or label is None:
        return None
    if not rows:
        raise DataError(f"{path}: this file has no rows")
    return [(number, [cell(row, name, path, number) for name in (*texts, label)]) for number, row in rows]
