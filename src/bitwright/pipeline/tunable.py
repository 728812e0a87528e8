"""What a tuner may change of a job, and what a configuration costs at least, known without running anything."""

import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from bitwright.errors import RecipeError, TargetError
from bitwright.numerics.schemes import SCHEMES
from bitwright.pipeline.job import Job
from bitwright.pipeline.parts import rank_units
from bitwright.pipeline.request import Texts
from bitwright.pipeline.trials import work_of
from bitwright.pipeline.variants import quantize_model
from bitwright.plan import quantized_names
from bitwright.progress import Progress
from bitwright.recipe import Recipe
from bitwright.search.fallback import units_by_error
from bitwright.search.journal import Journal
from bitwright.search.sensitivity import ranked_units
from bitwright.search.tuning.recipes import Facts, as_recipe, sensitivity_groups
from bitwright.search.tuning.space import Config, Space, Value, completed
from bitwright.search.tuning.study import Forecast

_DECIDING = ("transform", "rounding")  # and what is kept: nothing else changes a plan


def tunable(job: Job, texts: Texts, ranking: Journal | None, progress: Progress) -> Facts:
    """What may be tuned. The number of calibration texts is left alone where they are drawn from the texts that decide:
    more of them would move texts from one side to the other.

    ranking: keeps what is measured to find the most sensitive units; None if the budget has no room to keep any.
    """
    names = quantized_names(job.plan)
    rows = [row for row in job.plan if row.name in names]
    modules = dict(job.opened.loaded.model.named_modules())
    return Facts(
        schemes=tuple(SCHEMES[scheme] for scheme in dict.fromkeys(row.scheme for row in rows)),
        roles=frozenset(row.role for row in rows),
        groups=() if ranking is None else sensitivity_groups(_ranked(job, ranking, progress)),
        sampled=not texts.data,
        mixed=not texts.data and not job.opened.streams,
        biased=any(getattr(modules[row.name], "bias", None) is not None for row in rows),
    )


def _ranked(job: Job, ranking: Journal, progress: Progress) -> tuple[str, ...]:
    """The units that the plain recipe quantizes, the most sensitive first."""
    with TemporaryDirectory() as folder:
        quantized = quantize_model(job, Path(folder), progress)
        if job.opened.streams:
            return units_by_error(quantized.account)
        return ranked_units(rank_units(job, quantized, ranking, progress))


def forecast_of(job: Job, base: Recipe, space: Space, facts: Facts) -> Forecast:
    """The bytes and the work of a configuration's plan, without the scales of transformed inputs; infinitely many where
    a target that was asked for cannot have it."""

    @cache
    def of(chosen: tuple[tuple[str, Value], ...]) -> tuple[int, float]:
        recipe = as_recipe(base, space, completed(space, dict(chosen)), facts)
        try:
            plan = job.with_recipe(recipe).plan
        except (RecipeError, TargetError):
            return 1 << 62, math.inf
        return sum(row.bytes_after for row in plan), work_of(plan)

    def forecast(config: Config) -> tuple[int, float]:
        return of(tuple((name, value) for name, value in config.items() if _decides(name)))

    return forecast


def _decides(name: str) -> bool:
    return name in _DECIDING or name.startswith("keep_")
