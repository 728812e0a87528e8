"""A journal of measurements, so that a run that was killed does not measure them again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Values by key, appended to a file of JSON lines; each is on disk before the next is measured.

    `context` says what the values depend on (model, texts, schemes, instruction set …). Entries of another context are
    ignored, not deleted. A last line that a kill cut short is ignored too. `path=None` keeps nothing on disk.
    `reused` counts the values that an earlier process measured and this one asked for.
    """

    def __init__(self, path: Path | None, context: str) -> None:
        self.path, self.context = path, context
        self.values: dict[str, Any] = {}
        self.reused = 0
        self._earlier: frozenset[str] = frozenset()
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        if not text.endswith("\n"):  # a kill cut the last line short: close it, so that the next one stands alone
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if entry["context"] == context:
                    self.values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                continue
        self._earlier = frozenset(self.values)

    def remember(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of `key`: from the journal, or measured now and written down. It must be plain data."""
        if key in self.values:
            self.reused += key in self._earlier
            return self.values[key]
        value = measure()
        self.values[key] = value
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"context": self.context, "key": key, "value": value}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return value
