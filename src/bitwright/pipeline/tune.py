"""Finds the configuration of a recipe whose outputs are nearest to the float model's, inside budgets of bytes and work.

Trials run in worker processes, two at a time whatever their number. The winner is a recipe; `pipeline.run` carries it
out and judges it on texts that the tuner did not see.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from bitwright.checkpoints.result import check_out
from bitwright.errors import InputError, RecipeError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.processors import usable_processors
from bitwright.methods import METHODS, REPRODUCE
from bitwright.pipeline.decision import resolve_auto
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.request import Asked
from bitwright.pipeline.trials import Setup, open_trials
from bitwright.pipeline.tunable import forecast_of, tunable
from bitwright.pipeline.tuned_files import keep_study
from bitwright.pipeline.workspace import JOURNAL, claim, work_directory
from bitwright.plan import quantized_names
from bitwright.progress import Progress
from bitwright.recipe import AUTO, Recipe
from bitwright.record import Influence, TrialRow, Tuning
from bitwright.runtime.resident import available_bytes
from bitwright.search.journal import Journal
from bitwright.search.tuning.forest import importance
from bitwright.search.tuning.recipes import as_recipe, manual_config, recipe_space
from bitwright.search.tuning.samplers import SAMPLERS
from bitwright.search.tuning.space import Config, Space, default_config, key_of
from bitwright.search.tuning.study import BATCH, MANUAL, PLAIN, Finished, Study, run_study
from bitwright.search.tuning.trials import Limits, Outcome, Trial, best_of, seen_of
from bitwright.workers.tasks import kept

DEFAULT_TRIALS, FEWEST_TRIALS = 30, 4
SLACK = 1.01  # of the plain recipe's bytes and work: the scales of transformed inputs are less than that
_STUDY, _RANKING = ".tune", "ranking.jsonl"  # what a study's directory is called after its result's name; a file in it
_ROOM = 1 << 20  # bytes that a study takes on disk
_PROCESS_BYTES, _COPIES = 512 << 20, 3  # of a worker with torch; of the model in float32 that it holds at its peak


@dataclass(frozen=True, slots=True)
class Tune:
    """What a tuner shall do.

    trials: the most. sampler: a name of `SAMPLERS`. max_bytes, max_work: relative to the plain recipe. workers: how
    many processes; by default one for each processor, and never more than a batch has trials. ray: the address of a
    cluster. if_needed: only if the plain recipe is over its budget of loss, on tuning texts.
    """

    trials: int = DEFAULT_TRIALS
    sampler: str = "tpe"
    max_bytes: float = SLACK
    max_work: float = SLACK
    workers: int | None = None
    ray: str | None = None
    if_needed: bool = False


@dataclass(frozen=True, slots=True)
class Tuned:
    """recipe: the winner's. section: of the Record. files: what the result keeps of the study, by name."""

    recipe: Recipe
    section: Tuning
    files: dict[str, Path] = field(default_factory=dict)


def check_tune(tune: Tune, recipe: Recipe) -> None:
    """Refuse what cannot be tuned, before a model is opened.

    Raises:
        InputError: an unknown sampler, too few trials, a budget that is none. RecipeError: a goal beside it.
    """
    if tune.sampler not in SAMPLERS:
        raise InputError(f"sampler {tune.sampler!r} is unknown; known: {', '.join(SAMPLERS)}")
    if not isinstance(tune.trials, int) or tune.trials < FEWEST_TRIALS:
        raise InputError(f"trials = {tune.trials}: give at least {FEWEST_TRIALS}, or leave tuning out")
    for name, value in (("max_bytes", tune.max_bytes), ("max_work", tune.max_work)):
        if not 0.1 <= value <= 10:
            raise InputError(f"{name} = {value:g}: give a share of the plain recipe's, such as 1.05 for 5 % more")
    if recipe.budget.goal is not None:
        raise RecipeError(
            f"goal: {recipe.budget.goal} chooses the bits of every layer, and the tuner chooses all else; leave one of "
            "the two out"
        )
    if REPRODUCE in (recipe.method, *(rule.method for rule in recipe.rules)):
        raise RecipeError(f"method: {REPRODUCE} keeps the codes that weights are already, so nothing is left to tune")
    _require_libraries(tune.sampler)


@contextmanager
def tuned(
    source: str | Path | ModelDirectory, setup: Setup, asked: Asked, tune: Tune, progress: Progress
) -> Iterator[Tuned]:
    """The winner of a study, whose directory stays until the block ends without an error: a run that was stopped after
    its study does not begin it again.

    setup: what a worker opens, and this process too. source: where the model lies. asked: of the run.

    Raises:
        BitwrightError: as `open_job` and `tasks.run`. InputError: a directory that holds another study.
    """
    progress.say("opening the model for the tuner")
    recipe, where = setup.recipe, str(source.path) if isinstance(source, ModelDirectory) else source
    opened = open_job(source, recipe, setup.texts, task=setup.task, trust_remote_code=setup.trust_remote_code)
    job = resolve_auto(opened, progress)
    if AUTO in (recipe.method, *(rule.method for rule in recipe.rules)):
        recipe = job.recipe.model_copy(update={"targets": recipe.targets})
    if recipe.method not in METHODS or not quantized_names(job.plan):
        raise RecipeError("this recipe quantizes no linear, so there is nothing to tune; give a scheme such as w8a8")
    check_out(asked.out, opened.opened.loaded.path, overwrite=asked.overwrite)
    with work_directory(asked.out.parent / (asked.out.name + _STUDY), _ROOM, progress) as work:
        yield _tuned(job, replace(setup, model=where, recipe=recipe), tune, work, progress)


