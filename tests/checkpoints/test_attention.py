"""How attention is computed stands in config.json: written, read back, and passed over by other libraries."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitwright
from bitwright.checkpoints.attention import ATTENTION_KEY
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import CheckpointError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.recipe import make_recipe

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")


@pytest.fixture(scope="module")
def result(once: Callable[..., Path], tiny_model: Callable[..., Path]) -> Path:
    """A portable result of a BERT of two blocks, both with int8 attention."""
    source = tiny_model("bert")
    recipe = make_recipe({"attention": "int8"})
    return once("int8 attention", lambda out: bitwright.quantize(source, out=out, recipe=recipe, judged=False))


def changed(result: Path, to: Path, **values: Any) -> ModelDirectory:
    shutil.copytree(result, to)
    config = json.loads((to / "config.json").read_text())
    config |= values
    (to / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return ModelDirectory(to)


def test_what_is_written_is_read(result: Path, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    assert json.loads((result / "config.json").read_text())[ATTENTION_KEY] == {"int8": [0, 1]}
    assert read_checkpoint(ModelDirectory(result)).int8_attention == {0, 1}
    rules = {"attention": "int8", "rules": [{"match": "encoder.layer.0.*", "attention": "float"}]}
    bitwright.quantize(tiny_model("bert"), out=tmp_path / "out", recipe=make_recipe(rules), samples=40, judged=False)
    assert read_checkpoint(ModelDirectory(tmp_path / "out")).int8_attention == {1}


def test_an_old_checkpoint_has_float_attention(result: Path, tmp_path: Path) -> None:
    old = changed(result, tmp_path / "old", **{ATTENTION_KEY: "absent"})
    assert read_checkpoint(old).int8_attention == frozenset()
    assert "attention" not in bitwright.load(old.path).backend


def test_nothing_is_said_where_all_attention_is_float(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = make_recipe({"attention": "float"})
    bitwright.quantize(tiny_model("bert"), out=tmp_path / "out", recipe=recipe, samples=40, judged=False)
    assert ATTENTION_KEY not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("compute", ["auto", "float32"])
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("int8", "must be an object"),
        ([0, 1], "must be an object"),
        ({"int4": [0]}, "cannot compute attention in 'int4'"),
        ({"int8": 1}, "must be a list of blocks"),
        ({"int8": [True]}, "must be a list of blocks"),
        ({"int8": [-1]}, "must be a list of blocks"),
        ({"int8": ["0"]}, "must be a list of blocks"),
    ],
)
def test_nonsense_is_refused(result: Path, tmp_path: Path, said: Any, message: str, compute: str) -> None:
    wrong = changed(result, tmp_path / "wrong", **{ATTENTION_KEY: said})
    with pytest.raises(CheckpointError, match=rf"config\.json: {ATTENTION_KEY}.*{message}"):
        bitwright.load(wrong.path, compute=compute)


def test_a_block_that_is_not_there_is_refused(result: Path, tmp_path: Path) -> None:
    wrong = changed(result, tmp_path / "wrong", **{ATTENTION_KEY: {"int8": [0, 2]}})
    with pytest.raises(CheckpointError, match=r"names block 2, but there are 2, counted from 0"):
        bitwright.load(wrong.path)


def test_other_libraries_pass_it_over(result: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("compressed_tensors")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    import transformers
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = transformers.AutoModel.from_pretrained(result, output_loading_info=True)
            encoder = sentence_transformers.SentenceTransformer(str(result), device="cpu")
    finally:
        logging.set_verbosity(level)
    assert not info["unexpected_keys"]
    assert model.config.to_dict()[ATTENTION_KEY] == {"int8": [0, 1]}  # kept as it is if the user saves the model
    assert encoder.encode(["a text"]).shape == (1, 32)
    told = capfd.readouterr()
    assert "attention" not in (told.out + told.err).lower()
