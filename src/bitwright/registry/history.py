"""What served when, and how two versions differ."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bitwright.errors import InputError
from bitwright.registry.log import as_time
from bitwright.registry.state import Change, Model, Version
from bitwright.registry.store import Registry

if TYPE_CHECKING:
    from bitwright.record import Record
    from bitwright.report.compare import ComparisonRow


def changes(models: Mapping[str, Model]) -> list[Change]:
    """Every promotion and rollback, in the order of the log."""
    return sorted((change for model in models.values() for change in model.changes), key=lambda change: change.number)


def served_at(models: Mapping[str, Model], time: str) -> list[Change]:
    """Of each model that was served then, the change that had put its version in place."""
    found = (model.serving_at(time) for model in models.values())
    return [change for change in found if change is not None]


def moment(text: str) -> str:
    """A time as the log writes it. Without a time zone it is UTC; a date alone is its beginning.

    Raises:
        InputError: it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"--at {text}: write a time as 2026-11-30, or 2026-11-30T18:05:00") from None
    return as_time((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def difference(registry: Registry, model: Model, a: int, b: int) -> "list[ComparisonRow]":
    """Two versions side by side: what the registry knows of them, then their records.

    Raises:
        InputError: no such version. CheckpointError: a record that cannot be read.
    """
    from bitwright.report.compare import ComparisonRow, compare_records

    left, right = model.version(a), model.version(b)
    own = [(name, of(left), of(right)) for name, of in _FACTS.items()]
    rows = [ComparisonRow(name, x, y, "same" if x == y else "differs") for name, x, y in own]
    return rows + compare_records(*(_record(registry, model, version) for version in (left, right)))


def _record(registry: Registry, model: Model, version: Version) -> "Record":
    from bitwright.record import RECORD_FILE, Record, read_record

    place = registry.version(model.name, version.number)
    return read_record(place) if (place / RECORD_FILE).exists() else Record()


_FACTS: dict[str, Callable[[Version], str]] = {
    "added": lambda version: version.time[:19],
    "files": lambda version: version.content[:12],
    "weight files": lambda version: f"{version.bytes / 1e6:.1f} MB",
    "vectors": lambda version: version.space[:12],
    "gates not passed": lambda version: ", ".join(version.checks[-1].failed) or "none" if version.checks else "not run",
}
