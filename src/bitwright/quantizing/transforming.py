"""The transform of an input that linears share: chosen, and folded where that is exact, else kept for the input."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch

from bitwright.calibration.observers import LayerStats, merge
from bitwright.methods import METHODS, Transformed, transform_of
from bitwright.models.parameters import weight_of
from bitwright.models.rescale import SharedInput, fold, legal_scale, scale_readers
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.quantizing.block_outputs import mean_squared_error, rounded_to_nearest
from bitwright.quantizing.observing import rescale
from bitwright.quantizing.work import Work


def transform(work: Work, shared: SharedInput) -> None:
    """Choose the transform of one input, if its linears' method has one, and apply it. Mutates `work` and its model."""
    names = work.chosen(shared)
    rows = [work.plan.rows[name] for name in names]
    row = next((row for row in rows if METHODS[row.method].transform is not None), None)
    known = [name for name in names if name in work.stats]
    if row is None or not known:
        return
    transformed = _choose(work, shared, row.method, SCHEMES[row.scheme], known)
    if transformed is None:
        work.notes[names[0]]["transform"] = "none: no candidate is better"
        return
    if shared.producer is not None:
        # Values are taken once all transforms are in.
        work.changed += fold(work.model, shared, transformed.scale_K, transformed.shift_K)
    else:
        scale_readers(work.model, shared, transformed.scale_K, transformed.shift_K)
        work.applied |= dict.fromkeys(names, transformed.transform)
    rescale(work, known, transformed.transform)
    told: dict[str, Any] = {"transform": "at the input" if shared.producer is None else "folded"}
    told |= {f"transform_{key}": value for key, value in transformed.notes.items()}
    for name in names:
        work.notes[name] |= told


def _choose(work: Work, shared: SharedInput, method: str, scheme: Scheme, known: Sequence[str]) -> Transformed | None:
    """The transform that the method finds for an input; None where none is better than none.

    known: the linears that have statistics.
    """
    stats = reduce(merge, work.stats.distinct(known))
    weights = [weight_of(work.model.get_submodule(reader)).float() for reader in shared.readers]
    alpha = work.plan.recipe.options.alpha
    choose = transform_of(method, alpha=alpha, shiftable=shared.shiftable)
    assert choose is not None
    # AWQ's own estimate, from the Gram matrix, needs no forward.
    by_block = METHODS[method].transform != "awq" and alpha == "search"
    error = partial(_block_error, work, shared, scheme, stats) if by_block else None
    transformed = choose(weights, stats, scheme, error)
    if transformed is None:
        return None
    return replace(transformed, scale_K=legal_scale(shared, transformed.scale_K))


def _block_error(
    work: Work, shared: SharedInput, scheme: Scheme, stats: LayerStats, candidate: Transformed | None
) -> float:
    """Mean squared error of the stage's output when the linears of one input are quantized with a transform."""
    if candidate is None:
        candidate = Transformed(torch.ones_like(stats.min_K))
    candidate = replace(candidate, scale_K=legal_scale(shared, candidate.scale_K))
    with rounded_to_nearest(work.model, work.chosen(shared), scheme, stats, candidate.transform):
        return mean_squared_error(work.before, work.stage.outputs(work.sample))
