"""Sensitivity by Earth Mover's Distance: how far the outputs move when a part of the model is quantized.

Every linear, every set of linears that share an input, every group (role) of a block and of the whole model is
quantized alone ("one"), and everything but one linear is ("all but one"). The distance is the 1-D Wasserstein distance
between the outputs of the original and of the changed model; because it is blind to permutations, paired measures stand
beside it.

That takes a run of the model for every part. A search needs only to know which units come first: `measure_units` takes
an estimate of each and measures the few that make up most of the whole.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from bitwright.evaluate import metrics
from bitwright.evaluate.kinds import Outputs, pair_cosines, spread_pairs
from bitwright.models.sites import LinearSite
from bitwright.progress import Track
from bitwright.record import Sensitivity, SensitivityRow
from bitwright.search.journal import Journal

Mode = Literal["one", "all but one"]
ROW_KINDS = ("rows", "units", "groups")
_UNTOLD = 0.05  # of the estimates' sum: units that have no more together are not measured
_MOST_MEASURED = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """How far the outputs moved, by several measures.

    emd: Earth Mover's Distance, ≥ 0, infinite if outputs are not finite. sqnr_db: decibels. cosine: mean over texts.
    rank_flips: share of pair orders that turned round. metric_loss: loss of the metric that decides, a fraction.
    """

    emd: float
    sqnr_db: float
    cosine: float
    rank_flips: float
    metric_loss: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the model whose quantization is measured."""

    kind: Literal["rows", "units", "groups"]
    name: str
    block: int | None
    role: str
    unit: str | None
    mode: Mode
    members: frozenset[str]


def parts_of(sites: Sequence[LinearSite]) -> list[Part]:
    """Everything that is measured, cheapest information first: groups, units, linears, then all-but-one."""
    everything = frozenset(site.name for site in sites)
    parts: list[Part] = []
    for role in dict.fromkeys(site.role for site in sites):
        members = frozenset(s.name for s in sites if s.role == role)
        parts.append(Part("groups", role, None, role, None, "one", members))
    for block, role in dict.fromkeys((site.block, site.role) for site in sites):
        members = frozenset(s.name for s in sites if (s.block, s.role) == (block, role))
        parts.append(Part("groups", role, block, role, None, "one", members))
    parts += _units(sites)
    for s in sites:
        parts.append(Part("rows", s.name, s.block, s.role, s.unit, "one", frozenset({s.name})))
    for s in sites:
        parts.append(Part("rows", s.name, s.block, s.role, s.unit, "all but one", everything - {s.name}))
    return parts


def _units(sites: Sequence[LinearSite]) -> list[Part]:
    return [
        Part("units", unit, site.block, site.role, unit, "one", frozenset(s.name for s in sites if s.unit == unit))
        for unit, site in {s.unit: s for s in sites}.items()
    ]


def measure_sensitivity(
    sites: Sequence[LinearSite],
    measure: Callable[[frozenset[str]], Reading],
    journal: Journal,
    track: Track = iter,
) -> Sensitivity:
    """Measure every part and rank them, most sensitive first.

    Args:
        sites: the linears that may be quantized.
        measure: outputs of the model with just these linears quantized, against the original's.
        journal: readings taken before an interruption are reused.
        track: wraps the loop, for a progress bar.

    Returns:
        The Record's section, but for what it was measured on. The correlation is between the
        EMD and the metric loss of the linears quantized alone; None when either is constant.
    """
    found: dict[str, list[SensitivityRow]] = {kind: [] for kind in ROW_KINDS}
    for part in track(parts_of(sites)):
        found[part.kind].append(_measured(part, measure, journal))
    rows, units, groups = (tuple(sorted(found[kind], key=_rank)) for kind in ROW_KINDS)
    return Sensitivity(rows, units, groups, _agreement([row for row in rows if row.mode == "one"]))


