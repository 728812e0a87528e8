"""The record's rows, grouped, joined and ranked for a reader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.record import Distribution, PlanRow, Record, Sensitivity, SensitivityRow, StepRow
from bitwright.report.wording import is_number

HEAT_COLUMNS = ("qkv", "attention_output", "ffn", "head")


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One block × group: its EMD, and what was quantized to measure it."""

    block: str
    role: str
    emd: float
    what: str


@dataclass(frozen=True, slots=True)
class Decided:
    """Tensors that share a decision."""

    scheme: str
    method: str
    reason: str
    roles: tuple[str, ...]
    names: tuple[str, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class RankedRow:
    """What was quantized alone; emd_all_but: the EMD with all but it quantized, if that was measured.
    estimate: what stood for the EMD where not every part was measured."""

    name: str
    block: int | None
    role: str
    emd: float | None
    emd_all_but: float | None
    sqnr_db: float | None
    cosine: float | None
    rank_flips: float | None
    metric_loss: float | None
    estimate: float | None


def decisions(plan: Sequence[PlanRow]) -> list[Decided]:
    """The plan's tensors with equal decisions merged, what is kept in 16 bit last."""
    merged: dict[tuple[str, str, str], list[PlanRow]] = {}
    for row in plan:
        if not row.in_files:
            continue
        merged.setdefault((row.scheme, row.method, row.reason), []).append(row)
    groups = [
        Decided(
            *decision,
            roles=tuple(dict.fromkeys(row.role for row in rows)),
            names=tuple(row.name for row in rows),
            bytes_before=sum(row.bytes_before for row in rows),
            bytes_after=sum(row.bytes_after for row in rows),
        )
        for decision, rows in merged.items()
    ]
    return sorted(groups, key=lambda group: (group.scheme == "16bit", -len(group.names)))


def heat_cells(sensitivity: Sensitivity | None) -> list[HeatCell]:
    """Block × group cells: the group of the block quantized alone, else the worst of its units, else of its linears."""
    if sensitivity is None:
        return []
    for measured in (sensitivity.groups, sensitivity.units, sensitivity.rows):
        rows = [row for row in _quantized_alone(measured) if _has_cell(row)]
        if any(row.block is not None for row in rows):
            break
    else:
        return []
    members: dict[tuple[int | None, str], list[SensitivityRow]] = {}
    for row in rows:
        members.setdefault((row.block, row.role), []).append(row)
    order = sorted(members, key=lambda key: (key[0] is None, key[0] or 0))
    return [
        HeatCell(
            block="head" if block is None else str(block),
            role=role,
            emd=max((row.emd for row in members[block, role] if row.emd is not None), key=badness),
            what="the whole group"
            if measured is sensitivity.groups
            else ", ".join(row.name for row in members[block, role]),
        )
        for block, role in order
    ]


def _has_cell(row: SensitivityRow) -> bool:
    """Whether a row belongs into the map: of one block, or of the head, which has none."""
    return row.emd is not None and row.role in HEAT_COLUMNS and (row.block is not None or row.role == "head")


def whole_groups(sensitivity: Sensitivity) -> list[RankedRow]:
    """The groups over all blocks, most sensitive first."""
    return list({row.name: row for row in ranked(sensitivity.groups) if row.block is None}.values())


def chosen_step(steps: Sequence[StepRow], max_loss: float | None) -> int:
    """The index of the step that the fallback search settled on: the one that is marked, else the last whose bound is
    inside the budget, else the first whose estimate is, else the last.
    """
    marked = [i for i, step in enumerate(steps) if step.chosen]
    if marked or max_loss is None:
        return marked[-1] if marked else len(steps) - 1
    bounded = [i for i, step in enumerate(steps) if (step.loss_upper or 0.0) <= max_loss]
    estimated = [i for i, step in enumerate(steps) if step.loss is not None and step.loss <= max_loss]
    return bounded[-1] if bounded else estimated[0] if estimated else len(steps) - 1


def step_units(step: StepRow) -> tuple[str, ...]:
    """The units that a step gives more bits; of records that name only the last of them, that one."""
    return step.units or ((step.unit,) if step.unit else ())


def ranked(rows: Sequence[SensitivityRow]) -> list[RankedRow]:
    """Sensitivity rows, worst EMD first; those without one last, as the record ranks them."""
    all_but = {row.name: row.emd for row in rows if row.mode == "all but one"}
    alone = [
        RankedRow(
            row.name, row.block, row.role, row.emd, all_but.get(row.name), row.sqnr_db, row.cosine, row.rank_flips,
            row.metric_loss, row.estimate,
        )
        for row in _quantized_alone(rows)
    ]  # fmt: skip
    return sorted(alone, key=lambda row: -badness(row.emd))


def emd_by_linear(sensitivity: Sensitivity) -> dict[str, float | None]:
    """The EMD of each linear that was quantized alone."""
    return {row.name: row.emd for row in _quantized_alone(sensitivity.rows)}


def distributions_by_sensitivity(record: Record) -> list[Distribution]:
    """The recorded distributions, the most sensitive layer first; in model order where sensitivity was not measured."""
    rows = () if record.sensitivity is None else record.sensitivity.rows
    rank = {row.name: i for i, row in enumerate(ranked(rows))}
    drawable = [row for row in record.distributions or () if row.weight is not None]
    return sorted(drawable, key=lambda row: rank.get(row.name, len(rank)))


def badness(distance: Any) -> float:
    """An EMD or an error as a sort key: NaN, the distance to what is not a number, is as bad as infinity."""
    if not is_number(distance):
        return -1.0
    return math.inf if math.isnan(distance) else float(distance)


def _quantized_alone(rows: Sequence[SensitivityRow]) -> list[SensitivityRow]:
    return [row for row in rows if row.mode == "one"]
