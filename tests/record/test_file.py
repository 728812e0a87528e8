"""record.json: written and read, those of earlier releases included."""

import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bitwright import record as record_module
from bitwright.errors import CheckpointError
from bitwright.record import RECORD_FILE, Record, Starved, plain_data, read_record, record_of, write_record
from bitwright.report import render_model_card, render_report

EARLIER = Path(__file__).parent / "earlier.json"  # a mixture of experts, by the release that told of these in sentences


@pytest.fixture
def earlier() -> Record:
    return read_record(EARLIER)


def test_what_is_written_is_read(earlier: Record, tmp_path: Path) -> None:
    write_record(earlier, tmp_path / RECORD_FILE)
    assert read_record(tmp_path) == read_record(tmp_path / RECORD_FILE) == earlier


def test_a_record_of_an_earlier_release_keeps_every_key_and_value(earlier: Record) -> None:
    data, again = json.loads(EARLIER.read_text(encoding="utf-8")), plain_data(earlier)
    for row, told in zip(data["layers"], again["layers"], strict=True):
        assert ("starved" in row) == ("starved" in told)
        row |= {key: told[key] for key in ("starved",) if key in told}  # in fields now, not in a sentence
    assert json.dumps(again) == json.dumps(data)


def test_sentences_about_starved_experts_become_fields(earlier: Record) -> None:
    starved = [row for row in earlier.layers if row.starved]
    assert starved
    for row in starved:
        assert isinstance(row.starved, Starved)
        assert row.starved.fewest == 32
        assert row.starved.n_tokens == row.n_tokens
    assert {row.starved.policy for row in starved if isinstance(row.starved, Starved)} == {"lent", "rtn"}
    unknown = record_of({"layers": [{"name": "a", "block": 0, "role": "ffn", "unit": "a", "starved": "somehow"}]})
    assert unknown.layers[0].starved == "somehow"


def test_an_earlier_record_renders(earlier: Record) -> None:
    page = render_report(earlier)
    assert "uses what all experts of the block saw" in page
    assert "rounded to nearest" in page
    assert "experts saw too little of the calibration texts" in render_model_card(earlier, None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": {"source_bytes": "large"}}, "size.source_bytes is 'large', not a whole number"),
        ({"warnings": "none"}, "warnings is 'none', not a list"),
        ({"layers": [7]}, "layers[0] is 7, not an object"),
        ({"plan": [{"name": "a"}]}, "plan[0].block is missing"),
    ],
)
def test_a_wrong_value_is_told_with_file_and_key(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / RECORD_FILE
    path.write_text(json.dumps(json.loads(EARLIER.read_text(encoding="utf-8")) | change))
    with pytest.raises(CheckpointError) as error:
        read_record(tmp_path)
    assert str(error.value) == f"{path}: {said}"


def test_a_key_of_a_later_release_is_ignored(earlier: Record, tmp_path: Path) -> None:
    data = json.loads(EARLIER.read_text(encoding="utf-8"))
    data["model"]["later"] = data["later"] = 1
    (tmp_path / RECORD_FILE).write_text(json.dumps(data))
    assert read_record(tmp_path) == earlier


def test_a_failed_write_leaves_the_old_record(earlier: Record, tmp_path: Path) -> None:
    write_record(earlier, tmp_path / RECORD_FILE)
    with pytest.raises(TypeError):
        write_record(replace(earlier, recipe={"rules": {1, 2}}), tmp_path / RECORD_FILE)
    assert read_record(tmp_path) == earlier
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]


def test_every_section_is_frozen_and_says_what_it_is() -> None:
    sections = [section for section in vars(record_module).values() if is_dataclass(section)]
    assert len(sections) == 37
    for section in sections:
        assert section.__doc__ is not None
        assert not section.__doc__.startswith(section.__name__ + "("), section  # the text that dataclass makes up
        assert section.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert set(section.__slots__) == {known.name for known in fields(section)}  # type: ignore[attr-defined]


def test_the_record_is_read_without_the_libraries_that_made_it() -> None:
    code = "import sys, bitwright.record; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
