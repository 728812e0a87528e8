"""What the page and the terminal say of a tuner's study."""

from typing import NamedTuple

from bitwright.record import TrialRow, Tuning
from bitwright.report.wording import is_finite, percent

_NAMED = 3  # settings that mattered most
_LEAST = 0.01  # share of what a setting that is named explains


class ShownTrial(NamedTuple):
    """A trial, its settings that differ from the plain recipe's, and why it cannot win, if it cannot."""

    trial: TrialRow
    settings: str
    note: str


def trial_rows(study: Tuning | None) -> list[ShownTrial]:
    """All trials, in order."""
    if study is None:
        return []
    return [ShownTrial(trial, config_words(trial, study), _note(trial)) for trial in study.trials]


def ranked_trials(study: Tuning) -> list[TrialRow]:
    """The two best trials that may win, the plain recipe, and then the others that may win, the best first."""
    able = sorted((trial for trial in finite_trials(study) if trial.feasible), key=lambda trial: trial.objective)
    plain = [trial for trial in study.trials if trial.number == 0]
    numbers = dict.fromkeys(trial.number for trial in (*able[:2], *plain, *able[2:]))
    return [study.trials[number] for number in numbers]


def finite_trials(study: Tuning) -> list[TrialRow]:
    """The trials whose outputs were numbers."""
    return [trial for trial in study.trials if is_finite(trial.objective)]


def config_words(trial: TrialRow, study: Tuning) -> str:
    """The settings of a trial that differ from the plain recipe's: "range_ffn mse, alpha 0.5"."""
    plain = study.trials[0].config
    words = [f"{name} {_value(value)}" for name, value in trial.config.items() if plain.get(name) != value]
    return ", ".join(words) or ("–" if trial.number == 0 else "none")


def influences(study: Tuning | None) -> str:
    """The settings that mattered most, with their shares; "" where none is known."""
    rows = () if study is None else study.importance
    return ", ".join(f"{row.name} ({percent(row.share)})" for row in rows[:_NAMED] if row.share >= _LEAST)


def _value(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _note(trial: TrialRow) -> str:
    return trial.why or ("" if trial.feasible else "over the limit of size or of work, so it cannot win")