def measure_units(
    sites: Sequence[LinearSite],
    estimates: Mapping[str, float],
    measure: Callable[[frozenset[str]], Reading],
    journal: Journal,
    track: Track = iter,
) -> Sensitivity:
    """Rank the units by an estimate of each, then measure those that matter and rank them again.

    Args:
        sites, measure, journal, track: as of `measure_sensitivity`.
        estimates: how far each unit moves the outputs, about: ≥ 0, such that those of several add up. What is not
            finite comes first.

    Returns:
        The Record's section with units alone: first those that were measured, then the others by their estimates.
    """
    head = _head(estimates)
    parts = {part.name: part for part in _units(sites)}
    measured = [_measured(parts[unit], measure, journal) for unit in track(head)]
    rest = sorted(parts.keys() - set(head), key=lambda unit: (-estimates[unit], unit))
    rows = [*sorted(measured, key=_rank), *(_row(parts[unit]) for unit in rest)]
    return Sensitivity(units=tuple(replace(row, estimate=estimates[row.name]) for row in rows))


def _head(estimates: Mapping[str, float]) -> list[str]:
    """The fewest units, largest estimates first, that leave the others no more than `_UNTOLD` of the sum."""
    total = left = sum(value for value in estimates.values() if math.isfinite(value))
    head: list[str] = []
    for unit in sorted(estimates, key=lambda unit: (-estimates[unit], unit)):
        finite = math.isfinite(estimates[unit])
        if len(head) == _MOST_MEASURED or (finite and left <= _UNTOLD * total):
            break
        head.append(unit)
        left -= estimates[unit] if finite else 0.0
    return head


def _measured(part: Part, measure: Callable[[frozenset[str]], Reading], journal: Journal) -> SensitivityRow:
    values = journal.remember("sensitivity:" + "\0".join(sorted(part.members)), lambda: _plain(measure(part.members)))
    numbers: dict[str, Any] = {name: float(value) for name, value in values.items()}
    return replace(_row(part), **numbers)


def _row(part: Part) -> SensitivityRow:
    return SensitivityRow(part.name, part.block, part.role, part.unit, part.mode)


def ranked_units(sensitivity: Sensitivity) -> tuple[str, ...]:
    """Names of the units, most sensitive first."""
    return tuple(row.name for row in sensitivity.units)


def read_outputs(float_rows: Outputs, quant_rows: Outputs, metric_loss: float) -> Reading:
    """Compare the outputs of two models for the same texts: one row per text, of any shape.

    The pair orders that may flip are, for one vector per text, those of the texts' cosine similarities; for one
    score, or several rows of logits per text, those of all the numbers.
    """
    left, right = ([np.asarray(row, dtype=np.float64) for row in rows] for rows in (float_rows, quant_rows))
    flat_left, flat_right = (np.concatenate([row.ravel() for row in rows]) for rows in (left, right))
    if not np.isfinite(flat_right).all():
        return Reading(math.inf, -math.inf, -1.0, 1.0, math.inf)
    per_text = [metrics.cosine(u.reshape(1, -1), v.reshape(1, -1))[0] for u, v in zip(left, right, strict=True)]
    if left[0].ndim == 1 and left[0].size > 1:
        pairs = spread_pairs(len(left))
        flips = metrics.rank_flips(pair_cosines(np.stack(left), pairs), pair_cosines(np.stack(right), pairs))
    else:
        flips = metrics.rank_flips(flat_left, flat_right)
    emd = metrics.emd([row.ravel() for row in left], [row.ravel() for row in right])
    return Reading(emd, metrics.sqnr_db(flat_left, flat_right), float(np.mean(per_text)), flips, metric_loss)


def _plain(reading: Reading) -> dict[str, str]:
    """Values as text, so that infinity survives JSON and every float comes back bit for bit."""
    return {name: repr(value if not math.isnan(value) else math.inf) for name, value in asdict(reading).items()}


def _rank(row: SensitivityRow) -> tuple[bool, float]:
    """All-but-one comes last: there the linear whose *absence* leaves the least distance matters most."""
    emd = math.inf if row.emd is None else row.emd
    return (True, emd) if row.mode != "one" else (False, -emd)


def _agreement(rows: Sequence[SensitivityRow]) -> float | None:
    """Spearman correlation of EMD with metric loss over rows."""
    emd, loss = (np.array([getattr(row, name) for row in rows], np.float64) for name in ("emd", "metric_loss"))
    if len(np.unique(emd)) < 2 or len(np.unique(loss)) < 2:
        return None
    return metrics.pearson(metrics.ranks(emd), metrics.ranks(loss))  # infinity, too, has a rank
