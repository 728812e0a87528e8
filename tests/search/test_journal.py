"""What was measured before a kill is not measured again, and what belongs to other data is not believed."""

import json
from pathlib import Path

from bitwright.search.journal import Journal


def test_journal_remembers_across_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return 0.1 + 0.2

    first = Journal(path, "context")
    assert first.remember("a", lambda: measure("a")) == 0.1 + 0.2
    path.write_text(path.read_text() + '{"context": "context", "key": "b", "val')  # killed here
    second = Journal(path, "context")
    assert second.remember("a", lambda: measure("again")) == 0.1 + 0.2
    second.remember("b", lambda: measure("b"))
    third = Journal(path, "context")
    third.remember("b", lambda: measure("again"))
    assert calls == ["a", "b"]
    assert (first.reused, second.reused, third.reused) == (0, 1, 1)
    first.remember("a", lambda: measure("again"))
    assert first.reused == 0  # measured by this very process


def test_journal_of_another_context_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path, "one").remember("a", lambda: 1)
    assert Journal(path, "two").remember("a", lambda: 2) == 2
    assert Journal(path, "one").remember("a", lambda: 3) == 1
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
