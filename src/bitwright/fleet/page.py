"""fleet.json and fleet.html: what became of each model, what it cost, and what changed since last time."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bitwright
from bitwright.atomic import write_text_atomically
from bitwright.fleet.config import Fleet
from bitwright.fleet.receipts import FAILED, SKIPPED, Outcome, now
from bitwright.fleet.rows import Row, exit_code, status_rows
from bitwright.fleet.run import STALE_REQUEST
from bitwright.record import plain_data
from bitwright.report.page import REPORT_FILE, content_policy, environment, packaged_style
from bitwright.report.verdict import NOT_EVALUATED, STATES
from bitwright.report.wording import ABSENT, percent, seconds, size

FLEET_JSON, FLEET_PAGE = "fleet.json", "fleet.html"
FLEET_VERSION = 1

# The verdict -> (CSS class, symbol, heading).
_STATES = STATES | {
    FAILED: ("failed", "✕", "No result"),
    SKIPPED: ("undecided", "–", "Skipped"),
    "not judged": NOT_EVALUATED,
}
# What changed -> how it is told.
_WHY = {
    "new": "new", "model": "the model changed", "recipe": "the recipe changed", "texts": "the texts changed",
    "release": "another release of Bitwright or its libraries", "instruction set": "another instruction set",
    "result": "the result was changed or removed", "failed": "it had failed", "interrupted": "it had been interrupted",
    "request": "a new calibration was asked for",
    STALE_REQUEST: "a new calibration was asked for, but its texts are the same as before: give fresh_data",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One model as the page and the terminal show it: all texts."""

    name: str
    state: tuple[str, str, str]
    loss: str
    allowed: str
    bytes: str
    took: str
    since: str
    note: str
    link: str


def write_summary(fleet: Fleet, rows: Sequence[Row]) -> dict[str, Any]:
    """Write fleet.json and fleet.html, and return what fleet.json holds.

    Models that this run left out (`--only`) are shown as their receipts have them, and do not count for the exit code.

    Raises:
        OSError: they cannot be written.
    """
    out, done = fleet.out, {row.name: row for row in rows}
    whole = [done.get(row.name, row) for row in status_rows(fleet)]
    data = summary(out, whole) | {"exit_code": int(exit_code(rows))}
    write_text_atomically(out / FLEET_JSON, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text_atomically(out / FLEET_PAGE, render(out, whole))
    return data


def summary(out: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """What fleet.json holds."""
    models = [
        {
            "name": row.name, "state": row.state, "out": str(row.out), "report": _link(out, row),
            "changed": list(row.why), "outcome": plain_data(row.outcome), "before": plain_data(row.before),
        }
        for row in rows
    ]  # fmt: skip
    return {
        "fleet_version": FLEET_VERSION, "bitwright_version": bitwright.__version__, "created": now(),
        "exit_code": int(exit_code(rows)), "counts": dict(counts(rows)), "models": models,
    }  # fmt: skip


def counts(rows: Sequence[Row]) -> Counter[str]:
    """How many models have each verdict."""
    return Counter(row.outcome.verdict if row.outcome else row.state for row in rows)


def render(out: Path, rows: Sequence[Row]) -> str:
    """The page as one self-contained HTML file without scripts."""
    template = files("bitwright.fleet").joinpath("fleet.html.j2").read_text(encoding="utf-8")
    known = [row.outcome for row in rows if row.outcome is not None]
    before, after = (sum(getattr(one, key) or 0 for one in known) for key in ("before", "after"))
    worked = [row.outcome.seconds for row in rows if row.outcome and row.why and row.state != "unchanged"]
    return (
        environment()
        .from_string(template)
        .render(
            headline=headline(rows), lines=[line(row, out) for row in rows], created=now(), before=before, after=after,
            n_worked=len(worked), seconds=sum(worked), version=bitwright.__version__, style=packaged_style(),
            policy=content_policy([]),
        )
    )  # fmt: skip


def headline(rows: Sequence[Row]) -> str:
    """One sentence: how many models are inside their budgets, and how many are not."""
    found = counts(rows)
    met = found.pop("met", 0)
    rest = [f"{n} {_STATES.get(name, ('', '', name))[2].lower()}" for name, n in found.most_common()]
    said = f"{met} of {len(rows)} models {'is' if met == 1 else 'are'} inside the budget"
    return f"{said}; {', '.join(rest)}." if rest else f"{said}."


def line(row: Row, out: Path | None = None) -> Line:
    """A row in words."""
    found = row.outcome or Outcome(row.state, 0)
    state = _STATES.get(found.verdict, ("no-budget", "…", row.state))
    has_sizes = found.before is not None and found.after is not None
    return Line(
        row.name, state,
        f"{percent(found.loss)}, at most {percent(found.loss_upper)}" if found.loss is not None else ABSENT,
        percent(found.max_loss), f"{size(found.before)} → {size(found.after)}" if has_sizes else ABSENT,
        seconds(found.seconds) if found.seconds else ABSENT, "; ".join(_since(row)) or ABSENT,
        found.error or found.sentence or row.step, _link(out, row) if out else "",
    )  # fmt: skip


def _since(row: Row) -> Iterator[str]:
    """What changed since last time: the reasons for doing it again, and what came of it."""
    yield from ["unchanged"] * (row.state == "unchanged")
    yield from (_WHY.get(name, name) for name in row.why)
    a, b = row.before, row.outcome
    if a is None or b is None or row.state == "unchanged":
        return
    if a.verdict != b.verdict:
        yield f"{_STATES.get(a.verdict, ('', '', a.verdict))[2]} before"
    if a.loss is not None and b.loss is not None and a.loss != b.loss:
        yield f"loss {percent(a.loss)} → {percent(b.loss)}"
    if a.after is not None and b.after is not None and a.after != b.after:
        yield f"size {size(a.after)} → {size(b.after)}"


def _link(out: Path, row: Row) -> str:
    """The address of a model's report, relative to the page; "" where there is none."""
    report = row.out / REPORT_FILE
    return quote(os.path.relpath(report, out)) if report.is_file() else ""
