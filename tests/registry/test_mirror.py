"""MLflow says what the log says, whatever somebody did to it, and whenever its process was killed."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import InputError
from bitwright.registry import mirror
from bitwright.registry.add import add
from bitwright.registry.change import promote, rollback
from bitwright.registry.log import read_log
from bitwright.registry.store import Registry, make_registry, open_registry
from bitwright.registry.verify import verify
from tests.registry.conftest import Made

Clients = Callable[[Registry], Any]


@pytest.fixture
def registry(tmp_path: Path, plain: Path) -> Registry:
    """Three versions, of which two were served, and one is again."""
    registry = make_registry(tmp_path / "registry")
    for _ in range(3):
        add(registry, plain, "m", sign=False)
    for version in (1, 2):
        promote(registry, "m", version, force=True, reason="a test")
    rollback(registry, "m")
    return registry


def aliases(registry: Registry, *, change: str = "") -> dict[str, Any]:
    """What MLflow has, read by a process of its own: {alias: our version}, and the tags of each version."""
    code = f"""
import json
from mlflow.tracking import MlflowClient
client = MlflowClient({mirror.address(registry)!r}, {mirror.address(registry)!r})
{change}
found = client.get_registered_model("m")
versions = {{str(one.version): one.tags for one in client.search_model_versions("name='m'")}}
print(json.dumps([found.aliases, versions]))
"""
    command = mirror.command(registry)[:1]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    named, versions = json.loads(done.stdout.splitlines()[-1])
    return {
        "aliases": {alias: versions[str(number)]["bitwright.version"] for alias, number in named.items()},
        "versions": versions,
    }


def test_without_mlflow_nothing_is_started(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = made(1)
    assert not mirror.start(registry)  # it has none
    own = Registry(registry.root, "own", {})
    monkeypatch.setattr(mirror, "find_spec", lambda name: None)
    assert not mirror.start(own)
    with pytest.raises(InputError, match=r"pip install 'bitwright\[platform\]'"):
        mirror.compared(own)
    assert verify(own).remarks == (f"MLflow was not compared: {mirror.ABSENT}",)


def test_a_mirror_that_is_up_to_date_is_left_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(made(1).root, "own", {})
    monkeypatch.setattr(mirror, "can_mirror", lambda registry: True)
    monkeypatch.setattr(os, "posix_spawn", lambda *args, **kwargs: pytest.fail("it was started"))
    entries = len(read_log(registry.root).lines)
    (registry.root / mirror.CURSOR).write_text(json.dumps({"entries": entries}))
    assert mirror.read_cursor(registry) == entries
    assert not mirror.start(registry)
    (registry.root / mirror.CURSOR).write_text("{")
    assert mirror.read_cursor(registry) == 0


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow")
def test_mlflow_follows_and_is_repaired(registry: Registry, plain: Path) -> None:
    entries = len(read_log(registry.root).lines)
    begun = time.monotonic()
    assert mirror.start(registry)
    assert time.monotonic() - begun < 0.3
    deadline = time.monotonic() + 120
    while mirror.read_cursor(registry) < entries:
        assert time.monotonic() < deadline, (registry.root / mirror.OUTPUT).read_text()
        time.sleep(0.1)
    found = aliases(registry)
    # versions and aliases as the log has them
    assert found["aliases"] == {"champion": "1", "challenger": "3"}
    assert {tags["bitwright.version"] for tags in found["versions"].values()} == {"1", "2", "3"}
    assert {tags["bitwright.gates"] for tags in found["versions"].values()} == {"not run"}
    assert mirror.compared(registry) == {"entries": entries, "seen": entries, "repaired": []}
    # what somebody changed is changed back
    change = """
client.set_registered_model_alias("m", "champion", "2")
client.delete_registered_model_alias("m", "challenger")
client.delete_model_version("m", "2")
"""
    assert aliases(registry, change=change)["aliases"] == {}
    repaired = verify(registry).repaired
    assert set(repaired) == {
        "MLflow: m: version 2 was not in MLflow",
        "MLflow: m: alias champion was none, and is 1",
        "MLflow: m: alias challenger was none, and is 3",
    }
    found = aliases(registry)
    assert found["aliases"] == {"champion": "1", "challenger": "3"}
    assert sorted(tags["bitwright.version"] for tags in found["versions"].values()) == ["1", "2", "3"]
    # an older log with its older head is told by what MLflow has seen
    saved = [(registry.root / name, (registry.root / name).read_bytes()) for name in ("log.jsonl", "head.json")]
    promote(registry, "m", 3, force=True, reason="a test")
    mirror.compared(registry)
    for file, content in saved:
        file.write_bytes(content)
    assert (
        f"the log was cut: it ends at entry {entries}, and MLflow has seen entry {entries + 2}"
        in verify(registry).damage
    )


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow")
def test_a_killed_mirror_begins_again(registry: Registry) -> None:
    for seconds in (3.0, 4.5, 6.0):
        process = subprocess.Popen(mirror.command(registry), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    mirror.compared(registry)
    found = aliases(registry)
    assert found["aliases"] == {"champion": "1", "challenger": "3"}
    assert sorted(tags["bitwright.version"] for tags in found["versions"].values()) == ["1", "2", "3"]


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow")
def test_a_server_that_cannot_be_reached_stops_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = registry.root / "registry.json"
    settings.write_text(settings.read_text().replace('"own"', '"http://127.0.0.1:9"'))
    away = open_registry(registry.root)
    promote(away, "m", 3, force=True, reason="a test")
    assert verify(away).remarks[0].startswith("MLflow was not compared: http://127.0.0.1:9: MLflow did not follow")
