"""How `bitwright registry` shows models, versions, changes and gates."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bitwright.cli.terminal import FAILURE, SUCCESS, Column, out, remark, table

if TYPE_CHECKING:
    from bitwright.registry.state import Change, Checked, Model, Version
    from bitwright.registry.verify import Verified
    from bitwright.report.compare import ComparisonRow


def print_gates(checked: "Checked") -> None:
    """What each gate said."""
    columns: list[Column] = ["gate", "", ("", "prose")]
    rows = [[str(one["gate"]), str(one["state"]), str(one["detail"])] for one in checked.outcomes]
    out.print(table("", columns, rows, header=False))


def print_models(models: "Mapping[str, Model]") -> None:
    """Models, a line each."""
    columns: list[Column] = [
        ("model", "name"), ("served", "right"), ("before", "right"), ("next", "right"), "gates of it", "since (UTC)",
        "vectors",
    ]  # fmt: skip
    rows = []
    for model in models.values():
        served = None if model.champion is None else model.versions[model.champion]
        following = None if model.challenger is None else model.versions[model.challenger]
        since = next((change.since for change in reversed(model.changes) if change.since), None)
        rows.append([
            model.name, _number(model.champion), _number(model.previous), _number(model.challenger),
            "–" if following is None else _gates(following), _short(since or ""), served.space[:8] if served else "–",
        ])  # fmt: skip
    out.print(table("", columns, rows))


def print_versions(model: "Model") -> None:
    """The versions of a model, a line each."""
    columns: list[Column] = [
        ("", "right"),
        "",
        "added (UTC)",
        ("MB", "right"),
        "verdict",
        "gates",
        "vectors",
        ("note", "prose"),
    ]
    names = {model.champion: "served", model.previous: "before", model.challenger: "next"}
    rows = [
        [str(version.number), names.get(version.number, ""), _short(version.time), f"{version.bytes / 1e6:.1f}",
         version.verdict or "–", _gates(version), version.space[:8], version.note or ""]
        for version in model.versions.values() if not version.gone
    ]  # fmt: skip
    out.print(table(model.name, columns, rows))


def model_facts(model: "Model") -> dict[str, Any]:
    """A model as plain data."""
    return {
        "name": model.name, "champion": model.champion, "previous": model.previous, "challenger": model.challenger,
        "versions": [asdict(version) | {"space": version.space} for version in model.versions.values()],
    }  # fmt: skip


def print_changes(changes: "Sequence[Change]", title: str) -> None:
    """Promotions and rollbacks, a line each."""
    columns: list[Column] = ["since (UTC)", "model", ("version", "right"), "what", "by", ("why", "prose")]
    rows = [
        [_short(change.since or change.time), change.name, str(change.version), _what(change), change.by, _why(change)]
        for change in changes
    ]
    out.print(table(title, columns, rows))


def print_difference(rows: "Sequence[ComparisonRow]", left: str, right: str) -> None:
    """Two versions side by side; what is the same in both is only named."""
    columns: list[Column] = [("", "prose"), (left, "prose"), (right, "prose"), ("change", "right")]
    out.print(table("", columns, [[row.name, row.a, row.b, row.change] for row in rows if row.a != row.b]))
    if same := [row.name for row in rows if row.a == row.b]:
        out.print(f"\nThe same in both: {'; '.join(same)}.", markup=False)


def print_verified(found: "Verified") -> None:
    """What was mended, and what is damaged."""
    for text in (*(f"mended: {text}" for text in found.repaired), *found.remarks):
        out.print(text, markup=False)
    for text in found.damage:
        remark(text, FAILURE)
    if not found.damage:
        said = f"{found.entries} entries, {found.versions} versions: as they were written"
        out.print(f"{said}; the last entry is {found.head}", style=SUCCESS, markup=False, soft_wrap=True)


def _gates(version: "Version") -> str:
    if not version.checks:
        return "not run"
    return "passed" if version.checks[-1].passed else f"not {', '.join(version.checks[-1].failed)}"


def _what(change: "Change") -> str:
    return ("forced " if change.forced else "") + change.what + (", undone" if change.undone else "")


def _why(change: "Change") -> str:
    return change.reason or ""


def _number(number: int | None) -> str:
    return "–" if number is None else str(number)


def _short(time: str) -> str:
    return time[:19].replace("T", " ")
