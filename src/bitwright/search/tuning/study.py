"""A study: batches of configurations, each proposed from all trials before it, until nothing better is expected.

The journal is the truth. Samplers are functions of what was seen, so a study that was stopped is repeated from its
beginning: every batch is proposed again and compared with the journal, and only what is not there is measured. Batches
have a fixed size and trials count in their order, so the same trials follow whatever the number of workers.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from bitwright.errors import InputError
from bitwright.search.journal import Journal
from bitwright.search.tuning.space import Config, Space, key_of
from bitwright.search.tuning.trials import Asked, Limits, Outcome, Propose, Proposed, Trial, best_of, seen_of

BATCH = 2
LITTLE = 0.01  # a share of the objective that is not worth a trial
_ROUNDS, _TRIALS = 3, 8  # that bring no more than that, before a study ends
_FIRST = 16  # trials before it may end: those at random, and as many that a sampler chose

PLAIN, MANUAL = "plain recipe", "manual"

Evaluate = Callable[[Sequence[tuple[int, Config]]], Iterable[tuple[int, Outcome]]]
"""Measures numbered configurations, and yields (number, outcome) in any order."""
Forecast = Callable[[Config], tuple[int, float]]
"""The least bytes and the least work that a configuration has, known without running anything."""


@dataclass(frozen=True, slots=True)
class Study:
    """What is searched and how.

    start: (configuration, where it comes from), tried first; the plain recipe first of all. propose: the sampler, of
    this name. cap: the most trials.
    """

    space: Space
    start: tuple[tuple[Config, str], ...]
    sampler: str
    propose: Propose
    cap: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """All trials of a study, and why it ended."""

    trials: tuple[Trial, ...]
    why: str


def run_study(
    study: Study, evaluate: Evaluate, forecast: Forecast, limits_of: Callable[[Trial], Limits], journal: Journal,
    *, enough: Callable[[Trial], bool] | None = None, stops: bool = True,
) -> Finished:  # fmt: skip
    """Try configurations until `ended` says why not, or a sampler finds no new one.

    Args:
        forecast: what is over the limits already is not run. limits_of: the limits, which follow from the plain
            recipe's trial. journal: of this study alone.
        enough: whether the plain recipe's trial ends the study; it is then the first batch alone.
        stops: whether the study may end before its cap.

    Raises:
        InputError: the journal holds another trial than the one proposed.
    """
    trials: list[Trial] = []
    recorded = _recorded(journal)
    limits = Limits(math.inf, math.inf)

    def allowed(config: Config) -> bool:
        return limits.hold(*forecast(config))

    while (why := ended(trials, study.cap, early=stops)) is None:
        batch = 1 if enough is not None and not trials else BATCH
        sources, proposed = _next(study, trials, min(batch, study.cap - len(trials)), allowed)
        if not proposed.configs:
            why = "every configuration was tried"
            break
        first = len(trials)
        for number, config in enumerate(proposed.configs, first):
            if recorded.get(number, config) != config:
                raise InputError(
                    f"{journal.path}: trial {number} of this study was {key_of(recorded[number])}, but the sampler "
                    f"{study.sampler} now proposes {key_of(config)}, as another release of its library may. Delete the "
                    "directory to start over"
                )
        outcomes = _measured(list(enumerate(proposed.configs, first)), evaluate, forecast, allowed, journal)
        for (number, outcome), config, source in zip(outcomes, proposed.configs, sources, strict=True):
            trial = Trial(number, config, source, outcome, True, proposed.improvement)
            if number == 0:
                limits = limits_of(trial)
            trial = Trial(
                number, config, source, outcome, limits.hold(outcome.bytes_, outcome.work), proposed.improvement
            )
            trials.append(trial)
        if first == 0 and enough is not None and enough(trials[0]):
            return Finished(tuple(trials), "the plain recipe is inside the budget")
    return Finished(tuple(trials), why)


def ended(trials: Sequence[Trial], cap: int, *, early: bool = True) -> str | None:
    """Why a study ends after these trials; None if it goes on. early: whether it may end before its cap."""
    if len(trials) >= cap:
        return f"the {cap} trials that were asked for are done"
    if len(trials) < _FIRST or not early:
        return None
    rounds = [trial.improvement for trial in trials[::-BATCH]][:_ROUNDS]
    if len(rounds) == _ROUNDS and all(gain is not None and gain < LITTLE for gain in rounds):
        return f"less than {LITTLE:.0%} is expected of any other configuration, {_ROUNDS} times in a row"
    before, now = (best_of(some).score for some in (trials[:-_TRIALS], trials))
    if now >= (1 - LITTLE) * before and math.isfinite(now):
        return f"{_TRIALS} trials found nothing better by {LITTLE:.0%}"
    return None


def _next(
    study: Study, trials: Sequence[Trial], n: int, allowed: Callable[[Config], bool]
) -> tuple[list[str], Proposed]:
    """The next `n` configurations at most, and where each comes from."""
    if len(trials) < len(study.start):
        some = study.start[len(trials) : len(trials) + n]
        return [source for _, source in some], Proposed(tuple(config for config, _ in some))
    asked = Asked(study.space, seen_of(trials), n, study.seed, allowed)
    proposed = study.propose(asked)
    return [study.sampler] * len(proposed.configs), proposed


def _measured(
    batch: Sequence[tuple[int, Config]], evaluate: Evaluate, forecast: Forecast, allowed: Callable[[Config], bool],
    journal: Journal,
) -> Iterator[tuple[int, Outcome]]:  # fmt: skip
    """The outcomes of a batch in its order: from the journal, or measured now and written there in this order."""
    keys = {number: f"{number} {key_of(config)}" for number, config in batch}
    open_ = [(number, config) for number, config in batch if keys[number] not in journal.values and allowed(config)]
    coming = iter(evaluate(open_)) if open_ else iter(())
    arrived: dict[int, Outcome] = {}

    def measure(number: int, config: Config) -> dict[str, str]:
        if (number, config) not in open_:
            arrived[number] = Outcome(math.inf, *forecast(config), why="not run: over the budget of bytes or of work")
        while number not in arrived:
            arrived.update([next(coming)])
        return _plain(arrived[number])

    for number, config in batch:

        def of_this(number: int = number, config: Config = config) -> dict[str, str]:
            return measure(number, config)

        yield number, _outcome(journal.remember(keys[number], of_this))


def _recorded(journal: Journal) -> dict[int, Config]:
    """The configuration of each trial in a journal, by number."""
    found: dict[int, Config] = {}
    for key in journal.values:
        number, _, config = key.partition(" ")
        found[int(number)] = json.loads(config)
    return found


def _plain(outcome: Outcome) -> dict[str, str]:
    """Numbers as text, so that infinity survives JSON and every float comes back bit for bit; NaN as infinity."""
    data = asdict(outcome)
    return {
        name: value if name == "why" else repr(math.inf if isinstance(value, float) and math.isnan(value) else value)
        for name, value in data.items()
    }


def _outcome(data: dict[str, str]) -> Outcome:
    numbers = {name: float(value) for name, value in data.items() if name not in ("why", "bytes_")}
    return Outcome(**numbers, bytes_=int(data["bytes_"]), why=data["why"])


def incumbents(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that were the best so far, in order."""
    found: list[Trial] = []
    for trial in trials:
        if math.isfinite(trial.score) and (not found or trial.score < found[-1].score):
            found.append(trial)
    return found
