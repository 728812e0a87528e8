"""How each linear was quantized, and how well: the Record's `layers`, ranked and told in words.

Linears of experts are many: those of one block and one place in the expert stand together as one row.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitwright.record import LayerRow, PlanRow, Starved
from bitwright.report.tables import badness
from bitwright.report.wording import is_finite, is_number, number

# What was done about an expert that saw too few tokens.
_POLICIES = {"lent": "uses what all experts of the block saw", "rtn": "rounded to nearest"}
_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<index>\d+)\.(?P<place>.+)")


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One linear, or `count` of experts: then all their tokens, and of every figure the worst. notes: in words."""

    name: str
    block: int | None
    role: str
    scheme: str | None
    method: str | None
    n_tokens: int | None
    error_rtn: float | None
    error: float | None
    sqnr_db: float | None
    cosine: float | None
    block_emd: float | None
    fallback: bool
    notes: tuple[str, ...]
    count: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorPoint:
    """The largest relative output error among the linears of one role in one block, and plain rounding's largest."""

    block: int
    role: str
    error: float
    error_rtn: float | None
    name: str


@dataclass(frozen=True, slots=True)
class PlanLine:
    """One row of the plan, or `count` of experts with the sums of their bytes. emd: of it quantized alone, if known."""

    name: str
    role: str
    shape: tuple[int, int]
    scheme: str
    method: str
    bytes_before: int
    bytes_after: int
    reason: str
    emd: float | None
    count: int | None = None


def error_rows(layers: Sequence[LayerRow]) -> list[ErrorRow]:
    """A row per linear, those of experts together, the largest error first."""
    groups: dict[tuple[str, ...], list[LayerRow]] = {}
    for row in layers:
        match = expert_name(row)
        groups.setdefault((match["experts"], match["place"]) if match else (row.name,), []).append(row)
    return sorted(map(_told, groups.values()), key=lambda row: -badness(row.error))


def has_errors(layers: Sequence[LayerRow]) -> bool:
    """Whether the output error of any linear was measured; methods that look at no inputs measure none."""
    return any(is_number(row.error) for row in layers)


def error_points(layers: Sequence[LayerRow]) -> list[ErrorPoint]:
    """The worst of each block and role, in the order of the blocks; what belongs to no block is left out."""
    members: dict[tuple[int, str], list[LayerRow]] = {}
    for row in layers:
        if row.block is not None and is_finite(row.error):
            members.setdefault((row.block, row.role), []).append(row)
    points = []
    for (block, role), rows in sorted(members.items(), key=lambda item: item[0][0]):
        worst = max(rows, key=lambda row: badness(row.error))
        assert worst.error is not None  # all of them are finite
        points.append(ErrorPoint(block, role, worst.error, largest(row.error_rtn for row in rows), worst.name))
    return points


def collapsed(plan: Sequence[PlanRow], emd: Mapping[str, float | None] | None = None) -> list[PlanLine]:
    """The plan's tensors; those of experts at one place in a block that share a decision as one. emd: by linear."""
    groups: dict[tuple[object, ...], list[PlanRow]] = {}
    for row in plan:
        if not row.in_files:
            continue
        match = expert_name(row)
        decision = (row.scheme, row.method, row.reason, row.shape)
        groups.setdefault((match["experts"], match["place"], *decision) if match else (row.name,), []).append(row)
    return [_line(rows, (emd or {}).get(rows[0].name)) for rows in groups.values()]


def expert_name(row: LayerRow | PlanRow) -> re.Match[str] | None:
    """The parts of an expert's linear's name, "experts", "index" and "place"; None for another linear."""
    return _EXPERT.fullmatch(row.name) if row.role == "expert" else None


def policy(starved: Starved | str) -> str:
    """What was done about an expert that saw too few tokens, in words."""
    return starved if isinstance(starved, str) else _POLICIES.get(starved.policy, starved.policy)


def largest(errors: Iterable[float | None]) -> float | None:
    """The largest of figures that are errors; None if none was measured."""
    return max((float(error) for error in errors if error is not None), key=badness, default=None)


def _line(rows: Sequence[PlanRow], emd: float | None) -> PlanLine:
    first, match = rows[0], expert_name(rows[0])
    return PlanLine(
        name=_all_experts(match) if match else first.name,
        role=first.role,
        shape=first.shape,
        scheme=first.scheme,
        method=first.method,
        bytes_before=sum(row.bytes_before for row in rows),
        bytes_after=sum(row.bytes_after for row in rows),
        reason=first.reason,
        emd=emd,
        count=len(rows) if match else None,
    )


def _told(members: Sequence[LayerRow]) -> ErrorRow:
    """One row for one linear, or for several of experts."""
    first = members[0]
    match = expert_name(first) if len(members) > 1 else None
    return ErrorRow(
        name=_all_experts(match) if match else first.name,
        block=first.block,
        role=first.role,
        scheme=first.scheme,
        method=first.method,
        n_tokens=sum(row.n_tokens or 0 for row in members) if match else first.n_tokens,
        error_rtn=largest(row.error_rtn for row in members),
        error=largest(row.error for row in members),
        sqnr_db=min((row.sqnr_db for row in members if row.sqnr_db is not None), default=None),
        cosine=min((row.cosine for row in members if row.cosine is not None), default=None),
        block_emd=first.block_emd,
        fallback=any(row.fallback for row in members),
        notes=tuple(_notes_of_many(members) if match else _notes(first)),
        count=len(members) if match else None,
    )


def _notes_of_many(members: Sequence[LayerRow]) -> list[str]:
    troubles = {
        "starved": sum(bool(row.starved) for row in members),
        "needed more damping": sum(bool(row.damping_failed) for row in members),
        "rounded to nearest, where the method failed": sum(bool(row.reason) for row in members),
    }
    said = (f"{count} of {len(members)} {text}" for text, count in troubles.items() if count)
    return [*_transform(members[0]), *said]


def _notes(row: LayerRow) -> list[str]:
    """What a reader should know of one linear; what is as usual is left out."""
    said = _transform(row)
    if row.starved:
        said.append(_starved(row.starved))
    if row.damping_failed:
        said.append(f"damping {row.damping_failed} was not enough")
    if row.reason:
        said.append(f"rounded to nearest: {row.reason}")
    if row.damping_failed and row.damping is not None:
        said.append(f"{number(row.damping)} was")
    if row.dead_inputs:
        said.append(f"{number(row.dead_inputs)} inputs were always 0")
    unusual = {"gave way to": row.gave_way_to, "error input": row.error_input}
    said += [f"{name}: {number(value)}" for name, value in unusual.items() if value is not None]
    return said + [f"{name.replace('_', ' ')}: {number(value)}" for name, value in row.more.items()]


def _starved(starved: Starved | str) -> str:
    if isinstance(starved, str):
        return starved
    return f"saw {starved.n_tokens} calibration tokens, fewer than {starved.fewest}: {policy(starved)}"


def _transform(row: LayerRow) -> list[str]:
    """Where a transform went, and how strong it is: "folded, α = 0.5"; nothing where there is none."""
    if not row.transform:
        return []
    strengths = {"α": row.transform_alpha, "exponent": row.transform_exponent}
    said = (f"{symbol} = {number(value)}" for symbol, value in strengths.items() if value is not None)
    return [", ".join([row.transform, *said]).replace(" = ", "\u00a0=\u00a0")]


def _all_experts(match: re.Match[str]) -> str:
    return f"{match['experts']}.*.{match['place']}"
