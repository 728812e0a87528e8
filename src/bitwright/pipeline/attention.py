"""Decides for a run in which blocks attention is computed in int8, by measuring on the engine."""

import shutil
from dataclasses import replace
from pathlib import Path

from bitwright.evaluate import Task
from bitwright.files.directory import ModelDirectory
from bitwright.kernels.dispatch import without_amx
from bitwright.pipeline.job import Job
from bitwright.pipeline.variants import write_variant
from bitwright.plan import Plan, attention_rows
from bitwright.quantizing.layers import Quantized
from bitwright.recipe import Recipe, Rule
from bitwright.record import AttentionCost
from bitwright.runtime.engine_model import not_on_engine
from bitwright.search.attention import Settled, float_attention, points, settle_attention
from bitwright.search.journal import Journal
from bitwright.search.measured import Measure

_PLACE = ".attention"  # in a work directory; hidden: what a killed run leaves goes when the next one begins


def unmeasured_attention(job: Job) -> Settled:
    """What is asked for, where that is said; else float attention: what int8 costs was not measured."""
    asked, ours = job.recipe.attention, any(row.scheme == "int8" for row in attention_rows(job.plan))
    if asked != "auto" or not ours:
        return Settled(asked)
    return Settled(asked, (Rule(match="*", attention="float", reason="what 8 bits cost was not measured"),))


def decide_attention(
    job: Job, recipe: Recipe, quantized: Quantized, measure: Measure, journal: Journal, folder: Path
) -> Settled:
    """In which blocks attention is computed in int8, and what that costs on tuning data.

    job: as it was asked for. recipe: the linears that were chosen for it. measure: of any recipe, as `on_tuning_data`
    gives it. folder: a work directory.

    The result may run on any processor, so what int8 costs is measured with kernels that do compute in int8.
    """
    asked = job.recipe.attention
    variant = job.with_recipe(recipe.model_copy(update={"attention": asked}))
    plain = job.with_recipe(float_attention(variant.recipe))
    rows = zip(attention_rows(variant.plan), attention_rows(plain.plan), strict=True)
    names = [row.name for row, other in rows if row.scheme == "int8" and (other.scheme == "float" or asked == "int8")]
    if not names:
        return Settled(asked)

    def problem() -> str:
        place = folder / _PLACE
        shutil.rmtree(place, ignore_errors=True)
        write_variant(plain, quantized, place)
        try:
            return not_on_engine(ModelDirectory(place))
        finally:
            shutil.rmtree(place)

    if why := journal.remember("not on the engine", problem):
        reason = f"the engine does not run this model: {why}"
        return Settled(asked, (Rule(match="*", attention="float", reason=reason),))
    with without_amx():
        return settle_attention(variant.recipe, names, measure, resolution=_resolution(job.scored.tuning))


def _resolution(task: Task) -> float:
    """The least loss that a task can tell from none: one of the answers that it counts. Without labels they are not
    counted, but estimated.
    """
    counts = task.kind.outputs == "logits" and not task.kind.label_free
    return 1 / task.n_units if counts and task.n_units else 0.0


def with_cost(plan: Plan, cost: AttentionCost | None) -> Plan:
    """The plan with what was measured in the reasons of int8 attention."""
    if cost is None:
        return plan
    n_int8 = sum(row.is_attention and row.scheme == "int8" for row in plan)
    where = f"in {n_int8} of {len(attention_rows(plan))} blocks"
    said = f"{where} it adds {points(cost.loss - cost.loss_float)} points of loss on tuning texts"
    return tuple(
        replace(row, reason=f"{row.reason}; {said}") if row.is_attention and row.scheme == "int8" else row
        for row in plan
    )
