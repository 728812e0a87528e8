"""Names on the hub: found in the cache without a network; every failure is one line that says what to do."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from bitwright.errors import ModelError
from bitwright.models import hub
from bitwright.models.hub import fetch
from bitwright.models.load import load_model
from tests.nested import FOLDER, rows

NAME = "someone/small-model"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def cached(tiny_model, cache: Path) -> Path:
    """A hub cache that holds the tiny model as NAME."""
    repository, commit = cache / "models--someone--small-model", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(tiny_model("bert"), repository / "snapshots" / commit))


def test_a_directory_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert fetch("org/name") == tmp_path / "org" / "name"  # a directory wins over the hub


def test_a_link_keeps_its_name(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all-MiniLM-L6-v2").symlink_to(tiny_model("bert"))
    assert fetch("all-MiniLM-L6-v2") == tmp_path / "all-MiniLM-L6-v2"
    assert load_model("./all-MiniLM-L6-v2").path == tmp_path / "all-MiniLM-L6-v2"


@pytest.mark.parametrize("name", ["bert", "./absent", "/absent/model", "a/b/c", "", "../x", "org/", "org/na me"])
def test_what_cannot_be_a_hub_name_is_not_looked_up(monkeypatch, name):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir("/tmp")
    with pytest.raises(ModelError, match="neither a directory here nor a hub name"):
        fetch(name)


def test_a_cached_model_loads_offline(tiny_model, tmp_path, monkeypatch, offline):
    snapshot = cached(tiny_model, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_model(NAME)
    assert (loaded.path, loaded.name) == (snapshot, NAME)


def test_offline_and_not_cached(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"the hub cache does not hold the whole model.*HF_HUB_OFFLINE is set.*give the directory"
    ) as caught:
        fetch(NAME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "gated; accept its terms"),
        (RepositoryNotFoundError, "no such public model on https://"),
        (LocalEntryNotFoundError, "gave LocalEntryNotFoundError"),
        (ConnectionError, "gave ConnectionError"),
    ],
)
def test_every_failure_is_one_line(monkeypatch, error, message):
    response = SimpleNamespace(headers={}, request=None)

    def fail(*_, **__):
        raise (
            error("first line\nsecond", response=response)
            if issubclass(error, RepositoryNotFoundError)
            else error("x\ny")
        )

    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)  # a machine may have it set
    with pytest.raises(ModelError, match=message) as caught:
        fetch(NAME)
    assert "\n" not in str(caught.value)


def test_bin_files_are_asked_for_only_where_there_are_no_safetensors(monkeypatch, tmp_path):
    asked = []

    def download(name, *, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        if any(pattern.startswith(weights) for pattern in allow_patterns):
            (tmp_path / f"{weights}.bin").touch()
        return str(tmp_path)

    weights = "pytorch_model"
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert fetch(NAME) == tmp_path
    assert [any("safetensors" in pattern for pattern in patterns) for patterns in asked] == [True, False]
    (tmp_path / "model.safetensors").touch()
    asked.clear()
    fetch(NAME)
    assert len(asked) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_the_folder_of_the_transformer_are_found(monkeypatch, tmp_path, file):
    (tmp_path / "modules.json").write_text(json.dumps(rows(("Transformer", FOLDER))))
    (tmp_path / FOLDER).mkdir()
    asked = []

    def download(name, *, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        if any(fnmatch(f"{FOLDER}/{file}", pattern) for pattern in allow_patterns):
            (tmp_path / FOLDER / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert fetch(NAME) == tmp_path
    assert len(asked) == (1 if file == "model.safetensors" else 2)
    assert (tmp_path / FOLDER / file).exists()
