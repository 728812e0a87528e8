"""Which sampler finds good configurations soonest? Replays a table of `tuner_table.py`; nothing is quantized.

    python benchmarks/tuner_regret.py benchmarks/tuner_int8.json --samplers forest,tpe,random

Each sampler searches the table's configurations with 20 seeds, from the plain recipe on, for 30 trials. Where the rule
to stop would have ended the search is told, too.

    regret = least EMD found / least EMD of the table − 1

Beside the samplers stands a person: percentile 99.99 and α = 0.5 where there are such choices, then one parameter after
the other, each kept if it helped, 12 trials.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scipy.stats import ttest_rel

from bitwright.search.journal import Journal
from bitwright.search.tuning import study as studies
from bitwright.search.tuning.recipes import manual_config
from bitwright.search.tuning.samplers import SAMPLERS
from bitwright.search.tuning.space import Config, Parameter, Space, completed, default_config, key_of
from bitwright.search.tuning.study import PLAIN, Study, ended, run_study
from bitwright.search.tuning.trials import Limits, Outcome, Trial, best_of

CAP, SEEDS, BY_HAND = 30, 20, 12
NEAR = 0.02  # of the best: configurations that are as good


def main() -> None:
    """Replay, print a row for each sampler, and write JSON on request."""
    parser = argparse.ArgumentParser(description="Samplers on a table of configurations.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = json.loads(options.table.read_text(encoding="utf-8"))["rows"]
    table = {key_of(row["config"]): float(row["emd"]) for row in rows}
    space = space_of([row["config"] for row in rows])
    least = min(table.values())
    near = sum(value <= (1 + NEAR) * least for value in table.values()) / len(table)
    print(f"{len(table)} configurations, best {least:.6f}; {near:.1%} within {NEAR:.0%} of it")
    plain, hand = table[key_of(default_config(space))], by_hand(space, table)
    print(f"{'plain recipe':<14} regret {plain / least - 1:.3f}\n{'by hand':<14} regret {hand / least - 1:.3f}")
    found = {}
    for name in options.samplers.split(","):
        begun = time.process_time()
        found[name] = [replay(space, table, name, seed) for seed in range(options.seeds)]
        print(told(name, found[name], least, time.process_time() - begun), flush=True)
    if "random" in found:
        for name in found:
            if name != "random":
                print(compared(name, found, least))
    if options.json:
        figures = {name: [score / least - 1 for score, _, _ in runs] for name, runs in found.items()}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


Run = tuple[float, int, float]
"""Best after all trials; how many there would have been with the rule to stop, and the best of those."""


def replay(space: Space, table: dict[str, float], name: str, seed: int) -> Run:
    """One search of the table."""

    def evaluate(batch: Sequence[tuple[int, Config]]) -> Iterator[tuple[int, Outcome]]:
        for number, config in batch:
            yield number, Outcome(table[key_of(config)], 1, 1.0)

    def forecast(config: Config) -> tuple[int, float]:  # what is not in the table may not be proposed
        return (1 if key_of(config) in table else 2), 1.0

    what = Study(space, ((default_config(space), PLAIN),), name, SAMPLERS[name], CAP, seed)
    trials = run_study(what, evaluate, forecast, lambda plain: Limits(1.5, 1.5), Journal(None, ""), stops=False).trials
    stopped = next((n for n in range(2, CAP, studies.BATCH) if ended(trials[:n], CAP)), CAP)
    return score(trials), stopped, score(trials[:stopped])


def score(trials: Sequence[Trial]) -> float:
    """The least EMD of some trials."""
    return best_of(trials).score


def by_hand(space: Space, table: dict[str, float]) -> float:
    """What a person finds in 12 trials: each parameter in turn, its choices in turn."""
    here = manual_config(space)
    if key_of(here) not in table:
        here = default_config(space)
    best, tried = table[key_of(here)], 1
    for parameter in space:
        for choice in parameter.choices:
            other = completed(space, {**here, parameter.name: choice})
            if parameter.name not in here or key_of(other) == key_of(here) or key_of(other) not in table:
                continue
            if tried == BY_HAND:
                return best
            tried += 1
            if table[key_of(other)] < best:
                best, here = table[key_of(other)], other
    return best


def space_of(configs: Sequence[Config]) -> Space:
    """The space of a table: the parameters of `tuner_table.py` that have these choices."""
    from tuner_table import SPACES

    names = {name for config in configs for name in config}
    found = next(space for space in SPACES.values() if {parameter.name for parameter in space} >= names)
    return tuple(_limited(parameter, configs) for parameter in found if parameter.name in names)


def _limited(parameter: Parameter, configs: Sequence[Config]) -> Parameter:
    seen = {config[parameter.name] for config in configs if parameter.name in config}
    choices = tuple(choice for choice in parameter.choices if choice in seen)
    default = parameter.default if parameter.default in choices else choices[0]
    return Parameter(parameter.name, choices, default, parameter.when)


def told(name: str, runs: Sequence[Run], least: float, seconds: float) -> str:
    """A sampler's row."""
    regrets = [best / least - 1 for best, _, _ in runs]
    early = [best / least - 1 for _, _, best in runs]
    stops = [trials for _, trials, _ in runs]
    return (
        f"{name:<14} regret {statistics.mean(regrets):.3f} (median {statistics.median(regrets):.3f}) at {CAP} trials; "
        f"with the rule to stop {statistics.mean(early):.3f} after {statistics.mean(stops):.1f} trials, before the cap "
        f"in {sum(trials < CAP for trials in stops)} of {len(stops)}; {seconds / len(runs):.1f} s a search"
    )


def compared(name: str, found: dict[str, list[Run]], least: float) -> str:
    """A sampler's mean regret relative to random search, and the one-sided paired test."""
    ours, random = ([best / least - 1 for best, _, _ in found[each]] for each in (name, "random"))
    p = float(ttest_rel(ours, random, alternative="less").pvalue)
    ratio = statistics.mean(ours) / statistics.mean(random) if any(random) else math.nan
    return f"{name:<14} {ratio:.2f} × random's regret, p = {p:.4f}"


if __name__ == "__main__":
    main()
