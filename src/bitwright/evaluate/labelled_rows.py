"""Reads rows of labelled tables. Columns are found by name in any case, or by position if there is no header."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.calibration.tables import Row, read_lines, read_rows
from bitwright.errors import DataError

COLUMNS: dict[str, tuple[str, ...]] = {
    "sentence1": ("sentence1", "sentence_1", "text1", "text_a", "question1", "s1", "query"),
    "sentence2": ("sentence2", "sentence_2", "text2", "text_b", "question2", "s2", "candidate", "title"),
    "score": ("score", "similarity", "similarity_score", "relatedness_score", "gold", "label", "is_duplicate"),
    "text": ("text", "sentence", "content", "question", "review", "document"),
    "label": ("label", "labels", "class", "category", "target"),
}
# Kind of task -> the columns that it needs.
WANTED = {"similarity": ("sentence1", "sentence2", "score"), "classification": ("text", "label")}


def labelled_table(path: Path, kind: str | None) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """The kind of task of a table, and its rows by canonical column name, with line numbers.

    Raises:
        DataError: an empty file, columns that are missing, an empty cell.
    """
    if path.suffix == ".label":
        return "classification", [
            (number, _labelled_line(line, path, number)) for number, line in read_lines(path) if line
        ]
    numbered = list(read_rows(path))
    if not numbered:
        raise DataError(f"{path}: empty")
    header, rows = read_header(path, numbered, {name for names in COLUMNS.values() for name in names})
    columns = {name.strip().casefold(): name for name in header}
    kinds = [kind] if kind in WANTED else list(WANTED)
    for candidate in kinds:
        found = {want: find_column(columns, COLUMNS[want]) for want in WANTED[candidate]}
        if all(found.values()):
            return candidate, [
                (number, {want: cell(row, str(name), path, number) for want, name in found.items()})
                for number, row in rows
            ]
    wanted = "; or ".join(f"{', '.join(WANTED[candidate])} ({candidate})" for candidate in kinds)
    raise DataError(f"{path}: the columns are {', '.join(header)}, but one of these sets is needed: {wanted}")


def read_header(
    path: Path, numbered: list[tuple[int, Row]], known: Collection[str]
) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """The column names, and the rows as dicts. A first list of cells without any known name is a row, not a header.

    known: names of columns, in lower case.

    Raises:
        DataError: no header, and columns that their place does not explain.
    """
    first = numbered[0][1]
    if isinstance(first, dict):
        return list(first), [(number, row) for number, row in numbered if isinstance(row, dict)]
    if any(name.strip().casefold() in known for name in first):
        header, numbered = [name.strip() for name in first], numbered[1:]
    else:
        header = _guessed_header(path, first)
    return header, [(number, dict(zip(header, row, strict=False))) for number, row in numbered if isinstance(row, list)]


def _guessed_header(path: Path, first: list[str]) -> list[str]:
    """Names for the columns of a file without a header, from its first row."""
    match first:
        case [_, _, score] if _is_number(score):
            return ["sentence1", "sentence2", "score"]
        case [_, label] if _is_number(label):
            return ["text", "label"]
        case [label, _] if _is_number(label):
            return ["label", "text"]
    raise DataError(
        f"{path}: the first row ({len(first)} columns) is not a header, and its columns cannot be guessed. Add a "
        "header such as sentence1, sentence2, score or text, label"
    )


def _labelled_line(line: str, path: Path, number: int) -> dict[str, str]:
    label, _, text = line.partition(" ")
    if not text.strip():
        raise DataError(f"{path}, line {number}: a line must hold a label, a space and a text")
    return {"text": text.strip(), "label": label.partition(":")[0]}


def class_index(label: str, index: Mapping[str, int], path: Path, number: int) -> int:
    """The class of a label: a name in `index` in lower case, or a number.

    Raises:
        DataError: it is no class.
    """
    if label.casefold() in index:
        return index[label.casefold()]
    if label.isdecimal() and (not index or int(label) < len(index)):
        return int(label)
    raise DataError(
        f"{path}, line {number}: label {label!r} is not a class of the model; "
        + (
            f"its classes are {', '.join(index)}"
            if index
            else "give a class index (0, 1, …), or the names of its classes"
        )
    )


def find_column(columns: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The table's spelling of the first of `names` that it has. columns: lower-case name -> spelling."""
    return next((columns[name] for name in names if name in columns), None)


def cell(row: Mapping[str, Any], name: str, path: Path, number: int) -> str:
    """The text of a cell.

    Raises:
        DataError: there is none.
    """
    value = row.get(name)
    if value is None or not str(value).strip():
        raise DataError(f"{path}, line {number}: {name} is missing or empty; the row has {', '.join(map(str, row))}")
    return str(value).strip()


def number_in(text: str, path: Path, number: int) -> float:
    """The score that a cell holds.

    Raises:
        DataError: it is no finite number.
    """
    if not _is_number(text):
        raise DataError(f"{path}, line {number}: score {text!r} is not a number")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def refuse_constant(gold: np.ndarray, where: str) -> None:
    """Raises:
    DataError: scores that are all equal.
    """
    if len(gold) and (gold == gold[0]).all():
        raise DataError(f"{where}: all {len(gold)} scores are {gold[0]:g}, so they rank nothing; give different scores")


def refuse_one_class(gold: np.ndarray, label: str, where: str) -> None:
    """Refuse labels that are all the same. label: the label of the first row.

    Raises:
        DataError: all rows have the same label.
    """
    if len(gold) and (gold == gold[0]).all():
        raise DataError(
            f"{where}: all {len(gold)} labels are {label!r}, so a model that always gives this answer would be "
            "right. Give examples of the other classes too"
        )
