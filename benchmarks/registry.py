"""How fast the registry is with 200 models of 20 versions: `python benchmarks/registry.py`.

Versions are small and made up; everything else is real: the signed log, the links, a new process for each command.
Printed: the median and the slowest of ten times, in seconds, of a command as a person starts it (interpreter included),
and how much of it the change takes. No gates run, and MLflow does not follow (`--mlflow` lets it, and waits for it).
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from bitwright.registry import mirror
from bitwright.registry.add import add
from bitwright.registry.change import promote, rollback
from bitwright.registry.log import read_log
from bitwright.registry.store import Registry, finish, make_registry, put_in_place, read_models, writing
from bitwright.registry.verify import verify

TIMES = 10


def main() -> None:
    """Fill a registry, and time it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--mlflow", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        registry = make_registry(Path(folder) / "registry", mlflow="own" if asked.mlflow else None)
        seconds = _timed(lambda: _fill(registry, Path(folder) / "model", asked.models, asked.versions))
        entries = len(read_log(registry.root).lines)
        size = (registry.root / "log.jsonl").stat().st_size
        print(f"{asked.models} models, {asked.versions} versions each, in {seconds:.0f} s")
        print(f"log: {entries} entries, {size / 1e6:.1f} MB; read in {_timed(lambda: read_log(registry.root)):.3f} s")
        rows = dict(_commands(registry))
        rows |= {"promote, the change alone": _changes(registry)}
        for name, found in rows.items():
            print(f"{name:28s} median {median(found):.3f} s, slowest {max(found):.3f} s")
        print(f"verify --quick: {_timed(lambda: verify(registry, 'model-000', files=False)):.1f} s")
        if asked.mlflow:
            print(f"MLflow follows from nothing in {_timed(lambda: mirror.compared(registry)):.0f} s")
        served = {name: model.champion for name, model in read_models(registry).items()}
        print(json.dumps({"champions": sorted({str(version) for version in served.values()})}))


def _fill(registry: Registry, source: Path, models: int, versions: int) -> None:
    """Versions of every model, of which the last three were served. One session writes them all: each of its own would
    read the log anew."""
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    (source / "modules.json").write_text("[]")
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    first = add(registry, source, "model-000", sign=False)
    facts = {"bytes": first.bytes, "verdict": None, "source": first.source, "claimed": first.claimed, "task": None}
    manifest = registry.version("model-000", 1).with_name("1.manifest").read_text()
    with writing(registry, "fill") as writer:
        for i in range(models):
            name = f"model-{i:03d}"
            for number in range(2 if i == 0 else 1, versions + 1):
                place = registry.version(name, number)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, place.with_name("part-0"), copy_function=os.link)
                place.with_name("part-0.manifest").write_text(manifest)
                writer.append(
                    "add", name, version=number, content=first.content, part="part-0", signed=False, note="", **facts
                )
                put_in_place(writer, name, place, "part-0")
            for number in range(max(1, versions - 2), versions + 1):
                writer.append("promote", name, version=number, replaces=None, reason="filling", forced=True)
                finish(writer, name, number)


def _commands(registry: Registry) -> Iterator[tuple[str, list[float]]]:
    """Commands in processes of their own, warm."""
    forced = ("--force", "--reason", "timing")
    words: dict[str, Callable[[int], tuple[str, ...]]] = {
        "bitwright --version": lambda i: (),
        "promote": lambda i: ("promote", f"model-{i:03d}", "1", *forced),
        "rollback": lambda i: ("rollback", f"model-{i:03d}"),
        "list": lambda i: ("list",),
        "list NAME": lambda i: ("list", f"model-{i:03d}"),
        "history --at": lambda i: ("history", "--at", "2100-01-01"),
    }
    for name, of in words.items():
        command = [sys.executable, "-m", "bitwright"]
        rest = [
            ["registry", *of(i), "--registry", str(registry.root)] if of(i) else ["--version"] for i in range(TIMES)
        ]
        yield name, [_timed(partial(_run, [*command, *line])) for line in rest]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _changes(registry: Registry) -> list[float]:
    """Inside a process that is running."""
    found = []
    for i in range(TIMES):
        name = f"model-{i:03d}"
        found.append(_timed(partial(promote, registry, name, 1, force=True, reason="timing")))
        rollback(registry, name)
    return found


def _timed(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