def _tuned(job: Job, setup: Setup, tune: Tune, work: Path, progress: Progress) -> Tuned:
    base = setup.recipe
    room = max(tune.max_bytes, tune.max_work) > SLACK
    facts = tunable(job, setup.texts, Journal(work / _RANKING, "") if room else None, progress)
    space = recipe_space(base, facts)
    study = _study(space, tune, base.seed)
    said = f"{tune.sampler}, {tune.max_bytes!r}, {tune.max_work!r}, {tune.trials}, {tune.if_needed}"
    claim(work, job.context() | {"space": _digest(repr(space)), "tuner's options": _digest(said)})
    journal = Journal(work / JOURNAL, "")
    if journal.values:
        progress.say(f"continuing a study that was stopped: {len(journal.values)} trials are already there")

    def limits(plain: Trial) -> Limits:
        return Limits(tune.max_bytes * plain.outcome.bytes_, tune.max_work * plain.outcome.work)

    def enough(plain: Trial) -> bool:
        return plain.outcome.loss_upper <= base.budget.max_loss

    with ExitStack() as stack:

        @cache
        def do() -> Callable[..., Iterator[tuple[str, Outcome]]]:  # not before there is something to do
            workers = tune.workers if tune.ray is not None else _workers(job, tune)
            return stack.enter_context(kept(partial(open_trials, setup), workers=workers, ray=tune.ray))

        def evaluate(batch: Sequence[tuple[int, Config]]) -> Iterator[tuple[int, Outcome]]:
            progress.say(f"trial {batch[0][0] + 1} of at most {tune.trials}")
            tasks = {f"trial {number + 1}": (number, as_recipe(base, space, c, facts)) for number, c in batch}
            for key, outcome in do()([(key, recipe) for key, (_, recipe) in tasks.items()]):
                yield tasks[key][0], outcome

        forecast = forecast_of(job, base, space, facts)
        found = run_study(study, evaluate, forecast, limits, journal, enough=enough if tune.if_needed else None)
    best = best_of(found.trials)
    progress.say(
        f"{len(found.trials)} trials: {found.why}. The best is trial {best.number + 1}, with {_objective(job)} "
        f"{best.score:.6f}; the plain recipe has {found.trials[0].score:.6f}"
    )
    files = keep_study(work, space, found.trials, progress)
    section = _section(job, study, found, limits(found.trials[0]), tune)
    return Tuned(as_recipe(base, space, best.config, facts), section, files)


def _study(space: Space, tune: Tune, seed: int) -> Study:
    plain, manual = default_config(space), manual_config(space)
    start = [(plain, PLAIN)] + ([(manual, MANUAL)] if key_of(manual) != key_of(plain) else [])
    return Study(space, tuple(start), tune.sampler, SAMPLERS[tune.sampler], tune.trials, seed)


def _workers(job: Job, tune: Tune) -> int:
    """As many processes as a batch has trials, but no more than there are processors or the memory holds."""
    values = sum(parameter.numel() for parameter in job.opened.loaded.model.parameters())
    fit = available_bytes() // (_PROCESS_BYTES + _COPIES * 4 * values)
    return max(1, min(BATCH, tune.workers or min(usable_processors(), fit)))


def _objective(job: Job) -> str:
    return "KL divergence" if job.opened.streams else "EMD"


def _section(job: Job, study: Study, found: Finished, limits: Limits, tune: Tune) -> Tuning:
    """The Record's section."""
    best, plain = best_of(found.trials), found.trials[0]
    shares = importance(study.space, seen_of(found.trials), study.seed)
    rows = tuple(
        TrialRow(
            trial.number, dict(trial.config), trial.source, one.objective, one.distance, one.sqnr_db, one.rank_flips,
            one.loss, one.bytes_, one.work / plain.outcome.work, trial.feasible, trial is best, one.why,
        )
        for trial in found.trials
        for one in (trial.outcome,)
    )  # fmt: skip
    return Tuning(
        sampler=study.sampler, objective=_objective(job), cap=study.cap, ended=found.why, seed=study.seed,
        max_bytes=limits.bytes_, max_work=tune.max_work, texts=len(job.scored.tuning.texts), trials=rows,
        importance=tuple(Influence(name, shares[name]) for name in sorted(shares, key=lambda name: -shares[name])),
    )  # fmt: skip


def _require_libraries(sampler: str) -> None:
    """Raises:
    InputError: a library that the sampler, or the report of what mattered, needs is not installed.
    """
    needed = {"sklearn": "tune", **({"optuna": "tune"} if sampler in ("tpe", "gp") else {}),
              **({"smac": "smac"} if sampler == "smac" else {})}  # fmt: skip
    for name, extra in needed.items():
        if find_spec(name) is None:
            raise InputError(f"tuning by {sampler} needs {name}: pip install 'bitwright[{extra}]'")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
