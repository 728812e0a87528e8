"""The section of the Record about the tuner: what was tried, and what of it was best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial, measured on tuning texts. source: "plain recipe", "manual" or the sampler. objective, distance:
    infinite where the outputs were not finite or where nothing was run. work: relative to the plain recipe's. feasible:
    inside the limits. chosen: the winner. why: what was wrong.
    """

    number: int
    config: Mapping[str, Any]
    source: str
    objective: float
    distance: float
    sqnr_db: float
    rank_flips: float
    loss: float
    bytes: int
    work: float
    feasible: bool
    chosen: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Influence:
    """The share of the predicted objective's variance that a parameter alone explains."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """A tuner's study. objective: the name of what was made small. cap: the most trials; ended: why there were no more.
    max_bytes: of the weights; max_work: relative to the plain recipe. texts: how many were tuned on.
    """

    sampler: str
    objective: str
    cap: int
    ended: str
    seed: int
    max_bytes: float
    max_work: float
    texts: int
    trials: tuple[TrialRow, ...]
    importance: tuple[Influence, ...] = ()
