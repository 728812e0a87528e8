"""What `encode` takes as items: texts, pairs and ids in the containers of other libraries; and what it refuses."""

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from transformers import BatchEncoding

from bitwright.errors import InputError
from bitwright.runtime.items import check_ids, check_types, listed, texts_of

TEXTS = ["a", "b c", "d"]
SERIES = pd.Series(TEXTS, index=[7, 3, 9])
COLUMN = datasets.Dataset.from_dict({"text": TEXTS})


def read(items: Any) -> Any:
    given = listed(items)
    texts = texts_of(given)
    return check_ids(given, 9) if texts is None else texts


@pytest.mark.parametrize(
    "items",
    [
        TEXTS, tuple(TEXTS), (text for text in TEXTS), map(str, TEXTS), dict.fromkeys(TEXTS).keys(),
        [np.str_(text) for text in TEXTS], np.array(TEXTS), np.array(TEXTS, object), SERIES, pd.Index(TEXTS),
        SERIES.astype("category"), SERIES.astype("string[pyarrow]"), pa.array(TEXTS), pa.chunked_array([TEXTS[:1],
        TEXTS[1:]]), list(pa.array(TEXTS)), COLUMN["text"], COLUMN[:]["text"],
    ],
    ids=lambda items: type(items).__name__,
)  # fmt: skip
def test_texts(items: Any) -> None:
    first, second = read(items)
    assert first == TEXTS
    assert {type(text) for text in first} == {str}
    assert second is None


@pytest.mark.parametrize(
    "items",
    [
        [("a", "c"), ("b", "d")], [["a", "c"], ("b", "d")], zip("ab", "cd", strict=True),
        np.array([["a", "c"], ["b", "d"]]),
        np.array([["a", "c"], ["b", "d"]], object), pd.DataFrame({"x": ["a", "b"], "y": ["c", "d"]}).to_numpy(),
        pd.DataFrame({"x": ["a", "b"], "y": ["c", "d"]}).itertuples(index=False),
    ],
    ids=lambda items: type(items).__name__,
)  # fmt: skip
def test_pairs(items: Any) -> None:
    assert read(items) == (["a", "b"], ["c", "d"])


@pytest.mark.parametrize(
    "items",
    [
        [[1, 2], [3, 4]], [(1, 2), range(3, 5)], np.array([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 4]]),
        [torch.tensor([1, 2]), np.array([3, 4], np.uint8)], iter([[1, 2], [3, 4]]), pa.array([[1, 2], [3, 4]]),
    ],
    ids=lambda items: type(items).__name__,
)  # fmt: skip
def test_ids(items: Any) -> None:
    ids = read(items)
    assert ids == [[1, 2], [3, 4]]
    assert {type(value) for row in ids for value in row} == {int}
    types = torch.tensor([[0, 1], [1, 0]])
    assert check_types(types, ids, 2).types == [[0, 1], [1, 0]]  # type: ignore[arg-type]


@pytest.mark.parametrize("items", [[], (), iter([]), np.array([]), pd.Series([], dtype=object)])
def test_none(items: Any) -> None:
    assert read(items) == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("a text", "this is one string"),
        ({"a", "b"}, "this is set, whose order is undefined"),
        (frozenset("a"), "this is frozenset, whose order is undefined"),
        ({"a": 1}, "this is dict$"),
        (BatchEncoding({"input_ids": [[1]]}), "this is BatchEncoding$"),
        (pd.DataFrame({"x": TEXTS}), "this is DataFrame; give one of its columns"),
        (pa.table({"x": TEXTS}), "this is Table; give one of its columns"),
        (COLUMN, "this is Dataset; give one of its columns"),
        (b"abc", "this is bytes$"),
        (5, "this is int$"),
        (None, "this is NoneType$"),
        (np.array("a"), "this is ndarray$"),
        (["a", b"b"], "text 1 is bytes, not str: bytes are not texts; decode them: item.decode()"),
        ([b"b", "a"], "text 0 is bytes"),
        (np.array([b"b"]), "text 0 is bytes"),
        ([None, "a"], 'text 0 is NoneType, not str: a value is missing (None); leave the text out, or put "" there'),
        (pd.Series(["a", None]), "text 1 is float, not str: a value is missing (nan)"),
        (pd.Series(["a", None], dtype="string[pyarrow]"), "text 1 is NAType, not str: a value is missing (<NA>)"),
        (pa.array(["a", None]), "text 1 is NoneType, not str: a value is missing (None)"),
        (["a", 3], "text 1 is int, not str$"),
        ([("a", None)], "pair 0 is tuple, not two texts: a value is missing (None); leave the pair out"),
        ([("a", "b"), ("a", b"b")], "pair 1 is tuple, not two texts: bytes are not texts"),
        ([("a", "b"), "c"], "pair 1 is str, not two texts$"),
        ([("a", "b", "c")], "pair 0 is tuple, not two texts$"),
        ([1, 2], "item 0 is int; give texts, pairs of texts or sequences of token ids"),
        ([[1], [1.5]], "item 1 is list; give texts"),
        ([[1], [True]], "item 1 is list; give texts"),
        ([[1], b"ab"], "item 1 is bytes; give texts"),
        ([[1], {"a": 1}], "item 1 is dict; give texts"),
        (torch.tensor([[0.5]]), "item 0 is list; give texts"),
    ],
)
def test_refused(items: Any, message: str) -> None:
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(InputError, match=pattern):
        read(items)
