"""Half of a surrogate pair, which JSON and YAML can spell and no file or terminal can hold, is refused where it is
read."""

import json

import pytest

from bitwright.calibration.tables import read_rows
from bitwright.errors import CheckpointError, DataError, ModelError, RecipeError
from bitwright.files.folder import read_json
from bitwright.files.safetensors import check_safetensors
from bitwright.parsing import parse_json
from bitwright.recipe import read_recipe
from bitwright.record.file import read_record

HALF = json.dumps({"ha\ud83dlf": 1})


def test_whole_pairs_are_text():
    assert parse_json(json.dumps("\U0001f600")) == "\U0001f600"
    assert parse_json('"\\\\ud83d"') == "\\ud83d"


@pytest.mark.parametrize("text", [HALF, '["\\uDE00"]', '{"a": {"b": ["x", "\\ud83d\\ud83d"]}}'])
def test_half_a_pair_is_none(text):
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_json(text)


def test_side_file(tmp_path):
    (tmp_path / "config.json").write_text(HALF)
    with pytest.raises(ModelError, match=r"config.json.*half of a surrogate pair"):
        read_json(tmp_path / "config.json")


def test_safetensors_header(tmp_path):
    header = HALF.encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        check_safetensors(tmp_path / "model.safetensors")


def test_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text('scheme: "w8a8\\ud83d"\n')
    with pytest.raises(RecipeError, match="half of a surrogate pair"):
        read_recipe(tmp_path / "r.yaml")


def test_record(tmp_path):
    (tmp_path / "record.json").write_text(HALF)
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        read_record(tmp_path)


def test_texts_of_a_table(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n' + json.dumps({"text": "not \ud83d"}) + "\n")
    with pytest.raises(DataError, match=r"line 2: .*half of a surrogate pair"):
        list(read_rows(tmp_path / "t.jsonl"))
