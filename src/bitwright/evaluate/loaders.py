"""Loads tasks from files.

    retrieval          a directory: corpus.jsonl (_id or id, title, text), queries.jsonl (_id or id, text),
                       qrels.tsv or qrels/test.tsv (query, document, gain; with a header or the four columns of TREC)
    similarity         .tsv, .csv, .jsonl, .parquet: sentence1, sentence2, score (or a label 0/1)
    classification     the same files: text (or sentence), label; .label as TREC's questions: "COARSE:fine question"
    similarity matrix  .npz with `texts` and `matrix`, or a directory: texts.txt or texts.jsonl, and matrix.csv, .tsv,
                       .txt or .npy (n × n; only the upper triangle is needed)
    label-free         any file of texts
    custom             "file.py:function"; see `load_custom`

Columns are found by name, whatever their case, or by place where there is no header.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bitwright.calibration.data import load_texts
from bitwright.calibration.tables import read_lines, read_rows
from bitwright.errors import DataError
from bitwright.evaluate.custom import load_custom
from bitwright.evaluate.kinds import Classification, Pairs, Retrieval, SimilarityMatrix
from bitwright.evaluate.labelled_rows import class_index, labelled_table, number_in, refuse_constant, refuse_one_class
from bitwright.evaluate.tasks import Task, label_free_task

KINDS = ("similarity", "similarity matrix", "retrieval", "classification", "label-free", "custom")

_MATRIX_FILES = ("matrix.npy", "matrix.csv", "matrix.tsv", "matrix.txt")
_TEXT_FILES = ("texts.txt", "texts.jsonl")
# What numpy raises on a file of arrays that is truncated, damaged or another kind of file.
_ARRAY_ERRORS = (KeyError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load_task(
    spec: str | Path, kind: str | None = None, *, label_names: Sequence[str] | None = None, macro_f1: bool = False
) -> Task:
    """The task of a file, a directory or "file.py:function". Without `kind`, the layout decides.

    Args:
        kind: one of KINDS.
        label_names: the classifier's classes in the order of its logits (id2label): labels that are words need them.
        macro_f1: score a classification by macro F1 instead of accuracy.

    Raises:
        DataError: nothing there, no layout above, columns missing, no rows, a score that is no number, labels that are
            all equal or unknown to the classifier.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"{kind} is not a kind of task; known are {', '.join(KINDS)}")
    path = Path(spec)
    if kind == "custom" or (kind is None and ".py:" in str(spec)):
        return load_custom(str(spec))
    if not path.exists():
        raise DataError(f"{path}: there is no such file or directory")
    if kind == "label-free":
        return label_free_task(load_texts(str(path)), name=path.stem)
    if path.is_dir():
        return _load_directory(path, kind)
    if path.suffix == ".npz":
        return _load_npz(path, kind)
    return _load_table(path, kind, label_names, macro_f1)


