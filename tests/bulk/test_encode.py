"""A corpus to vectors: the bytes of one process, whatever dies on the way."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.bulk.corpus import Texts
from bitwright.bulk.encode import Encoded, How, Where, encode_files
from bitwright.bulk.vectors import MANIFEST
from bitwright.errors import CheckpointError, DataError, InputError, ModelError
from bitwright.kernels import dispatch
from tests.bulk import dying
from tests.pages import ROOT

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="needs the native kernels")

ROWS = 8
ONE, TWO = Where(1), Where(2)


def encode(model: Path, data: Path, out: Path, where: Where = ONE, **how: Any) -> Encoded:
    return encode_files(model, Texts([str(data)]), out, How(**{"form": "npy", "shard_rows": ROWS} | how), where)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def expected(embedder: Path, corpus: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files that one worker makes in one go."""
    encode(embedder, corpus, tmp_path / "expected")
    return content(tmp_path / "expected")


def texts_of(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


def test_vectors_are_those_of_encode(embedder: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    model, texts = bitwright.load(embedder), texts_of(corpus)
    assert len(expected) == 1 + 7
    for i in range(7):
        want = model.encode(texts[ROWS * i : ROWS * (i + 1)])
        np.testing.assert_array_equal(np.load(tmp_path / "expected" / f"part-{i:05d}.npy", mmap_mode="r"), want)
    manifest = json.loads(expected[MANIFEST])
    assert manifest["complete"]
    assert [facts["rows"] for facts in manifest["files"].values()] == [ROWS] * 6 + [2]
    assert manifest["origin"]["files"] == [{"name": str(corpus), "rows": 50}]


def test_a_worker_that_is_killed_changes_nothing(
    embedder: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(dying.MARK, str(tmp_path / "mark"))
    monkeypatch.setattr("bitwright.bulk.encode.open_embedder", dying.open_dying)
    encode(embedder, corpus, tmp_path / "out", TWO)
    assert (tmp_path / "mark").exists()
    assert content(tmp_path / "out") == expected


def test_a_run_that_is_killed_goes_on(embedder: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.bulk.dying", "3", "encode", str(embedder), "--data", str(corpus), "--out",
               str(out), "--format", "npy", "--file-rows", str(ROWS), "--workers", "2"]  # fmt: skip
    path = os.pathsep.join(filter(None, sys.path))
    killed = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, timeout=60, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr
    assert not json.loads((out / MANIFEST).read_text())["complete"]
    assert sum(file.suffix == ".npy" for file in out.iterdir()) == 3
    assert encode(embedder, corpus, out).files == 4
    assert content(out) == expected
    again = encode(embedder, corpus, out)
    assert (again.rows, again.files, content(out)) == (0, 0, expected)
    (out / "part-00002.npy").unlink()
    with pytest.warns(UserWarning, match="finished files that are gone or cut short: 1"):
        assert encode(embedder, corpus, out).files == 1
    assert content(out) == expected


def test_parquet_has_ids_and_vectors(embedder: Path, corpus: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    how = {"form": "parquet", "prompt_name": "passage", "normalize": True, "truncate_dim": 16, "shard_rows": 30}
    encode(embedder, corpus, tmp_path / "out", **how)
    table = parquet.read_table(tmp_path / "out")  # the whole directory
    assert table["id"].to_pylist() == list(range(50))
    want = bitwright.load(embedder).encode(
        texts_of(corpus)[:30], prompt_name="passage", normalize_embeddings=True, truncate_dim=16
    )
    np.testing.assert_array_equal(np.stack(table["vector"].to_pylist()[:30]), want)
    texts = Texts([str(corpus)], id_column="id")
    encode_files(embedder, texts, tmp_path / "named", How(**how | {"dtype": "float16"}), ONE)
    named = parquet.read_table(tmp_path / "named")
    assert named["id"].to_pylist() == [f"d{i}" for i in range(50)]
    np.testing.assert_array_equal(np.stack(named["vector"].to_pylist()[:30]), want.astype(np.float16))


def test_another_run_in_the_same_place_is_refused(
    embedder: Path, corpus: Path, tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    out = tmp_path / "out"
    encode(embedder, corpus, out)
    before = content(out)
    with pytest.raises(InputError, match="vectors normalize was false, is true; vectors rows_per_file was 8, is 9"):
        encode(embedder, corpus, out, normalize=True, shard_rows=9)
    with pytest.raises(InputError, match="model digest was"):
        encode(tiny_model("bert"), corpus, out)
    corpus.write_text(corpus.read_text().replace('"d0", "text": "', '"d0", "text": "x'))
    with pytest.raises(InputError, match="texts digest was"):
        encode(embedder, corpus, out)
    assert content(out) == before


def test_a_full_disk_keeps_what_is_finished(
    embedder: Path, corpus: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    from bitwright.bulk import vectors

    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        if len(list(out.glob("*.npy"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(data)

    with monkeypatch.context() as patched:
        patched.setattr(vectors, "write_file", write)
        with pytest.raises(
            CheckpointError, match=r"part-0000\d\.npy: the disk is full .* The 2 finished files are kept"
        ):
            encode(embedder, corpus, out)
        assert len(list(out.glob("*.npy"))) == 2
        assert not list(out.glob(".*.part"))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(CheckpointError, match=r"the result needs 1[34]\d+ bytes, but 1000 are free"):
            encode(embedder, corpus, tmp_path / "other")
    encode(embedder, corpus, out)
    assert content(out) == expected


def test_vectors_of_another_processor_are_not_mixed(
    embedder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(embedder, corpus, tmp_path / "out")
    (tmp_path / "out" / "part-00001.npy").unlink()
    monkeypatch.setenv("BITWRIGHT_ISA", "scalar")
    with (
        pytest.warns(UserWarning, match="gone or cut short"),
        pytest.raises(InputError, match="computes by engine:scalar"),
    ):
        encode(embedder, corpus, tmp_path / "out")


def test_a_text_that_gives_no_vector_is_named(
    embedder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = corpus.read_text().splitlines()
    lines[12] = '{"text": "a large text"}'
    corpus.write_text("\n".join(lines))
    monkeypatch.setattr("bitwright.bulk.encode.open_embedder", dying.open_large)
    message = r"corpus\.jsonl, line 13: this text gives no vector: a value of 1e\+06 is too large for float16"
    with pytest.raises(DataError, match=message):
        encode(embedder, corpus, tmp_path / "out", dtype="float16")


def test_more_workers_are_recommended_where_each_has_one_thread(
    embedder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitwright.bulk.encode.open_embedder", dying.open_large)
    monkeypatch.setattr("bitwright.bulk.encode.usable_processors", lambda: 4)
    monkeypatch.setenv(dying.BACKEND, "torch")
    with pytest.warns(
        UserWarning, match="torch: each worker uses one thread, .* with 3 more, all processors would work"
    ):
        encode(embedder, corpus, tmp_path / "out")


BAD: list[tuple[Callable[[Path, Path], dict[str, Any]], type[Exception], str]] = [
    (lambda corpus, out: {"column": "body"}, DataError, "no column body; the columns are id, text"),
    (lambda corpus, out: {"data": "none.jsonl"}, DataError, "none.jsonl: there is no such file or folder"),
    (lambda corpus, out: {"data": ""}, DataError, "there are no texts"),
    (lambda corpus, out: {"data": '{"text": "a"}\n{"text": 3}\n'}, DataError, "line 2: text is a int"),
    (lambda corpus, out: {"data": '{"text": "a"}\n{"text": null}\n'}, DataError, "line 2: text is null"),
    (lambda corpus, out: {"data": '{"text": "a"}\n{"text": "\\ud800"}\n'}, DataError, "line 2: .*surrogate"),
    (lambda corpus, out: {"data": '{"text": "a", "id": 1}\n{"text": "b", "id": "c"}', "id": "id"}, DataError,
     "line 2: the id in id is a str, but ids must all be int"),
    (lambda corpus, out: {"id": "key"}, DataError, "line 1: there is no column key"),
    (lambda corpus, out: {"id": "id", "how": How(form="npy")}, InputError, "--format npy holds no ids"),
    (lambda corpus, out: {"how": How(prompt_name="query?")}, InputError, "prompt_name = 'query[?]' is unknown"),
    (lambda corpus, out: (out / "mine.txt").write_text("x") and {}, InputError, "has files, but none of `bitwright"),
    (lambda corpus, out: {"data": out.parent}, DataError, "out: this lies in"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_before_the_work(
    make: Callable[[Path, Path], dict[str, Any]], kind: type[Exception], message: str, embedder: Path, corpus: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    asked = make(corpus, out)
    data = asked.get("data", corpus)
    if isinstance(data, str) and not data.endswith(".jsonl"):
        corpus.write_text(data)
        data = corpus
    before = content(out)
    with pytest.raises(kind, match=message):
        encode_files(
            embedder, Texts([str(data)], asked.get("column"), asked.get("id")), out, asked.get("how", How()), ONE
        )
    assert content(out) == before


def test_a_language_model_is_refused(tiny_model: Callable[..., Path], corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"for text-generation, and has no pooling .* --task embedding"):
        encode(tiny_model("llama"), corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
