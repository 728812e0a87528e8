"""How each linear was quantized, and how well: the Record's `layers`, ranked and told in words.

Linears of experts are many: those of one block and one place in the expert stand together as one row.
"""

import re
from dataclasses import dataclass

from bitwright.record import Record
from bitwright.report.tables import Row, badness
from bitwright.report.wording import is_finite, is_number, number

# What tells of trouble with a linear -> how, given the row; and how of several linears.
_TROUBLE = {
    "starved": ("saw {starved[n_tokens]} calibration tokens, fewer than {starved[fewest]}: {policy}", "starved"),
    "damping_failed": ("damping {damping_failed} was not enough", "needed more damping"),
    "reason": ("rounded to nearest: {reason}", "rounded to nearest, where the method failed"),
}
# What was done about a starved expert, in words.
_POLICIES = {"lent": "uses what all experts of the block saw", "rtn": "rounded to nearest"}
_USUAL = {
    "name", "block", "role", "unit", "scheme", "method", "n_tokens", "error_rtn", "error", "sqnr_db", "cosine",
    "block_emd", "fallback", "damping", "dead_inputs", "transform", *_TROUBLE,
}  # fmt: skip
_STRENGTHS = {"transform_alpha": "α", "transform_exponent": "exponent"}
_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<index>\d+)\.(?P<place>.+)")


@dataclass(frozen=True, slots=True)
class ErrorPoint:
    """The largest relative output error among the linears of one role in one block, and plain rounding's largest."""

    block: int
    role: str
    error: float
    error_rtn: float | None
    name: str


def error_rows(record: Record) -> list[Row]:
    """A row per linear, those of experts together, the largest error first; each with its `notes` in words.

    A row for several linears has their `count`, all their tokens, and of every figure the worst.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in record.get("layers") or []:
        match = expert_name(row)
        key = (match["experts"], match["place"]) if match else (str(row.get("name")),)
        groups.setdefault(key, []).append(row)
    return sorted(map(_told, groups.values()), key=lambda row: -badness(row.get("error")))


def has_errors(record: Record) -> bool:
    """Whether the output error of any linear was measured; methods that look at no inputs measure none."""
    return any(is_number(row.get("error")) for row in record.get("layers") or [])


def error_points(record: Record) -> list[ErrorPoint]:
    """The worst of each block and role, in the order of the blocks; what belongs to no block is left out."""
    members: dict[tuple[int, str], list[Row]] = {}
    for row in record.get("layers") or []:
        if isinstance(row.get("block"), int) and is_finite(row.get("error")):
            members.setdefault((row["block"], str(row.get("role"))), []).append(row)
    points = []
    for (block, role), rows in sorted(members.items(), key=lambda item: item[0][0]):
        worst = max(rows, key=lambda row: float(row["error"]))
        points.append(ErrorPoint(block, role, worst["error"], worst_of(rows, "error_rtn"), str(worst.get("name"))))
    return points


def collapsed(plan: list[Row]) -> list[Row]:
    """The plan's rows; those of experts at one place in a block that share a decision as one, with their `count` and
    the sums of their bytes.
    """
    merged: dict[tuple[str, ...], Row] = {}
    for row in plan:
        match = expert_name(row)
        if match is None:
            merged[(str(row.get("name")),)] = row
            continue
        decision = (str(row.get(part)) for part in ("scheme", "method", "reason", "shape"))
        key = (match["experts"], match["place"], *decision)
        nothing = {"name": _all_experts(match), "count": 0, "bytes_before": 0, "bytes_after": 0}
        known = merged.setdefault(key, row | nothing)
        known["count"] += 1
        for part in ("bytes_before", "bytes_after"):
            known[part] += row.get(part) or 0
    return list(merged.values())


def expert_name(row: Row) -> re.Match[str] | None:
    """The parts of an expert's linear's name, "experts", "index" and "place"; None for another linear."""
    return _EXPERT.fullmatch(str(row.get("name"))) if row.get("role") == "expert" else None


def worst_of(rows: list[Row], key: str) -> float | None:
    """The largest of a figure that is an error; None if no row has it."""
    return max((float(row[key]) for row in rows if is_number(row.get(key))), key=badness, default=None)


def starved_policy(row: Row) -> str:
    """What was done about a linear of a starved expert; "" where it saw enough."""
    starved = row.get("starved")
    return _POLICIES.get(starved["policy"], str(starved["policy"])) if starved else ""


def _told(members: list[Row]) -> Row:
    """One row for one linear, or for several of experts."""
    first = members[0]
    if len(members) == 1:
        return first | {"notes": _notes(first)}
    match = expert_name(first)
    assert match is not None
    troubles = {text: sum(bool(row.get(key)) for row in members) for key, (_, text) in _TROUBLE.items()}
    return {key: first.get(key) for key in ("block", "role", "scheme", "method", "block_emd")} | {
        "name": _all_experts(match),
        "count": len(members),
        "n_tokens": sum(row.get("n_tokens") or 0 for row in members),
        "error_rtn": worst_of(members, "error_rtn"),
        "error": worst_of(members, "error"),
        "sqnr_db": min((row["sqnr_db"] for row in members if is_number(row.get("sqnr_db"))), default=None),
        "cosine": min((row["cosine"] for row in members if is_number(row.get("cosine"))), default=None),
        "fallback": any(row.get("fallback") for row in members),
        "notes": [
            *_transform(first),
            *(f"{count} of {len(members)} {text}" for text, count in troubles.items() if count),
        ],
    }


def _notes(row: Row) -> list[str]:
    """What a reader should know of one linear; what is as usual is left out."""
    facts = row | {"policy": starved_policy(row)}
    said = [*_transform(row), *(one.format_map(facts) for key, (one, _) in _TROUBLE.items() if row.get(key))]
    if row.get("damping_failed") and is_number(row.get("damping")):
        said.append(f"{number(row['damping'])} was")
    if is_number(row.get("dead_inputs")) and row["dead_inputs"]:
        said.append(f"{number(row['dead_inputs'])} inputs were always 0")
    unusual = (key for key in row if key not in _USUAL and not key.startswith("transform_"))
    return said + [f"{key.replace('_', ' ')}: {number(row[key])}" for key in unusual]


def _transform(row: Row) -> list[str]:
    """Where a transform went, and how strong it is: "folded, α = 0.5"; nothing where there is none."""
    if not row.get("transform"):
        return []
    strength = (f"{symbol} = {number(row[key])}" for key, symbol in _STRENGTHS.items() if is_number(row.get(key)))
    return [", ".join([str(row["transform"]), *strength]).replace(" = ", "\u00a0=\u00a0")]


def _all_experts(match: re.Match[str]) -> str:
    return f"{match['experts']}.*.{match['place']}"
