"""What a sampler is asked, and what it answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitwright.search.tuning.space import Allowed, Config, Space

_WORSE = 1.0  # what is no number is so much worse than the worst that is one, in logarithms
_LEAST = 1e-12  # of an objective whose logarithm is taken


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one trial measured.

    objective: ≥ 0, less is better; infinite where the outputs are not finite, or where nothing was run because it would
    be over a budget. bytes_: of the weights. work: the products of a token, those with 16-bit inputs counted twice.
    loss, loss_upper: of the metric that decides, on tuning texts. why: what was wrong, for people.
    """

    objective: float
    bytes_: int
    work: float
    distance: float = math.inf
    sqnr_db: float = -math.inf
    rank_flips: float = 1.0
    loss: float = math.inf
    loss_upper: float = math.inf
    why: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most bytes and work of a configuration that may win."""

    bytes_: float
    work: float

    def hold(self, bytes_: float, work: float) -> bool:
        """Whether so much is inside."""
        return bytes_ <= self.bytes_ and work <= self.work


@dataclass(frozen=True, slots=True)
class Trial:
    """A configuration that was tried. source: "plain recipe", "manual" or the sampler. improvement: what the sampler
    expected of the best of its batch, as a share; None where it says nothing. feasible: whether it keeps to the limits.
    """

    number: int
    config: Config
    source: str
    outcome: Outcome
    feasible: bool
    improvement: float | None = None

    @property
    def score(self) -> float:
        """The objective, infinite for what may not win."""
        value = self.outcome.objective
        return value if self.feasible and math.isfinite(value) else math.inf


@dataclass(frozen=True, slots=True)
class Seen:
    """A configuration as a sampler sees it. value: the logarithm of the objective, finite."""

    config: Config
    value: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What a sampler is asked: `n` new configurations after those seen. allowed: what it need not propose."""

    space: Space
    seen: Sequence[Seen]
    n: int
    seed: int
    allowed: Allowed = lambda config: True


@dataclass(frozen=True, slots=True)
class Proposed:
    """Up to `n` configurations; none where the sampler finds no new one. improvement: see `Trial`."""

    configs: tuple[Config, ...]
    improvement: float | None = None


Propose = Callable[[Asked], Proposed]
"""A sampler: a function of what was seen and of the seed alone, so that a study goes on from its journal."""


def seen_of(trials: Sequence[Trial]) -> list[Seen]:
    """Trials as samplers see them. NaN, infinity and what may not win are worse than the worst that may."""
    finite = [math.log(max(trial.score, _LEAST)) for trial in trials if math.isfinite(trial.score)]
    worst = max(finite, default=0.0) + _WORSE
    return [
        Seen(trial.config, math.log(max(trial.score, _LEAST)) if math.isfinite(trial.score) else worst)
        for trial in trials
    ]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the least objective that may win, the first of equals. The plain recipe's where none may."""
    return min(trials, key=lambda trial: (trial.score, trial.number))
