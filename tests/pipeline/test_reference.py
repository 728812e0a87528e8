"""The library judges: what it reads otherwise is refused before the work, and a loss is relative to its outputs."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.errors import LibraryError, ModelError
from bitwright.models.load import open_lazily
from bitwright.models.source_tensors import SourceTensors
from bitwright.pipeline import reference
from bitwright.pipeline.blockwise import compared_bytes
from bitwright.pipeline.job import compared_with_library, open_job
from bitwright.pipeline.request import make_texts
from bitwright.progress import Quiet
from bitwright.recipe import Recipe
from bitwright.runtime.library import Library

QUICK: dict[str, Any] = {
    "samples": 40, "sensitivity": False, "speed": False, "max_loss": 0.5, "targets": ["bitwright"],
}  # fmt: skip


@pytest.fixture
def source(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("bert")


def test_the_judge_is_named(source: Path, tmp_path: Path) -> None:
    found = bitwright.quantize(source, out=tmp_path / "out", **QUICK).measured
    assert found.evaluation is not None
    assert (found.evaluation.judge or "").startswith("sentence-transformers ")
    environment = found.environment
    assert environment is not None
    assert environment.tokenizers
    assert environment.sentence_transformers


def test_other_tokens_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Library.read

    def other(self: Library, items: Sequence[Any]) -> list[np.ndarray]:
        return [row[:, ::-1] if "fox" in str(item).lower() else row for item, row in zip(items, read(self, items))]  # noqa: B905

    monkeypatch.setattr(Library, "read", other)
    with pytest.raises(
        ModelError, match=r"reads 'The Quick BROWN Fox' as \[3, .*, but Bitwright reads it as \[2, .*nothing was qu"
    ):
        bitwright.quantize(source, out=tmp_path / "out", judged=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [False, True])
def test_other_outputs_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    encode = Library.encode
    monkeypatch.setattr(
        Library, "encode", lambda self, items: encode(self, items)[:, :9] if cut else 1.01 * encode(self, items)
    )
    how = r"have different shapes, \(9,\) and \(32,\)" if cut else "differ by 0.0"
    with pytest.raises(ModelError, match=f"float model for .* {how}"):
        bitwright.quantize(source, out=tmp_path / "out", judged=False)


def test_its_outputs_are_what_the_loss_is_relative_to(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = Library.encode, []

    def later_reversed(self: Library, items: Sequence[Any]) -> Any:
        calls.append(len(items))
        found = encode(self, items)
        return found if len(calls) == 1 else found[::-1]  # the first are the hard texts

    monkeypatch.setattr(Library, "encode", later_reversed)
    found = bitwright.quantize(source, out=tmp_path / "out", **QUICK).measured.evaluation
    assert len(calls) == 3
    assert found is not None
    assert found.verdict == "not met"


def test_a_judge_that_is_missing_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> Library:
        raise LibraryError("ImportError: No module named 'sentence_transformers'")

    monkeypatch.setattr(reference, "Library", missing)
    found = bitwright.quantize(source, out=tmp_path / "out", **QUICK).measured
    assert found.evaluation is not None
    assert found.evaluation.judge is None
    assert any("No module named 'sentence_transformers'" in warning for warning in found.warnings)


def test_language_models_are_judged_by_transformers_if_it_fits(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = QUICK | {"samples": 8, "data": "builtin"}
    found = bitwright.quantize(tiny_model("llama"), out=tmp_path / "out", **how).measured
    assert found.evaluation is not None
    assert (found.evaluation.judge or "").startswith("transformers ")
    assert found.evaluation.loss is not None
    assert abs(found.evaluation.loss) < 0.05
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(reference.psutil, "virtual_memory", lambda: memory)
    found = bitwright.quantize(tiny_model("llama"), out=tmp_path / "small", **how).measured
    assert found.evaluation is not None
    assert found.evaluation.judge is None
    assert any("not with transformers" in warning for warning in found.warnings)


@pytest.fixture
def too_large(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A language model of which half the free memory holds a block, and not all nine."""
    source = tiny_model("llama", num_hidden_layers=9)
    memory = type("Memory", (), {"available": 2 * compared_bytes(open_lazily(source, runnable=False))})
    monkeypatch.setattr(reference.psutil, "virtual_memory", lambda: memory)
    return source


def test_language_models_that_do_not_fit_are_judged_block_by_block(too_large: Path, tmp_path: Path) -> None:
    result = bitwright.quantize(too_large, out=tmp_path / "out", **QUICK | {"samples": 8, "data": "builtin"})
    found, judge = (
        result.measured,
        r"transformers [\d.]+, blocks 0, 4 and 8 of 9 compared; Bitwright alone ran the others",
    )
    assert found.evaluation is not None
    assert re.fullmatch(judge, found.evaluation.judge or "")
    assert not any("not with transformers" in warning for warning in found.warnings)
    for file in ("report.html", "README.md"):
        assert "blocks 0, 4 and 8 of 9" in (tmp_path / "out" / file).read_text()


def test_a_block_that_is_read_otherwise_is_refused(too_large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, wrong = SourceTensors.__getitem__, "model.layers.4.self_attn.o_proj.weight"
    monkeypatch.setattr(
        SourceTensors, "__getitem__", lambda self, name: read(self, name) * (1.1 if name == wrong else 1)
    )
    job = open_job(too_large, Recipe(method="rtn"), make_texts((), None, None, None, 8))
    with pytest.raises(ModelError, match=r"model\.layers\.4: the outputs of transformers .* nothing was quantized"):
        compared_with_library(job, judges=True, progress=Quiet())


def test_blocks_that_cannot_be_compared_are_told(too_large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "path_of_blocks", lambda loaded: "model.rows")
    job = open_job(too_large, Recipe(method="rtn"), make_texts((), None, None, None, 8))
    (warning,) = compared_with_library(job, judges=True, progress=Quiet()).warnings
    assert "not with transformers: it needs" in warning
    assert "blocks could not be compared either (AttributeError" in warning


def test_a_result_has_a_tokenizer_that_the_engine_reads(source: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(source, tmp_path / "source"))
    (path / "special_tokens_map.json").write_text('{"additional_special_tokens": ["[ENT]"]}')
    result = bitwright.quantize(path, out=tmp_path / "out", judged=False)
    assert any("tokenizer.json was written again" in warning for warning in result.measured.warnings)
    model = bitwright.load(tmp_path / "out")
    assert model.backend.startswith("engine")
    assert model.tokenize(["a [ENT] b"]) == bitwright.load(path).tokenize(["a [ENT] b"])