def similarity_matrix_task(texts: Sequence[str], matrix: ArrayLike, *, name: str = "similarity matrix") -> Task:
    """A task of documents with the human similarity of every pair, (n, n).

    The diagonal is ignored; the lower triangle is either all zero or equal to the upper one.

    Raises:
        DataError: fewer than three documents, another shape, no numbers, values that are not finite, contradict or
            never vary.
    """
    try:
        gold_UU = np.asarray(matrix, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: not a matrix of numbers ({error})") from None
    if len(texts) < 3 or gold_UU.shape != (len(texts), len(texts)):
        raise DataError(
            f"{name}: the matrix has the shape {gold_UU.shape} for {len(texts)} texts, but n × n with n ≥ 3 is needed"
        )
    upper, lower = np.triu(gold_UU, 1), np.tril(gold_UU, -1)
    if not np.isfinite(gold_UU).all():
        raise DataError(f"{name}: the matrix has NaN or infinite values; correct them")
    if lower.any() and not np.allclose(lower.T, upper):
        row, column = (int(i) for i in np.argwhere(~np.isclose(lower.T, upper))[0])
        raise DataError(
            f"{name}: the matrix is not symmetric: {gold_UU[row, column]:g} at ({row}, {column}), but "
            f"{gold_UU[column, row]:g} at ({column}, {row}). Make both equal, or leave the lower triangle 0"
        )
    refuse_constant(upper[np.triu_indices(len(texts), 1)], name)
    return Task(name, tuple(texts), SimilarityMatrix(upper + upper.T))


def _load_directory(path: Path, kind: str | None) -> Task:
    has_retrieval = (path / "corpus.jsonl").exists()
    if kind == "retrieval" or (kind is None and has_retrieval):
        return _load_retrieval(path)
    if kind in (None, "similarity matrix"):
        texts_file = next((path / name for name in _TEXT_FILES if (path / name).exists()), None)
        matrix_file = next((path / name for name in _MATRIX_FILES if (path / name).exists()), None)
        if texts_file and matrix_file:
            return similarity_matrix_task(_plain_texts(texts_file), _plain_matrix(matrix_file), name=path.name)
    found = ", ".join(sorted(item.name for item in path.iterdir())[:10])
    raise DataError(
        f"{path}: the directory holds {found or 'nothing'}. It must hold corpus.jsonl, queries.jsonl and qrels.tsv "
        f"(retrieval), or {' or '.join(_TEXT_FILES)} with {' or '.join(_MATRIX_FILES)} (similarity matrix)"
    )


def _load_npz(path: Path, kind: str | None) -> Task:
    if kind not in (None, "similarity matrix"):
        raise DataError(f"{path}: Bitwright reads an .npz file as a similarity matrix, not as a task of kind {kind}")
    needed = f"{path}: this file must hold the arrays `texts` (strings) and `matrix` (n × n)"
    try:
        # np.load alone would give a bare array where the file is really an .npy.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            texts, matrix = arrays["texts"], arrays["matrix"]
    except _ARRAY_ERRORS as error:
        raise DataError(f"{needed} ({error})") from None
    if texts.ndim != 1:
        raise DataError(f"{needed}, but texts has the shape {texts.shape}")
    return similarity_matrix_task([str(text) for text in texts], matrix, name=path.stem)


def _plain_texts(path: Path) -> list[str]:
    if path.suffix == ".txt":
        return [line for _, line in read_lines(path) if line.strip()]
    return [_text(row, path, number) for number, row in _dicts(path)]


def _plain_matrix(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
        return np.loadtxt((line for _, line in read_lines(path)), delimiter=delimiter, ndmin=2)
    except _ARRAY_ERRORS as error:
        raise DataError(f"{path}: not a matrix of numbers ({error})") from None


# -- retrieval --------------------------------------------------------------------------------------------------------


def _load_retrieval(path: Path) -> Task:
    qrels = next(
        (path / name for name in ("qrels.tsv", "qrels/test.tsv") if (path / name).exists()), path / "qrels.tsv"
    )
    documents = _identified(path / "corpus.jsonl")
    queries = _identified(path / "queries.jsonl")
    document_index = {key: i for i, key in enumerate(documents)}
    gains: dict[str, dict[int, float]] = {}
    n_judged, n_unknown = 0, 0
    for query, document, gain in _judgements(qrels):
        n_judged += 1
        if query not in queries or document not in document_index:
            n_unknown += 1
        elif gain > 0:
            gains.setdefault(query, {})[document_index[document]] = gain
    if n_unknown == n_judged:
        raise DataError(f"{qrels}: none of its {n_judged} judgements names a query and a document in {path}")
    judged = [key for key in queries if key in gains]
    if not judged:
        raise DataError(f"{qrels}: no query has a document with a gain above 0")
    relevant = tuple((np.array(list(gains[key])), np.array(list(gains[key].values()))) for key in judged)
    texts = (*documents.values(), *(queries[key] for key in judged))
    return Task(path.name, texts, Retrieval(len(documents), relevant))


def _identified(path: Path) -> dict[str, str]:
    """id -> title and text, joined by a space."""
    texts: dict[str, str] = {}
    for number, row in _dicts(path):
        key = row.get("_id", row.get("id"))
        if key is None:
            raise DataError(f"{path}, line {number}: there is no _id or id; the keys are {', '.join(row)}")
        title = row.get("title") or ""
        texts[str(key)] = f"{title} {_text(row, path, number)}".strip()
    if not texts:
        raise DataError(f"{path}: empty")
    return texts


def _judgements(path: Path) -> Iterator[tuple[str, str, float]]:
    """query id, document id, gain; four columns are TREC's, whose second is unused."""
    empty = True
    for number, line in read_lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if not cells:
            continue
        if len(cells) not in (3, 4):
            raise DataError(
                f"{path}, line {number}: there are {len(cells)} columns; query, document and gain are needed"
            )
        try:
            gain = float(cells[-1])
        except ValueError:
            if empty and number == 1:
                continue  # the header
            raise DataError(f"{path}, line {number}: gain {cells[-1]!r} is not a number") from None
        empty = False
        yield cells[0], cells[-2], gain
    if empty:
        raise DataError(f"{path}: this file has no judgements")


# -- tables of sentences ----------------------------------------------------------------------------------------------


def _load_table(path: Path, kind: str | None, label_names: Sequence[str] | None, macro_f1: bool) -> Task:
    if kind in ("retrieval", "similarity matrix"):
        raise DataError(f"{path}: this is a file, but a task of kind {kind} is a directory")
    kind, rows = labelled_table(path, kind)
    if not rows:
        raise DataError(f"{path}: this file has no rows")
    if kind == "similarity":
        return _pairs(path, rows)
    return _classification(path, rows, label_names, macro_f1)


def _pairs(path: Path, rows: list[tuple[int, dict[str, str]]]) -> Task:
    texts: dict[str, int] = {}
    first, second = (
        np.array([texts.setdefault(row[column], len(texts)) for _, row in rows])
        for column in ("sentence1", "sentence2")
    )
    gold = np.array([number_in(row["score"], path, number) for number, row in rows])
    refuse_constant(gold, str(path))
    return Task(path.stem, tuple(texts), Pairs(first, second, gold))


def _classification(
    path: Path, rows: list[tuple[int, dict[str, str]]], label_names: Sequence[str] | None, macro_f1: bool
) -> Task:
    index = {name.casefold(): i for i, name in enumerate(label_names or ())}
    gold = np.array([class_index(row["label"], index, path, number) for number, row in rows])
    refuse_one_class(gold, rows[0][1]["label"], str(path))
    n_classes = len(label_names) if label_names else None
    return Task(path.stem, tuple(row["text"] for _, row in rows), Classification(gold, n_classes, macro_f1))


def _dicts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in read_rows(path):
        if isinstance(row, dict):
            yield number, row


def _text(row: Mapping[str, Any], path: Path, number: int) -> str:
    if not isinstance(row.get("text"), str):
        raise DataError(f"{path}, line {number}: there is no text; the keys are {', '.join(row)}")
    return str(row["text"])
