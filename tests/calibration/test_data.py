"""Calibration texts: the same sources and seed give the same texts; nothing unusable passes unnoticed."""

import json
import sys
from collections import Counter
from types import ModuleType

import pytest
from transformers import AutoTokenizer

from bitwright.calibration.columns import Source
from bitwright.calibration.data import (
    LEAST_CALIBRATION_TEXTS,
    builtin_texts,
    load_texts,
    mix,
    parse_sources,
    require_texts,
    token_batches,
)
from bitwright.errors import DataError

LINES = [f"This is line number {i}." for i in range(100)]


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture
def lines(write):
    return write("lines.txt", "\n".join(LINES))


def test_a_sample_is_seeded_distinct_and_from_the_file(lines):
    texts = load_texts(lines, 20, seed=1)
    assert texts == load_texts(lines, 20, seed=1)
    assert texts != load_texts(lines, 20, seed=2)
    assert len(set(texts)) == 20
    assert set(texts) < set(LINES)
    assert texts != [line for line in LINES if line in texts]  # in a random order
    assert sorted(load_texts(lines)) == sorted(LINES)
    assert sorted(load_texts(lines, 1000)) == sorted(LINES)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(lines):
    assert load_texts(lines, 50)[:10] == load_texts(lines, 10)


def test_a_sample_depends_neither_on_the_order_nor_on_duplicates(lines, write):
    other = write("other.txt", "\r\n".join([*reversed(LINES), "", *LINES]))
    assert load_texts(other, 30) == load_texts(lines, 30)


def test_every_text_is_as_likely(write):
    path = write("few.txt", "\n".join(LINES[:10]))
    drawn = Counter(text for seed in range(500) for text in load_texts(path, 3, seed=seed))
    assert len(drawn) == 10
    assert all(110 < count < 190 for count in drawn.values())  # 150 expected, standard deviation 10


@pytest.mark.parametrize(
    ("name", "text", "spec"),
    [
        ("a.jsonl", '{"id": 1, "content": "a text"}\n\n{"content": "two texts"}\n', ""),
        ("a.jsonl", '{"text": "no", "body": "a text"}\n{"body": "two texts", "text": "no"}\n', "#body"),
        ("a.csv", 'id,text\n1,a text\n2,"two texts"\n', ""),
        ("a.tsv", "label\tsentence\n1\ta text\n1\ttwo texts\n", ""),
        ("a.tsv", "label\tother\n1\ta text\n1\ttwo texts\n", "#other"),
        ("a.txt", b"\xef\xbb\xbfa text\n  \ntwo texts  \n", ""),
        ("a.md", "a text\ntwo texts", ""),
    ],
)
def test_file_formats(write, name, text, spec):
    assert sorted(load_texts(write(name, text) + spec)) == ["a text", "two texts"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "text": ["a text", None, "two texts"]}), tmp_path / "a.parquet")
    assert sorted(load_texts(str(tmp_path / "a.parquet"))) == ["a text", "two texts"]


def test_parquet_without_pyarrow_says_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'bitwright\[data\]'"):
        load_texts(write("a.parquet", b"x"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "no texts"),
        ("a.txt", "\n\n", "no texts"),
        (
            "a.txt",
            "ab\n12345\n...\n",
            "none of its 3 texts is usable, because all are shorter than 3 characters or have no letter",
        ),
        ("a.txt", b"good\nna\xefve", "line 2: byte 0xef at offset 7 is not UTF-8"),
        ("a.txt#text", "x", "no such file"),
        ("a.jsonl#body", '{"text": "x", "id": 1}\n', "line 1: there is no column body; the columns are text, id"),
        ("a.jsonl", '{"id": 1}\n', "line 1: there is no column text or sentence or .*the columns are id"),
        ("a.jsonl", '{"text": ["x"]}\n', "line 1: text is a list"),
        ("a.jsonl", "not json\n", "line 1: this line is not JSON"),
        ("a.csv", 'text\n"open', "line 2: unexpected end of data"),
        ("a.tsv", "label\tscore\n1\t2\n", "the columns are label, score"),
        ("a.json", "[]", r"ends in \.jsonl"),
        ("a.parquet", "x", "cannot be read as parquet"),
    ],
)
def test_files_that_cannot_be_used(write, name, text, message):
    path, _, field = name.partition("#")
    spec = write(path, text) + (f"#{field}" if field else "")
    if path == "a.txt" and field:
        message = "names a column, but this file has only lines of text"
    with pytest.raises(DataError, match=message):
        load_texts(spec)


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: no such file"):
        load_texts("data/nowhere.txt")
    with pytest.raises(DataError, match="cannot be read"):
        load_texts(str(tmp_path))
    with pytest.raises(DataError, match="0 texts"):
        load_texts("builtin", 0)


def fake_data_sets(monkeypatch, load_dataset):
    module = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return iter([{"text": line} for line in LINES])

    fake_data_sets(monkeypatch, load_dataset)
    assert set(load_texts("org/name#text", 5)) < set(LINES)
    assert asked == [("org/name", {"split": "train", "streaming": True})]
    assert load_texts("org/name", 1)[0] in LINES[:50]  # a large one is not read to its end


def test_a_data_set_that_cannot_be_had(monkeypatch):
    def load_dataset(name, **options):
        raise ConnectionError("offline")

    fake_data_sets(monkeypatch, load_dataset)
    with pytest.raises(
        DataError, match=r"org/name: there is no such file.*ConnectionError: offline.*give a local file"
    ):
        load_texts("org/name", 5)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"bitwright\[data\]"):
        load_texts("org/name", 5)


