"""Quantizing one stage of a model: observe, transform, round, account, leave the rounded weights in place."""

import torch
from torch import Tensor, nn

from bitwright.calibration.stream import Stage
from bitwright.models.sites import LinearSite
from bitwright.quantizing.block_outputs import distance
from bitwright.quantizing.observing import observe_inputs, observe_weighted_inputs
from bitwright.quantizing.rounding import error_by_rtn, round_linears
from bitwright.quantizing.shards import Made
from bitwright.quantizing.transforming import transform
from bitwright.quantizing.work import StagePlan, Work
from bitwright.record import LayerRow, from_data

_COMPARED_BATCHES = 1  # whose block outputs are compared, before and after


def quantize_stage(model: nn.Module, stage: Stage, plan: StagePlan) -> Made:
    """Quantize the linears of a stage. Mutates `model`: afterwards it computes with the rounded weights.

    Raises:
        NumericsError: NaN or infinity in a weight or among the inputs; the message names the linear.
    """
    sites = [site for site in stage.sites if site.name in plan.rows]
    if not sites:
        return Made({}, {}, (), [])
    here = {site.name for site in sites}
    inputs = [shared for shared in plan.inputs if here.intersection(shared.sites)]
    sample = range(min(_COMPARED_BATCHES, len(stage.inputs)))
    work = Work(model, stage, plan, sites, sample, stage.outputs(sample))
    observe_inputs(work, inputs)
    for site in sites:
        work.notes[site.name] |= {"error_rtn": error_by_rtn(work, site.name)}
    for shared in inputs:
        transform(work, shared)
    changed = {name: _as_kept(work, name) for name in dict.fromkeys(work.changed)}
    again = plan.recipe.options.observes_again
    if again and stage.originals:
        work.keep_originals(site.name for site in sites)
    if not again:
        observe_weighted_inputs(work, [site.name for site in sites])
    for number, shared in enumerate(inputs):
        if again:
            if number:
                observe_inputs(work, [shared])
            observe_weighted_inputs(work, shared.sites)
        round_linears(work, shared)
    moved = distance(work.before, stage.outputs(sample))
    return Made(work.layers, changed, work.rebiased, [_account_row(work, site, moved) for site in sites])


def _account_row(work: Work, site: LinearSite, moved: float) -> LayerRow:
    """The Record's row of one linear. moved: how far the outputs of the stage went."""
    row = work.plan.rows[site.name]
    facts = {"name": site.name, "block": site.block, "role": site.role, "unit": site.unit, "block_emd": moved}
    return from_data(LayerRow, facts | {"scheme": row.scheme, "method": row.method} | work.notes[site.name])


def _as_kept(work: Work, name: str) -> Tensor:
    """A changed parameter as a checkpoint keeps it if it stays float: matrices of linears in 16 bit, the rest as is; of
    linears whose input is transformed what reads the input as it is, since a float linear transforms nothing."""
    value = work.model.get_parameter(name).detach()
    linear, _, part = name.rpartition(".")
    if (transform := work.applied.get(linear)) is not None:
        weight = transform.restored(work.linear(linear).weight.detach())
        value = weight if part == "weight" else value
        if part == "bias" and transform.shift_K is not None:
            value = value - weight @ transform.shift_K.to(value.dtype)
    row = work.plan.rows.get(name.removesuffix(".weight"))
    return value.to(getattr(torch, row.half)) if row is not None and row.half and value.ndim == 2 else value.clone()
