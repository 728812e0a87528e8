"""The record's rows, grouped, joined and ranked for a reader. Plain data in, plain data out."""

import math
from dataclasses import dataclass
from typing import Any

from bitwright.record import Record
from bitwright.report.wording import is_number

Row = dict[str, Any]

HEAT_COLUMNS = ("qkv", "attention_output", "ffn", "head")


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One block × group: its EMD, and what was quantized to measure it."""

    block: str
    role: str
    emd: float
    what: str


def decisions(plan: list[Row]) -> list[Row]:
    """The plan with equal decisions merged: {scheme, method, reason, roles, names, bytes_before, bytes_after}."""
    merged: dict[tuple[str, str, str], Row] = {}
    for row in plan:
        key = (str(row.get("scheme")), str(row.get("method")), str(row.get("reason") or ""))
        group = merged.setdefault(
            key,
            {
                "scheme": key[0],
                "method": row.get("method"),
                "reason": key[2],
                "roles": [],
                "names": [],
                "bytes_before": 0,
                "bytes_after": 0,
            },
        )
        if row.get("role") not in group["roles"]:
            group["roles"].append(row.get("role"))
        group["names"].append(row.get("name"))
        group["bytes_before"] += row.get("bytes_before") or 0
        group["bytes_after"] += row.get("bytes_after") or 0
    return sorted(merged.values(), key=lambda group: (group["scheme"] == "16bit", -len(group["names"])))


def heat_cells(sensitivity: Row) -> list[HeatCell]:
    """Block × group cells: the group of the block quantized alone, else the worst of its units, else of its linears."""
    for kind in ("groups", "units", "rows"):
        rows = [row for row in _quantized_alone(sensitivity.get(kind)) if _has_cell(row)]
        if any(row.get("block") is not None for row in rows):
            break
    else:
        return []
    members: dict[tuple[int | None, str], list[Row]] = {}
    for row in rows:
        members.setdefault((row.get("block"), row["role"]), []).append(row)
    order = sorted(members, key=lambda key: (key[0] is None, key[0] or 0))
    return [
        HeatCell(
            block="head" if block is None else str(block),
            role=role,
            emd=max((float(row["emd"]) for row in members[block, role]), key=badness),
            what="the whole group"
            if kind == "groups"
            else ", ".join(str(row.get("name")) for row in members[block, role]),
        )
        for block, role in order
    ]


def _has_cell(row: Row) -> bool:
    """Whether a row belongs into the map: of one block, or of the head, which has none."""
    role = row.get("role")
    return is_number(row.get("emd")) and role in HEAT_COLUMNS and (row.get("block") is not None or role == "head")


def whole_groups(sensitivity: Row) -> list[Row]:
    """The groups over all blocks, most sensitive first."""
    rows = [row for row in ranked(sensitivity.get("groups")) if row.get("block") is None]
    return list({row.get("name"): row for row in rows}.values())


def chosen_step(steps: list[Row], max_loss: float | None) -> int:
    """The index of the step that the fallback search settled on: the one that is marked, else the last whose bound is
    inside the budget, else the first whose estimate is, else the last.
    """
    marked = [i for i, step in enumerate(steps) if step.get("chosen")]
    if marked or max_loss is None:
        return marked[-1] if marked else len(steps) - 1
    bounded = [i for i, step in enumerate(steps) if (step.get("loss_upper") or 0.0) <= max_loss]
    estimated = [i for i, step in enumerate(steps) if step["loss"] <= max_loss]
    return bounded[-1] if bounded else estimated[0] if estimated else len(steps) - 1


def step_units(step: Row) -> list[str]:
    """The units that a step keeps in 16 bit; of records that name only the last of them, that one."""
    return list(step.get("units") or ([step["unit"]] if step.get("unit") else []))


def ranked(rows: list[Row] | None) -> list[Row]:
    """Sensitivity rows, worst EMD first; `emd_all_but` is the EMD with all but this row quantized, if measured."""
    all_but = {row.get("name"): row.get("emd") for row in rows or [] if row.get("mode") == "all but one"}
    alone = [{**row, "emd_all_but": all_but.get(row.get("name"))} for row in _quantized_alone(rows)]
    return sorted(alone, key=lambda row: -badness(row.get("emd")))


def layer_rows(record: Record) -> list[Row]:
    """The plan, one row per linear, joined with each linear's EMD."""
    sensitivity = record.get("sensitivity") or {}
    emd = {row.get("name"): row.get("emd") for row in _quantized_alone(sensitivity.get("rows"))}
    return [{**row, "emd": emd.get(row.get("name"))} for row in record.get("plan") or []]


def distributions_by_sensitivity(record: Record) -> list[Row]:
    """The recorded distributions, the most sensitive layer first; in model order where sensitivity was not measured."""
    rank = {row.get("name"): i for i, row in enumerate(ranked((record.get("sensitivity") or {}).get("rows")))}
    rows = [row for row in record.get("distributions") or [] if row.get("weight")]
    return sorted(rows, key=lambda row: rank.get(row.get("name"), len(rank)))


def badness(distance: Any) -> float:
    """An EMD or an error as a sort key: NaN, the distance to what is not a number, is as bad as infinity."""
    if not is_number(distance):
        return -1.0
    return math.inf if math.isnan(distance) else float(distance)


def _quantized_alone(rows: list[Row] | None) -> list[Row]:
    return [row for row in rows or [] if row.get("mode", "one") == "one"]
