"""Studies on a function that is known: the same trials after any stop, limits that hold, ends with their reasons."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bitwright.errors import InputError
from bitwright.search.journal import Journal
from bitwright.search.tuning.samplers import SAMPLERS
from bitwright.search.tuning.space import Config, Parameter, configurations, default_config, key_of
from bitwright.search.tuning.study import PLAIN, Finished, Study, ended, incumbents, run_study
from bitwright.search.tuning.trials import Asked, Limits, Outcome, Proposed, Trial, best_of, seen_of

SPACE = (
    Parameter("range", ("min_max", "percentile", "mse", "entropy"), "min_max"),
    Parameter("percent", (99.0, 99.9, 99.99, 99.999), 99.99, {"range": ("percentile",)}),
    Parameter("smooth", (False, True), False),
    Parameter("alpha", (0.3, 0.4, 0.5, 0.6, 0.7), 0.5, {"smooth": (True,)}),
    Parameter("keep", (False, True), False),
)
QUICK = [name for name in SAMPLERS if name not in ("smac", "gp")]


def objective(config: Config) -> float:
    """Least for percentile 99.9, smoothed at 0.6; keeping a layer is better still, and over every budget."""
    ranges = {"min_max": 1.0, "percentile": 0.6, "mse": 0.7, "entropy": 0.9}
    value = ranges[str(config["range"])] * (1 + abs(float(config.get("percent", 99.9)) - 99.9))
    value *= 0.8 + abs(float(config["alpha"]) - 0.6) if config["smooth"] else 1.0
    return value * (0.1 if config["keep"] else 1.0)


def bytes_of(config: Config) -> int:
    return 200 if config["keep"] else 100


def backwards(batch: Sequence[tuple[int, Config]]) -> Iterator[tuple[int, Outcome]]:
    """Outcomes in another order than asked for, as workers give them."""
    for number, config in reversed(batch):
        yield number, Outcome(objective(config), bytes_of(config), 1.0)


def study(sampler: str = "forest", cap: int = 24, seed: int = 0) -> Study:
    return Study(SPACE, ((default_config(SPACE), PLAIN),), sampler, SAMPLERS[sampler], cap, seed)


def run(path: Path | None, what: Study, evaluate: object = backwards, **options: object) -> Finished:
    return run_study(
        what, evaluate, lambda config: (bytes_of(config), 1.0), lambda plain: Limits(1.01 * plain.outcome.bytes_, 1.01),
        Journal(path, ""), **options,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("sampler", QUICK)
def test_a_study_that_was_stopped_anywhere_ends_the_same(sampler: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", study(sampler, cap=14))
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    for kept in (0, 5, len(lines) - 1):
        cut = tmp_path / f"cut{kept}"
        cut.write_text("".join(lines[:kept]) + lines[kept][: len(lines[kept]) // 2])
        assert run(cut, study(sampler, cap=14)) == whole
        told = [line for line in cut.read_text().splitlines(keepends=True) if line.startswith("{") and "}}" in line]
        assert told == lines


@pytest.mark.parametrize("sampler", [pytest.param(name, marks=pytest.mark.full) for name in ("gp", "smac")])
def test_slow_samplers_go_on_the_same(sampler: str, tmp_path: Path) -> None:
    pytest.importorskip("smac" if sampler == "smac" else "optuna")
    whole = run(tmp_path / "whole", study(sampler, cap=12))
    lines = (tmp_path / "whole").read_text().splitlines(keepends=True)
    (tmp_path / "cut").write_text("".join(lines[:9]))
    assert run(tmp_path / "cut", study(sampler, cap=12)) == whole


@pytest.mark.parametrize("sampler", QUICK)
def test_no_configuration_twice_and_none_over_the_limits_wins(sampler: str) -> None:
    found = run(None, study(sampler)).trials
    assert len({key_of(trial.config) for trial in found}) == len(found)
    best = best_of(found)
    assert best.feasible
    assert not best.config["keep"]
    assert best.score <= found[0].score


def test_the_forest_finds_what_is_best() -> None:
    """Within 5 % of the best of 42 that may win, after 24 trials."""
    least = min(objective(config) for config in configurations(SPACE) if not config["keep"])
    found = [best_of(run(None, study(seed=seed)).trials).score for seed in range(2)]
    assert all(score <= 1.05 * least for score in found)


def test_what_is_over_the_limits_by_its_plan_is_not_run() -> None:
    asked: list[Config] = []

    def evaluate(batch: Sequence[tuple[int, Config]]) -> Iterator[tuple[int, Outcome]]:
        asked.extend(config for _, config in batch)
        return backwards(batch)

    def stubborn(asked: Asked) -> Proposed:
        left = [config for config in configurations(SPACE) if config["keep"]]
        return Proposed(tuple(left[len(asked.seen) : len(asked.seen) + asked.n]))

    found = run(None, Study(SPACE, ((default_config(SPACE), PLAIN),), "stubborn", stubborn, 5), evaluate).trials
    assert [config["keep"] for config in asked] == [False]
    assert [trial.feasible for trial in found] == [True, False, False, False, False]
    assert all("not run" in trial.outcome.why for trial in found[1:])
    assert best_of(found) is found[0]


def test_nan_is_the_worst(tmp_path: Path) -> None:
    def broken(batch: Sequence[tuple[int, Config]]) -> Iterator[tuple[int, Outcome]]:
        for number, config in batch:
            yield number, Outcome(math.nan if config["smooth"] else objective(config), 100, 1.0)

    found = run(tmp_path / "j", study(), broken)
    assert run(tmp_path / "j", study()) == found  # infinity came back from the journal
    broken_ones = [trial for trial in found.trials if trial.config["smooth"]]
    assert broken_ones
    assert all(trial.outcome.objective == math.inf for trial in broken_ones)
    values = {key_of(one.config): one.value for one in seen_of(found.trials)}
    worst = max(
        value for trial in found.trials if not trial.config["smooth"] for value in [values[key_of(trial.config)]]
    )
    assert all(values[key_of(trial.config)] > worst for trial in broken_ones)
    assert not best_of(found.trials).config["smooth"]


def test_another_proposal_than_the_journals_is_an_error(tmp_path: Path) -> None:
    run(tmp_path / "j", study(seed=1))
    with pytest.raises(InputError, match=r"trial \d+ of this study was .*, but the sampler forest now proposes"):
        run(tmp_path / "j", study(seed=2))


def test_a_study_ends_when_everything_was_tried() -> None:
    space = SPACE[2:3]
    found = run_study(
        Study(space, ((default_config(space), PLAIN),), "random", SAMPLERS["random"], 9),
        lambda batch: [(number, Outcome(1.0, 1, 1.0)) for number, _ in batch], lambda config: (1, 1.0),
        lambda plain: Limits(2, 2), Journal(None, ""),
    )  # fmt: skip
    assert (len(found.trials), found.why) == (2, "every configuration was tried")


def test_the_plain_recipe_may_be_enough() -> None:
    found = run(None, study(), enough=lambda plain: plain.outcome.objective == 1.0)
    assert len(found.trials) == 1
    assert "inside the budget" in found.why


def trials(scores: Sequence[float], gains: Sequence[float | None] = ()) -> list[Trial]:
    gains = gains or [None] * len(scores)
    return [
        Trial(n, {"a": n}, "x", Outcome(score, 1, 1.0), True, gain)
        for n, (score, gain) in enumerate(zip(scores, gains, strict=True))
    ]


def test_reasons_to_end() -> None:
    falling = [0.9**n for n in range(30)]
    assert ended(trials(falling), 31) is None
    assert "30 trials that were asked for" in str(ended(trials(falling), 30))
    assert "8 trials found nothing better" in str(ended(trials([*falling[:12], *[0.5] * 8]), 30))
    assert ended(trials([*falling[:12], *[0.5] * 7]), 30) is None
    little = [None] * 12 + [0.009] * 6
    assert "less than 1%" in str(ended(trials(falling[:18], little), 30))
    assert ended(trials(falling[:18], [*little[:12], 0.02, 0.02, *little[:0], *[0.009] * 4]), 30) is None
    assert ended(trials([1.0] * 12), 30) is None  # too few
    assert [trial.number for trial in incumbents(trials([3, 4, 2, 2, 1]))] == [0, 2, 4]
