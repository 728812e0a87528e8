"""The expert account of a mixture of experts: what each expert saw of the calibration, and what became of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bitwright.record import LayerRow
from bitwright.report.account import expert_name, largest, policy
from bitwright.report.tables import badness
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


@dataclass(frozen=True, slots=True)
class ExpertRow:
    """One expert. policy: what was done about its starved linears, in words; the errors are those of its worst."""

    name: str
    block: int | None
    n_tokens: int
    policy: str
    error_rtn: float | None
    error: float | None


def expert_blocks(layers: Sequence[LayerRow]) -> list[ExpertBlock]:
    """An entry per block that has experts, in the order of the record."""
    blocks: dict[str, dict[int, list[LayerRow]]] = {}
    for (name, index), rows in _experts(layers).items():
        blocks.setdefault(name, {})[index] = rows
    return [_block(name, experts) for name, experts in blocks.items()]


def expert_rows(layers: Sequence[LayerRow]) -> list[ExpertRow]:
    """A row per expert, the one that saw least first."""
    rows = [
        ExpertRow(
            name=f"{name}.{index}",
            block=linears[0].block,
            n_tokens=_tokens(linears),
            policy="; ".join(f"{', '.join(places)}: {policy}" for policy, places in _policies(linears).items()),
            error_rtn=largest(row.error_rtn for row in linears),
            error=largest(row.error for row in linears),
        )
        for (name, index), linears in _experts(layers).items()
    ]
    return sorted(rows, key=lambda row: (row.n_tokens, -badness(row.error)))


def _experts(layers: Sequence[LayerRow]) -> dict[tuple[str, int], list[LayerRow]]:
    """The rows of each expert's linears, by the name of the block's experts and the number of the expert."""
    experts: dict[tuple[str, int], list[LayerRow]] = {}
    for row in layers:
        if match := expert_name(row):
            experts.setdefault((match["experts"], int(match["index"])), []).append(row)
    return experts


def _block(name: str, experts: dict[int, list[LayerRow]]) -> ExpertBlock:
    rows = [row for linears in experts.values() for row in linears]
    errors = [row.error for row in rows if is_finite(row.error)]
    return ExpertBlock(
        name=name,
        block=rows[0].block,
        tokens=tuple(_tokens(experts[index]) for index in sorted(experts)),
        n_starved=sum(bool(_policies(linears)) for linears in experts.values()),
        policies={policy: len(places) for policy, places in _policies(rows).items()},
        errors=(median(errors), max(errors)) if errors else None,
        worst=_place(max(rows, key=lambda row: badness(row.error))) if errors else "",
    )


def _policies(linears: Sequence[LayerRow]) -> dict[str, list[str]]:
    """What was done about starved linears -> the places of these in their expert."""
    policies: dict[str, list[str]] = {}
    for row in linears:
        if row.starved:
            policies.setdefault(policy(row.starved), []).append(row.name.rpartition(".")[2])
    return policies


def _place(row: LayerRow) -> str:
    match = expert_name(row)
    return f"{match['index']}.{match['place']}" if match else ""


def _tokens(linears: Sequence[LayerRow]) -> int:
    return max((row.n_tokens or 0 for row in linears), default=0)
