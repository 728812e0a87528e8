"""Promote and roll back: what is served is what the log says, whoever was killed when."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.registry.add import add
from bitwright.registry.change import candidate, promote, rollback
from bitwright.registry.lock import LOCK, locked
from bitwright.registry.log import LOG, read_log
from bitwright.registry.state import Model
from bitwright.registry.store import (
    CURRENT,
    Registry,
    linked,
    make_registry,
    model_of,
    open_registry,
    read_models,
    writing,
)
from bitwright.registry.verify import verify
from tests.registry.conftest import Made, killed_after, lines_of


def force(registry: Registry, version: int) -> None:
    promote(registry, "m", version, force=True, reason="a test")


def served(registry: Registry) -> int | None:
    return linked(registry.folder("m") / CURRENT)


def test_the_link_and_the_log_say_the_same(made: Made) -> None:
    registry = made(3)
    seen: list[tuple[int | None, int | None, int | None]] = []
    for step in (1, 2, 3, "back", "back", 3, "back"):
        rollback(registry, "m") if step == "back" else force(registry, int(step))
        model = model_of(registry, "m")
        seen.append((model.champion, model.previous, served(registry)))
    assert seen == [(1, None, 1), (2, 1, 2), (3, 2, 3), (2, 1, 2), (1, None, 1), (3, 1, 3), (1, None, 1)]
    assert (registry.folder("m") / CURRENT / "config.json").is_file()


def test_a_rollback_to_an_earlier_champion_forgets_those_between(made: Made) -> None:
    registry = made(3)
    for version in (1, 2, 3):
        force(registry, version)
    assert rollback(registry, "m", to=1, reason="2 was bad, too").reason == "2 was bad, too"
    with pytest.raises(InputError, match="nothing to go back"):
        rollback(registry, "m")
    force(registry, 2)
    with pytest.raises(InputError, match="as version 3"):
        rollback(registry, "m", to=3)


def test_without_passed_gates_nothing_is_promoted(made: Made) -> None:
    registry = made(1)
    with pytest.raises(InputError, match="gates did not run for version 1 against no champion"):
        promote(registry, "m", 1)
    with pytest.raises(InputError, match="--reason"):
        promote(registry, "m", 1, force=True, reason=" ")
    outcome = {"gate": "size", "state": "failed", "detail": "too large", "figures": {}}
    with writing(registry, "gates") as writer:
        writer.append("gates", "m", version=1, against=None, passed=False, space=None, outcomes=[outcome])
    with pytest.raises(InputError, match=r"did not pass size against no champion\. too large"):
        promote(registry, "m", 1)
    assert served(registry) is None
    with writing(registry, "gates") as writer:
        writer.append("gates", "m", version=1, against=None, passed=True, space="s", outcomes=[])
    assert not promote(registry, "m", 1).forced
    assert served(registry) == 1


def test_gates_against_another_champion_do_not_count(made: Made) -> None:
    registry = made(3)
    force(registry, 1)
    with writing(registry, "gates") as writer:
        writer.append("gates", "m", version=3, against=1, passed=True, space="s", outcomes=[])
    force(registry, 2)
    with pytest.raises(InputError, match="against champion 2"):
        promote(registry, "m", 3)
    rollback(registry, "m")
    assert promote(registry, "m", 3).replaces == 1


def test_what_is_promoted_exists_and_is_not_served_yet(made: Made) -> None:
    registry = made(2)
    assert candidate(registry, "m", None)[1] == 2
    force(registry, 2)
    with pytest.raises(InputError, match="no version is newer"):
        candidate(registry, "m", None)
    for version, said in ((2, "is the champion already"), (7, "no version 7; there are 1, 2")):
        with pytest.raises(InputError, match=said):
            candidate(registry, "m", version)
        with pytest.raises(InputError, match=said):
            force(registry, version)
    with pytest.raises(InputError, match="did you mean 'm'"):
        model_of(registry, "mm")


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.full)])
def test_killed_at_any_moment_it_is_done_or_undone(
    made: Made, copied: Callable[[Registry], Registry], kills: int
) -> None:
    """A link is the old one or the new one, and what the next command reads is what the link says, for ever."""
    registry = made(2)
    force(registry, 1)
    lines = lines_of(lambda: force(copied(registry), 2))
    assert lines > 150
    seen = set()
    for kill in range(kills):
        copy = copied(registry)
        assert killed_after(round(lines * kill / kills), lambda copy=copy: force(copy, 2))
        found = served(copy)
        assert found in (1, 2)
        model = model_of(copy, "m")  # the next command
        assert model.champion == served(copy)
        assert all(change.since is not None or change.undone for change in model.changes)
        assert verify(copy, files=False).damage == ()
        entries = len(read_log(copy.root).lines)
        seen.add((found, model.champion, entries))
        if model.champion == 1:
            force(copy, 2)
        assert rollback(copy, "m").version == 1
    assert {found for found, _, _ in seen} == {1, 2}
    assert {champion for _, champion, _ in seen} == {1, 2}


def test_a_swap_that_was_cut_has_the_time_of_the_swap(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = made(2)
    force(registry, 1)

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        from bitwright.registry.store import Writer

        append = Writer.append
        patch.setattr(
            Writer, "append", lambda self, what, *a, **k: cut() if what == "done" else append(self, what, *a, **k)
        )
        with pytest.raises(KeyboardInterrupt):
            force(registry, 2)
    link = registry.folder("m") / CURRENT
    assert linked(link) == 2
    swapped = link.lstat().st_mtime
    change = model_of(registry, "m").changes[-1]
    assert change.since is not None
    assert change.since >= change.time
    from bitwright.registry.log import as_time

    assert change.since == max(change.time, as_time(swapped))


def test_a_version_that_is_gone_undoes_its_promotion(made: Made) -> None:
    registry = made(2)
    force(registry, 1)
    with writing(registry, "promote") as writer:
        writer.append("promote", "m", version=2, replaces=1, reason=None, forced=True)
    registry.version("m", 2).rename(registry.root / "elsewhere")
    model = model_of(registry, "m")
    assert (model.champion, served(registry)) == (1, 1)
    assert model.changes[-1].undone
    with pytest.raises(InputError, match="files of version 2 are gone"):
        force(registry, 2)


def test_two_at_once_are_told_who_is_there(made: Made) -> None:
    registry = made(1)
    with (
        locked(registry.root, "promote other"),
        pytest.raises(InputError, match=rf"process {os.getpid()} of .*`promote"),
        writing(registry, "x", wait_s=0.05),
    ):
        pass
    force(registry, 1)  # the lock is free again


def test_the_lock_of_a_dead_process_is_free(made: Made) -> None:
    registry = made(1)

    def hold() -> None:
        with locked(registry.root, "promote"):
            os._exit(0)

    killed_after(10**9, hold)
    assert (registry.root / LOCK).read_text()
    force(registry, 1)


def test_reading_does_not_wait_for_a_writer(made: Made) -> None:
    registry = made(2)
    force(registry, 1)
    with (registry.root / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (registry.root / LOG).open("ab") as log:
            log.write(b'{"before":')  # half of a line
        assert read_models(registry)["m"].champion == 1


def test_versions_are_added_while_others_are_promoted(made: Made, plain: Path) -> None:
    """Three processes at once, each on its own; none fails, and the log is whole."""
    registry = made(2)
    children = []
    for work in (
        lambda: [add(registry, plain, "m", sign=False) for _ in range(6)],
        lambda: [add(registry, plain, "n", sign=False) for _ in range(6)],
        lambda: [(force(registry, 1), force(registry, 2)) for _ in range(4)],
    ):
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    models = read_models(registry)
    assert sorted(models["m"].versions) == list(range(1, 9))
    assert sorted(models["n"].versions) == list(range(1, 7))
    assert models["m"].champion == served(registry) == 2
    assert verify(registry).damage == ()


def test_another_schema_is_refused(made: Made) -> None:
    registry = made(1)
    settings = registry.root / "registry.json"
    settings.write_text(settings.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(InputError, match="schema 2; this release reads 1"):
        open_registry(registry.root)


def test_a_model_without_versions_is_empty() -> None:
    model = Model("m")
    assert (model.champion, model.previous, model.challenger) == (None, None, None)
    assert model.serving_at("2026") is None


def test_two_make_the_same_registry(tmp_path: Path, plain: Path) -> None:
    """One key, and no version lost, whoever was first."""
    children = []
    for name in "abcd":
        child = os.fork()
        if child == 0:
            try:
                add(make_registry(tmp_path / "registry", mlflow=None), plain, name, sign=False)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    registry = open_registry(tmp_path / "registry")
    assert sorted(read_models(registry)) == list("abcd")
    assert verify(registry).damage == ()
