"""A version is a copy that nobody changes, or it is not there."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import CheckpointError, InputError, ModelError, RegistryError
from bitwright.registry.add import add, changed_files
from bitwright.registry.log import read_log
from bitwright.registry.signing import check_signature, installed
from bitwright.registry.store import Registry, make_registry, model_of, read_models, writing
from bitwright.registry.verify import verify
from tests.registry.conftest import Made, killed_after, lines_of

KILLS = 12


def test_a_copy_is_independent_and_read_only(made: Made, plain: Path) -> None:
    registry = made(1)
    place = registry.version("m", 1)
    assert {file.name for file in place.iterdir()} == {"config.json", "modules.json", "model.safetensors"}
    assert place.joinpath("config.json").stat().st_mode & 0o222 == 0
    (plain / "config.json").write_text("{}")
    version = model_of(registry, "m").versions[1]
    assert changed_files(place, version.content) == []
    assert version.bytes == (plain / "model.safetensors").stat().st_size


def test_links_share_the_file_and_a_change_is_seen(made: Made, plain: Path) -> None:
    registry = made(0)
    version = add(registry, plain, "m", link=True, sign=False)
    place = registry.version("m", 1)
    assert place.joinpath("config.json").samefile(plain / "config.json")
    with (plain / "config.json").open("a") as file:
        file.write(" ")
    (place / "more.txt").write_text("x")
    assert changed_files(place, version.content) == ["config.json", "more.txt"]
    assert "config.json, more.txt" in verify(registry).damage[0]
    place.with_name("1.manifest").write_text("")
    with pytest.raises(RegistryError, match="not the manifest"):
        changed_files(place, version.content)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 101, "a b", "a\n"])
def test_names_are_names_of_folders(made: Made, plain: Path, name: str) -> None:
    registry = made(0)
    with pytest.raises(InputError, match="cannot name a model"):
        add(registry, plain, name, sign=False)
    assert list(registry.root.glob("models/*")) == []


def test_what_is_no_model_is_refused(made: Made, tmp_path: Path, plain: Path) -> None:
    registry = made(1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        add(registry, tmp_path / "empty", "m", sign=False)
    with pytest.raises(InputError, match="give the directory"):
        add(registry, plain / "config.json", "m", sign=False)
    (plain / "record.json").write_text("{}")
    with pytest.raises(CheckpointError, match="record_version"):
        add(registry, plain, "m", sign=False)
    assert sorted(model_of(registry, "m").versions) == [1]


def test_a_full_disk_leaves_nothing(made: Made, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = made(1)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr("bitwright.registry.add.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            add(registry, plain, "m", sign=False)
    assert sorted(file.name for file in registry.version("m", 1).parent.iterdir()) == ["1", "1.manifest"]
    assert verify(registry).damage == ()


def test_killed_at_any_moment_a_version_is_there_or_not(
    made: Made, plain: Path, copied: Callable[[Registry], Registry]
) -> None:  # fmt: skip
    registry = made(1)
    seen = set()
    lines = lines_of(lambda: add(copied(registry), plain, "m", sign=False))
    for kill in range(KILLS):
        copy = copied(registry)
        killed = killed_after(round(lines * kill / KILLS), lambda copy=copy: add(copy, plain, "m", sign=False))
        versions = model_of(copy, "m").versions
        seen.add((killed, len(versions)))
        assert verify(copy).damage == ()
        assert add(copy, plain, "m", sign=False).number == len(versions) + 1  # and what was left is cleared away
        names = {file.name.split(".")[0] for file in copy.version("m", 1).parent.iterdir()}
        assert names == {str(number + 1) for number in range(len(versions) + 1)}
    assert {(True, 1), (True, 2)} <= seen


def test_an_added_version_whose_files_were_lost_is_gone(made: Made) -> None:
    registry = made(1)
    with writing(registry, "add") as writer:
        facts = {"content": "", "signed": False, "bytes": 1, "verdict": None, "source": "", "claimed": "", "task": None}
        writer.append("add", "m", version=2, part="part-0-0", note=None, **facts)
    model = read_models(registry)["m"]
    with writing(registry, "look") as writer:
        model = writer.model("m")
    assert model.versions[2].gone
    assert model.challenger == 1
    with pytest.raises(InputError, match="no version 2; there are 1"):
        model.version(2)


def test_a_folder_of_others_becomes_no_registry(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(InputError, match="holds other files"):
        make_registry(plain)
    registry = make_registry(tmp_path / "new" / "registry", mlflow=None)
    assert make_registry(registry.root) == registry  # what is there stays as it is
    add(registry, plain, "m", sign=False)
    (registry.root / "registry.json").unlink()
    with pytest.raises(RegistryError, match="the file is gone, but the log is there"):
        make_registry(registry.root)


@pytest.mark.skipif(not installed(), reason="needs model-signing")
def test_other_tools_check_the_signature(made: Made, plain: Path) -> None:
    registry = made(0)
    assert add(registry, plain, "m").signed
    place, key = registry.version("m", 1), registry.root / "key" / "public.pem"
    check_signature(place, place.with_name("1.sig"), key)
    other = make_registry(registry.root.parent / "other", mlflow=None)
    with pytest.raises(RegistryError, match="does not match"):
        check_signature(place, place.with_name("1.sig"), other.root / "key" / "public.pem")
    place.joinpath("modules.json").chmod(0o644)
    place.joinpath("modules.json").write_text("[1]")
    with pytest.raises(RegistryError, match=r"does not match.*modules.json"):
        check_signature(place, place.with_name("1.sig"), key)


def test_without_model_signing_versions_are_added(made: Made, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.registry.signing.find_spec", lambda name: None)
    registry = made(0)
    assert not add(registry, plain, "m").signed
    assert len(read_log(registry.root).lines) == 2
    with pytest.raises(InputError, match=r"pip install 'bitwright\[platform\]'"):
        check_signature(plain, plain, plain)


def test_without_cryptography_the_pip_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"pip install 'bitwright\[platform\]'"):
        make_registry(tmp_path / "registry")
    assert os.listdir(tmp_path) in ([], ["registry"])
