"""The registry in MLflow: versions with tags, and the aliases champion, challenger and previous.

MLflow takes seconds to import, so it is written by a process of its own (this file, run as a module), for which nobody
waits. It reads the log from where the last one stopped (`mirror.json`), and writes what the log says of each model that
occurs there. What is there already is left alone, so a killed mirror begins again at the same place.
"""

import json
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.atomic import write_text_atomically
from bitwright.errors import InputError, RegistryError
from bitwright.registry.lock import taken
from bitwright.registry.log import read_log
from bitwright.registry.state import Model, Version, fold
from bitwright.registry.store import OWN_MLFLOW, Registry, open_registry

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CURSOR, OUTPUT, DATABASE = "mirror.json", "mirror.log", "mlflow.db"
ABSENT = "MLflow is not installed; run: pip install 'bitwright[platform]'"
_WORKING, _WAITING = "mirror.lock", "mirror.waiting"
_TAG = "bitwright."
ALIASES = ("champion", "challenger", "previous")


def can_mirror(registry: Registry) -> bool:
    """Whether there is a mirror to be kept, and MLflow to do it."""
    return registry.mlflow is not None and find_spec("mlflow") is not None


def start(registry: Registry) -> bool:
    """Let MLflow follow the log, in a process that outlives this one. Whether one was started."""
    if not can_mirror(registry) or read_cursor(registry) >= len(read_log(registry.root).lines):
        return False
    nothing, log = (
        os.open(os.devnull, os.O_RDWR),
        os.open(registry.root / OUTPUT, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644),
    )
    try:
        streams = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, nothing, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        os.posix_spawn(
            sys.executable, command(registry), _environment(), file_actions=streams, setsid=True
        )  # fmt: skip
    finally:
        os.close(nothing)
        os.close(log)
    return True


def command(registry: Registry, *options: str) -> list[str]:
    """The command that lets MLflow follow. `-P`: files in the working directory must not shadow libraries."""
    return [sys.executable, "-P", "-m", "bitwright.registry.mirror", str(registry.root), *options]


