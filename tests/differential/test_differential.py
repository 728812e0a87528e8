"""Random but ordinary model directories: the same answer as the user's own library, or a refusal before the work."""

from collections.abc import Callable
from pathlib import Path

import pytest

import bitwright
from tests.differential.compare import RIGHT, UNLOADABLE, WRONG, judge, reason_of
from tests.differential.compatibility import DOCUMENT
from tests.differential.directory import write
from tests.differential.layouts import DIMENSIONS, draw, settle
from tests.differential.run import Judged, check, counts, judge_all, reasons, table

SEEDS = range(30)


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    return list(judge_all(SEEDS))


def test_a_plain_layout_is_right(tmp_path: Path) -> None:
    verdict = judge(settle({"seed": 0}), tmp_path / "plain")
    assert (verdict.kind, verdict.reason) == (RIGHT, "")


def test_another_answer_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(settle({"seed": 0, "sentence.pooling": ("cls",)}), tmp_path / "other")
    load: Callable[..., object] = bitwright.load
    monkeypatch.setattr(bitwright, "load", lambda path, **how: load(tmp_path / "other", **how))
    verdict = judge(settle({"seed": 0}), tmp_path / "plain")
    assert (verdict.kind, verdict.stage) == (WRONG, "float")


def test_a_seed_gives_one_layout_and_one_directory(tmp_path: Path) -> None:
    for seed in (1, 2):
        assert settle(draw(seed)) == draw(seed)
        for name in ("a", "b"):
            write(draw(seed), tmp_path / f"{seed}{name}")
        files = sorted(file.relative_to(tmp_path / f"{seed}a") for file in (tmp_path / f"{seed}a").rglob("*.*"))
        assert all(
            (tmp_path / f"{seed}a" / file).read_bytes() == (tmp_path / f"{seed}b" / file).read_bytes()
            for file in files
            if (tmp_path / f"{seed}a" / file).is_file()
        )


def test_each_choice_is_drawn() -> None:
    layouts = [draw(seed) for seed in range(3000)]
    missing = [
        f"{dimension.name} = {choice!r}"
        for dimension in DIMENSIONS
        for choice in dimension.choices
        if not any(dimension.name in layout and layout[dimension.name] == choice for layout in layouts)
    ]
    assert missing == []


def test_reasons_name_no_directory() -> None:
    messages = [f"ModelError: /tmp/layout-{name}/of/model/modules.json: the modules are Dense, 3" for name in "ab"]
    assert len({reason_of(message) for message in messages}) == 1


def test_the_library_loads_what_is_drawn(judged: list[Judged]) -> None:
    assert counts(judged)[UNLOADABLE] <= len(judged) // 10, table(judged)


def test_layouts_are_right_or_refused(judged: list[Judged]) -> None:
    check(judged)


def test_each_refusal_is_documented(judged: list[Judged]) -> None:
    documented = DOCUMENT.read_text(encoding="utf-8")
    assert [reason for reason in reasons(judged) if reason not in documented] == []


def test_each_choice_is_documented() -> None:
    documented = DOCUMENT.read_text(encoding="utf-8")
    names = [dimension.name.partition(".")[2] or dimension.name for dimension in DIMENSIONS]
    assert [name for name in names if f"| {name} |" not in documented] == []