def test_sources_with_weights_fields_and_colons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:0.5").write_text("a file of that name")
    specs = ["a.jsonl:0.7", "b.jsonl#body:2", "C:\\data\\c.txt", "org/name#text", "a:0.5", "a:0.5:3"]
    assert parse_sources(specs) == [
        Source("a.jsonl", 0.7),
        Source("b.jsonl", 2, "body"),
        Source("C:\\data\\c.txt"),
        Source("org/name", 1, "text"),
        Source("a:0.5"),
        Source("a:0.5", 3),
    ]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_weights_are_positive(weight):
    with pytest.raises(DataError, match="but must be a positive number"):
        parse_sources([f"a.txt:{weight}"])


def test_a_mix_is_proportional_distinct_and_seeded(write):
    first = write("first.txt", "\n".join(f"first {i} a" for i in range(300)))
    second = write("second.txt", "\n".join(f"second {i} a" for i in range(300)))
    sources = parse_sources([f"{first}:0.7", f"{second}:0.3"])
    texts = mix(sources, 100, seed=1)
    assert texts == mix(sources, 100, seed=1) != mix(sources, 100, seed=2)
    assert len(set(texts)) == 100
    assert Counter(text.split()[0] for text in texts) == {"first": 70, "second": 30}
    assert len({text.split()[0] for text in texts[:10]}) == 2  # mixed, not one source after the other


def test_the_others_make_up_for_a_small_source(write, lines):
    small = write("small.txt", f"only one\n{LINES[0]}\n")
    texts = mix(parse_sources([f"{small}:1", f"{lines}:1"]), 50)
    assert len(set(texts)) == 50
    assert "only one" in texts
    assert len(mix(parse_sources([small, lines]), 1000)) == 101  # a text of two sources comes once
    with pytest.raises(DataError, match="0 texts of 1 sources"):
        mix(parse_sources([small]), 0)


def test_builtin_texts_are_sentences_of_the_standard_library():
    texts = builtin_texts(200)
    assert len(texts) == 200
    assert all(40 <= len(text) <= 200 and "\n" not in text for text in texts)
    assert builtin_texts(300)[:200] == texts
    sample = builtin_texts(200, seed=3)
    assert sample == load_texts("builtin#documentation", 200, seed=3)
    assert sample != builtin_texts(200, seed=4)
    assert set(sample) <= set(builtin_texts())


class WordTokenizer:
    """A tokenizer of transformers, as far as batching calls it: a word is a token."""

    def __call__(self, texts, *, truncation, max_length, padding=False, return_tensors=None):
        import torch

        assert truncation
        ids = [[len(word) for word in text.split()][:max_length] for text in texts]
        if not padding:
            return {"input_ids": ids}
        width = max(map(len, ids))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        return {"input_ids": padded, "attention_mask": (padded > 0).long()}


def test_token_batches_hold_every_text_once_with_little_padding():
    texts = [" ".join(["x" * (i + 1)] * (i % 7 + 1)) for i in range(25)]
    batches = token_batches(WordTokenizer(), texts, max_tokens=5, batch_size=4)
    assert sorted(len(batch["input_ids"]) for batch in batches) == [1, 4, 4, 4, 4, 4, 4]
    assert sorted(row[0].item() for batch in batches for row in batch["input_ids"]) == list(range(1, 26))
    assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in batches)
    assert max(batch["input_ids"].shape[1] for batch in batches) == 5
    padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padding <= 4 * 5  # each change of length pads one batch at most
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert widths != sorted(widths)  # seeded order, not by length
    again = token_batches(WordTokenizer(), texts, max_tokens=5, batch_size=4)
    assert all(left["input_ids"].equal(right["input_ids"]) for left, right in zip(batches, again, strict=True))


def test_token_batches_of_pairs_are_those_of_the_tokenizer(minilm_dir):
    """Both texts in one sequence, the second of type 1; of a long pair the longer text is cut first."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    pairs = [("what is it", "a river " * 9), ("why " * 20, "so it is")]
    batches = token_batches(tokenizer, pairs, max_tokens=16, batch_size=1)
    given = {"truncation": True, "max_length": 16, "return_tensors": "pt"}
    for batch in batches:
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
        (pair,) = [pair for pair in pairs if tokenizer(*pair, **given)["input_ids"].equal(batch["input_ids"])]
        assert tokenizer(*pair, **given)["token_type_ids"].equal(batch["token_type_ids"])
        assert set(batch["token_type_ids"].flatten().tolist()) == {0, 1}


def test_token_batches_of_nothing():
    with pytest.raises(DataError, match="0 texts, batch_size = 4"):
        token_batches(WordTokenizer(), [], max_tokens=5, batch_size=4)


def test_too_few_texts_are_refused_with_the_numbers():
    with pytest.raises(
        DataError, match=r"^the data gives 2 texts, but static ranges need at least 8; give more with --data$"
    ):
        require_texts(["one", "two"], LEAST_CALIBRATION_TEXTS, "static ranges")
    with pytest.raises(DataError, match=r"^the data gives 1 text, but an evaluation .* 3;"):
        require_texts(["one"], 3, "an evaluation and its split")
    require_texts(LINES[:LEAST_CALIBRATION_TEXTS], LEAST_CALIBRATION_TEXTS, "static ranges")


def test_json_lines_are_read_as_a_stream(write, monkeypatch):
    """A line that is not reached is not read: only so many rows of a source as are asked for are ever in memory."""
    path = write("a.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in LINES))
    sizes = []
    monkeypatch.setattr(
        "bitwright.calibration.data.heapq.heappush", lambda heap, item: sizes.append(len(heap)) or heap.append(item)
    )
    load_texts(path, 7)
    assert max(sizes) < 7
