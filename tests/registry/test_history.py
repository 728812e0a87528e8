"""What served when."""

from dataclasses import replace

import pytest

from bitwright.errors import InputError
from bitwright.registry.change import promote, rollback
from bitwright.registry.history import changes, difference, moment, served_at
from bitwright.registry.state import Change, Model
from bitwright.registry.store import model_of, read_models
from tests.registry.conftest import Made


def test_every_change_is_kept_with_its_reason(made: Made) -> None:
    registry = made(2)
    promote(registry, "m", 1, force=True, reason="the first")
    promote(registry, "m", 2, force=True, reason="better")
    rollback(registry, "m", reason="it was not")
    found = changes(read_models(registry))
    assert [(one.what, one.version, one.replaces, one.reason) for one in found] == [
        ("promote", 1, None, "the first"), ("promote", 2, 1, "better"), ("rollback", 1, 2, "it was not")
    ]  # fmt: skip
    assert all("@" in one.by for one in found)
    for one in found:
        assert one.since is not None
        assert served_at(read_models(registry), one.since) == [one]


def change(version: int, since: str | None, **facts: bool) -> Change:
    return replace(Change(version, "2026-01-01", "promote", "m", version, None, "me@here"), since=since, **facts)


def test_what_served_at_a_time() -> None:
    done = (
        change(1, "2026-01-02T00:00:00.000000Z"),
        change(2, None, undone=True),
        change(3, "2026-02-01T12:00:00.000000Z"),
    )
    models = {"m": Model("m", {}, (), done), "n": Model("n")}

    def at(text: str) -> list[int]:
        return [one.version for one in served_at(models, moment(text))]

    assert at("2026-01-01") == []
    assert at("2026-01-02") == [1]
    assert at("2026-02-01T11:59:59.999") == [1]
    assert at("2026-02-01T12:00") == [3]
    assert at("2026-02-01T12:00+01:00") == [1]
    with pytest.raises(InputError, match="write a time as"):
        moment("yesterday")


def test_the_difference_of_versions_without_records(made: Made) -> None:
    registry = made(2)
    rows = {row.name: row for row in difference(registry, model_of(registry, "m"), 1, 2)}
    assert rows["files"].change == "same"
    assert rows["gates not passed"].a == "not run"
    with pytest.raises(InputError, match="no version 3"):
        difference(registry, model_of(registry, "m"), 1, 3)
