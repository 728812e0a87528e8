"""The expert account of a mixture of experts: what each expert saw of the calibration, and what became of it."""

from dataclasses import dataclass
from statistics import median

from bitwright.record import Record
from bitwright.report.account import expert_name, starved_policy, worst_of
from bitwright.report.tables import Row, badness
from bitwright.report.wording import is_finite


@dataclass(frozen=True, slots=True)
class ExpertBlock:
    """The experts of one block.

    tokens: that each saw, in the order of the experts. n_starved: experts with a starved linear. policies: what was
    done about starved linears -> how many. errors: median and largest relative output error of their linears, or None;
    worst: whose the largest is, "7.down_proj"; "" if none was measured.
    """

    name: str
    block: int | None
    tokens: tuple[int, ...]
    n_starved: int
    policies: dict[str, int]
    errors: tuple[float, float] | None
    worst: str


def expert_blocks(record: Record) -> list[ExpertBlock]:
    """An entry per block that has experts, in the order of the record."""
    blocks: dict[str, dict[int, list[Row]]] = {}
    for (name, index), rows in _experts(record).items():
        blocks.setdefault(name, {})[index] = rows
    return [_block(name, experts) for name, experts in blocks.items()]


def expert_rows(record: Record) -> list[Row]:
    """A row per expert, the one that saw least first: name, block, n_tokens, policy, and the worst of its linears'
    error and error_rtn.
    """
    rows = [
        {
            "name": f"{name}.{index}",
            "block": linears[0].get("block"),
            "n_tokens": _tokens(linears),
            "policy": "; ".join(f"{', '.join(places)}: {policy}" for policy, places in _policies(linears).items()),
            "error_rtn": worst_of(linears, "error_rtn"),
            "error": worst_of(linears, "error"),
        }
        for (name, index), linears in _experts(record).items()
    ]
    return sorted(rows, key=lambda row: (row["n_tokens"], -badness(row["error"])))


def _experts(record: Record) -> dict[tuple[str, int], list[Row]]:
    """The rows of each expert's linears, by the name of the block's experts and the number of the expert."""
    experts: dict[tuple[str, int], list[Row]] = {}
    for row in record.get("layers") or []:
        if match := expert_name(row):
            experts.setdefault((match["experts"], int(match["index"])), []).append(row)
    return experts


def _block(name: str, experts: dict[int, list[Row]]) -> ExpertBlock:
    rows = [row for linears in experts.values() for row in linears]
    errors = [float(row["error"]) for row in rows if is_finite(row.get("error"))]
    return ExpertBlock(
        name=name,
        block=rows[0].get("block"),
        tokens=tuple(_tokens(experts[index]) for index in sorted(experts)),
        n_starved=sum(bool(_policies(linears)) for linears in experts.values()),
        policies={policy: len(places) for policy, places in _policies(rows).items()},
        errors=(median(errors), max(errors)) if errors else None,
        worst=_place(max(rows, key=lambda row: badness(row.get("error")))) if errors else "",
    )


def _policies(linears: list[Row]) -> dict[str, list[str]]:
    """What was done about starved linears -> the places of these in their expert."""
    policies: dict[str, list[str]] = {}
    for row in linears:
        if policy := starved_policy(row):
            policies.setdefault(policy, []).append(str(row.get("name")).rpartition(".")[2])
    return policies


def _place(row: Row) -> str:
    match = expert_name(row)
    return f"{match['index']}.{match['place']}" if match else ""


def _tokens(linears: list[Row]) -> int:
    return max((row.get("n_tokens") or 0 for row in linears), default=0)
