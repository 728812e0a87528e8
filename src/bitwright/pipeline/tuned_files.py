"""What a result keeps of its study: the journal, and a database that Optuna's dashboard opens."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitwright.pipeline.workspace import JOURNAL
from bitwright.progress import Progress
from bitwright.search.tuning.samplers import quiet
from bitwright.search.tuning.space import Space
from bitwright.search.tuning.trials import Trial

DATABASE = "study.db"
_JOURNAL_KEPT = "trials.jsonl"
_NAME = "bitwright"


def keep_study(work: Path, space: Space, trials: Sequence[Trial], progress: Progress) -> dict[str, Path]:
    """The files of a study by the names that they have in the result. The database is written anew from the trials;
    without Optuna there is none, and a remark says so.

    work: the study's directory.
    """
    found = {_JOURNAL_KEPT: work / JOURNAL}
    try:
        import optuna
        from sqlalchemy import URL
    except ImportError:
        progress.say("the study is not written as a database, because Optuna is not installed: pip install optuna")
        return found
    path = work / DATABASE
    path.unlink(missing_ok=True)
    with quiet():
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = optuna.storages.RDBStorage(str(URL.create("sqlite", database=str(path))))
        study = optuna.create_study(storage=storage, study_name=_NAME, direction="minimize")
        study.add_trials([_row(optuna, space, trial) for trial in trials])
        storage.engine.dispose()
    return found | {DATABASE: path}


def _row(optuna: Any, space: Space, trial: Trial) -> Any:
    """A trial as Optuna keeps it: values as they are called in recipes; what may not win has failed."""
    known = {parameter.name: optuna.distributions.CategoricalDistribution(parameter.choices) for parameter in space}
    outcome, won = trial.outcome, math.isfinite(trial.score)
    told = {
        "source": trial.source,
        "bytes": outcome.bytes_,
        "work": outcome.work,
        "distance": outcome.distance,
        "sqnr_db": outcome.sqnr_db,
        "rank_flips": outcome.rank_flips,
        "loss": outcome.loss,
        "why": outcome.why,
    }
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if won else optuna.trial.TrialState.FAIL,
        params=dict(trial.config), distributions={name: known[name] for name in trial.config},
        value=trial.score if won else None,
        user_attrs={name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
                    for name, value in told.items()},
    )  # fmt: skip