def compared(registry: Registry) -> dict[str, Any]:
    """Compare all of MLflow with the log, and repair it; in a process of its own, which is waited for.

    Returns `seen`, the last entry of the log that MLflow knows of, and `repaired`, a text for each repair.

    Raises:
        InputError: MLflow is not installed. RegistryError: its database or server fails; the message has the reason.
    """
    import subprocess

    if not can_mirror(registry):
        raise InputError(ABSENT)
    done = subprocess.run(
        command(registry, "--all"), env=_environment(), capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise RegistryError(f"{address(registry)}: MLflow did not follow: {said[-1] if said else done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_cursor(registry: Registry) -> int:
    """How many entries of the log MLflow has followed."""
    try:
        return int(json.loads((registry.root / CURSOR).read_bytes())["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def address(registry: Registry) -> str:
    """MLflow's address."""
    return _sqlite(registry.root / DATABASE) if registry.mlflow == OWN_MLFLOW else str(registry.mlflow)


def _sqlite(file: Path) -> str:
    return f"sqlite:///{file}"


def catch_up(registry: Registry, *, everything: bool = False) -> dict[str, Any]:
    """Write into MLflow what the log says; of every model, or of those that occur since the last time.

    Returns as `compared`.
    """
    from mlflow.tracking import MlflowClient

    log = read_log(registry.root)
    models = fold(log.entries())
    since = 0 if everything else read_cursor(registry)
    names = dict.fromkeys(entry.name for entry in log.entries() if entry.number > since and entry.name)
    if registry.mlflow == OWN_MLFLOW:
        _make_database(registry.root / DATABASE)
    client = MlflowClient(tracking_uri=address(registry), registry_uri=address(registry))
    repaired: list[str] = []
    seen = 0
    for name in names:
        seen = max(seen, _follow(client, registry, models[name], len(log.lines), repaired))
    write_text_atomically(registry.root / CURSOR, json.dumps({"entries": len(log.lines)}) + "\n")
    return {"entries": len(log.lines), "seen": seen, "repaired": repaired}


def _make_database(file: Path) -> None:
    """Make MLflow's tables under another name first: half of them, as a kill leaves them, cannot be completed."""
    from mlflow.tracking import MlflowClient

    if file.exists():
        return
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    MlflowClient(tracking_uri=_sqlite(part), registry_uri=_sqlite(part)).search_registered_models(max_results=1)
    part.replace(file)


def _follow(client: "MlflowClient", registry: Registry, model: Model, entries: int, repaired: list[str]) -> int:
    """Bring one registered model to what the log says. Returns the last entry that it had seen."""
    from mlflow.exceptions import MlflowException

    try:
        registered = client.get_registered_model(model.name)
    except MlflowException:
        registered = client.create_registered_model(model.name, tags={f"{_TAG}registry": str(registry.root)})
    seen = int(registered.tags.get(f"{_TAG}entry", 0))
    known = {found.tags.get(f"{_TAG}version"): found for found in _versions(client, model.name)}
    for version in model.versions.values():
        tags = _tags(version)
        found = known.get(str(version.number))
        if found is None:
            source = _source(registry, model.name, version.number)
            found = client.create_model_version(model.name, source, tags=tags, description=version.note)
            known[str(version.number)] = found
            repaired.append(f"{model.name}: version {version.number} was not in MLflow")
        for key, value in tags.items():
            if found.tags.get(key) != value:
                client.set_model_version_tag(model.name, found.version, key, value)
                repaired.append(f"{model.name}: tag {key} of version {version.number} was {found.tags.get(key)!r}")
    for alias in ALIASES:
        number = getattr(model, alias)
        wanted = None if number is None else str(known[str(number)].version)
        now = registered.aliases.get(alias)
        if wanted is None and now is not None:
            client.delete_registered_model_alias(model.name, alias)
        elif wanted is not None and str(now) != wanted:
            client.set_registered_model_alias(model.name, alias, wanted)
        if wanted != (None if now is None else str(now)):
            repaired.append(f"{model.name}: alias {alias} was {_ours(known.values(), now)}, and is {number or 'none'}")
    if seen < entries:
        client.set_registered_model_tag(model.name, f"{_TAG}entry", str(entries))
    return seen


def _versions(client: "MlflowClient", name: str) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name='{name}'", max_results=1000, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def _ours(found: Iterable[Any], mlflow_version: Any) -> str:
    """Our number of the version that MLflow has under one of its own."""
    return next(
        (str(one.tags.get(f"{_TAG}version")) for one in found if str(one.version) == str(mlflow_version)), "none"
    )


def _tags(version: Version) -> dict[str, str]:
    gates = "not run" if not version.checks else "passed" if version.checks[-1].passed else "failed"
    facts = {
        "version": version.number, "content": version.content, "space": version.space, "verdict": version.verdict,
        "gates": gates, "bytes": version.bytes, "signed": version.signed,
    }  # fmt: skip
    return {f"{_TAG}{key}": str(value) for key, value in facts.items()}


def _source(registry: Registry, name: str, number: int) -> str:
    """Where MLflow says that a version lies. Its servers take no local paths, so they get a name."""
    if registry.mlflow and registry.mlflow.startswith(("http:", "https:")):
        return f"bitwright:///models/{name}/versions/{number}"
    return registry.version(name, number).as_uri()


def _environment() -> dict[str, str]:
    """Ours, without MLflow's usage statistics and remarks."""
    return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}


def main(arguments: list[str]) -> None:
    """Follow the log until there is nothing new. At most one process works, and one more waits for what comes next."""
    registry, everything = open_registry(Path(arguments[0])), "--all" in arguments
    os.chdir(registry.root)  # MLflow makes folders where it runs
    with (registry.root / _WAITING).open("a") as waiting, (registry.root / _WORKING).open("a") as working:
        if not everything and not taken(waiting):
            return  # who waits has not read the log yet
        import fcntl

        fcntl.flock(working, fcntl.LOCK_EX)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        print(json.dumps(catch_up(registry, everything=everything)))


if __name__ == "__main__":
    main(sys.argv[1:])
