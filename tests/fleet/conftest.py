"""A fleet of small random models, whose workers are this process."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitwright.fleet.config import Fleet, read_fleet
from bitwright.fleet.rows import Row
from bitwright.fleet.run import FleetRun
from bitwright.workers.tasks import Done, Failed, Work

MakeFleet = Callable[..., Fleet]
DEFAULTS = {
    "data": ["mine.txt"], "samples": 40, "judge": False,
    "recipe": {"scheme": "w8a8", "targets": ["bitwright"], "budget": {"max_loss": 0.5}},
}  # fmt: skip


@pytest.fixture
def make_fleet(tmp_path: Path, tiny_model: Callable[..., Path], texts: list[str]) -> MakeFleet:
    """`make_fleet(models, **said)`: a fleet.yaml, read. Models are families, or mappings as the file has them."""

    def make(models: list[Any], **said: Any) -> Fleet:
        rows = [{"name": row, "model": str(tiny_model(row))} if isinstance(row, str) else row for row in models]
        said = {"defaults": DEFAULTS, "models": rows} | said
        if not (tmp_path / "mine.txt").exists():
            (tmp_path / "mine.txt").write_text("\n".join(texts))
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(said))
        return read_fleet(tmp_path / "fleet.yaml")

    return make


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks run in this process, one by one. The names of those that ran."""
    ran: list[str] = []

    def run(tasks: Iterable[Any], start: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        work = Work(start)
        for task in tasks:
            assert task is not None, "a task must wait for one that is done already"
            ran.append(task[0])
            match work(task[1]):
                case Done(result):
                    yield task[0], result
                case Failed(error):
                    raise error

    monkeypatch.setattr("bitwright.fleet.run.tasks.run", run)
    return ran


def go(fleet: Fleet, **options: Any) -> dict[str, Row]:
    """Run a fleet: what became of each model."""
    return {row.name: row for row in FleetRun(fleet, **options).go()}
