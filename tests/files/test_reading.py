"""A model directory is a stranger's: nothing outside it is read, and no file of it makes us wait or fill the memory."""

import os
from pathlib import Path

import pytest

from bitwright.errors import ModelError
from bitwright.files import reading
from bitwright.files.directory import MAX_FRONT_MATTER, ModelDirectory, front_matter, license_of
from bitwright.files.reading import check_directory, check_name, read_bytes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (tmp_path / "outside").mkdir()
    return folder


def test_links_inside_a_model_stay(model: Path) -> None:
    (model / "again.json").symlink_to("config.json")
    (model / "1_Pooling" / "up.json").symlink_to("../config.json")
    (model / "2_Pooling").symlink_to("1_Pooling")
    (model / "gone.json").symlink_to("nowhere.json")
    assert ModelDirectory(model).package.json("again.json") == {"model_type": "bert"}
    assert ModelDirectory(model).package.json("2_Pooling/config.json") == {}


def test_a_model_that_is_itself_a_link_is_as_good_as_any(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    (model / "again.json").symlink_to(model / "config.json")
    assert ModelDirectory(tmp_path / "link").package.json("again.json") == {"model_type": "bert"}


def test_a_hub_cache_links_to_its_blobs_and_nowhere_else(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0a1b").write_text('{"model_type": "bert"}')
    snapshot = cache / "snapshots" / "main"
    (snapshot / "1_Pooling").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0a1b")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/0a1b")
    assert ModelDirectory(snapshot).config == {"model_type": "bert"}
    (cache / "refs.json").write_text("{}")
    (snapshot / "refs.json").symlink_to("../../refs.json")
    with pytest.raises(ModelError, match=r"refs\.json: this is a link to .*, outside the model's directory"):
        ModelDirectory(snapshot)


@pytest.mark.parametrize("target", ["../secret.json", "../outside", "/etc/passwd", "/proc/self/environ", "/dev/zero"])
@pytest.mark.parametrize("name", ["notes.txt", "config.json", "1_Pooling/more.json"])
def test_links_out_of_the_model_are_refused(model: Path, name: str, target: str) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(f"../{target}" if "/" in name and target.startswith("..") else target)
    with pytest.raises(ModelError, match=f"{name}: this is a link to .* outside the model's directory"):
        ModelDirectory(model)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_a_pipe_is_refused_without_waiting(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(ModelError, match=f"{name}: this is a pipe, a socket or a device"):
        ModelDirectory(model)
    with pytest.raises(ModelError, match="not a regular file"):
        read_bytes(model / name)


@pytest.mark.parametrize("name", ["../secret.json", "1_Pooling/../../secret.json", "/etc/passwd", "a\0b"])
def test_names_that_lead_out_are_refused(model: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"modules\.json: this file names .* is outside the model's directory"):
        ModelDirectory(model).package.json(name, "modules.json")


def test_what_lies_in_a_hidden_folder_is_looked_at_when_it_is_named(model: Path) -> None:
    (model / ".hidden").mkdir()
    (model / ".hidden" / "config.json").symlink_to("../../secret.json")
    check_directory(model)
    with pytest.raises(ModelError, match="outside the model's directory"):
        check_name(model, ".hidden/config.json", "modules.json")


def test_files_and_directories_have_a_limit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"config\.json: the file has 22 bytes; Bitwright reads at most 21"):
        read_bytes(model / "config.json", 21)
    monkeypatch.setattr(reading, "MAX_ENTRIES", 2)
    with pytest.raises(ModelError, match="holds more than 2 files"):
        check_directory(model)


@pytest.mark.parametrize(
    "card",
    ["---" + "\n" * 400_000, "---\nlicense: a" + " " * 400_000 + "b\n---\n", "-" * 400_000, "---\n" * 100_000],
    ids=["newlines", "blanks", "dashes", "ends"],
)
def test_a_license_is_looked_for_in_little_time(model: Path, card: str) -> None:
    (model / "README.md").write_text(card)
    license_of(model)  # in quadratic time each takes minutes
    assert len(front_matter(card)) <= MAX_FRONT_MATTER
