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
    """One block × group: the largest EMD of the linears in it, and which they are."""

    block: str
    role: str
    emd: float
    members: str


def decisions(plan: list[Row]) -> list[Row]:
    """The plan with equal decisions merged: {roles, scheme, method, reason, count, names, bytes_before, bytes_after}."""
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
    """Block × group cells from the sensitivity of single units, or of single linears where units were not measured."""
    members: dict[tuple[int | None, str], list[Row]] = {}
    for row in _quantized_alone(sensitivity.get("units")) or _quantized_alone(sensitivity.get("rows")):
        if is_number(row.get("emd")) and row.get("role") in HEAT_COLUMNS:
            members.setdefault((row.get("block"), row["role"]), []).append(row)
    return [
        HeatCell(
            "head" if block is None else str(block),
            role,
            max((float(row["emd"]) for row in rows), key=badness),
            ", ".join(str(row.get("name")) for row in rows),
        )
        for (block, role), rows in sorted(members.items(), key=lambda item: (item[0][0] is None, item[0][0] or 0))
    ]


def ranked(rows: list[Row] | None) -> list[Row]:
    """Sensitivity rows, worst EMD first; `emd_all_but` is the EMD with everything but this row quantized, where measured."""
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


def badness(emd: Any) -> float:
    """EMD as a sort key: NaN, the distance to an output that is not a number, is as bad as infinity."""
    if not is_number(emd):
        return -1.0
    return math.inf if math.isnan(emd) else float(emd)


def _quantized_alone(rows: list[Row] | None) -> list[Row]:
    return [row for row in rows or [] if row.get("mode", "one") == "one"]
