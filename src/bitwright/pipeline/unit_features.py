"""Measures features of a model in one pass over a small calibration sample."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from bitwright.calibration.observers import LayerStats, observe
from bitwright.calibration.precision import fast_matmul
from bitwright.calibration.stream import stream_lazily
from bitwright.errors import named
from bitwright.models.load import LoadedModel
from bitwright.models.parameters import weight_of
from bitwright.models.rescale import SharedInput, find_inputs
from bitwright.models.sites import LinearSite, find_linears
from bitwright.progress import Progress
from bitwright.recipe import Recipe, scheme_of
from bitwright.search.features import Features, Seen, measure

_SAMPLE_EXPERTS = 4  # of a block: errors of the others are alike


def measure_features(
    loaded: LoadedModel, sites: Sequence[LinearSite], recipe: Recipe, batches: Sequence[Mapping[str, Tensor]],
    progress: Progress,
) -> list[Features]:  # fmt: skip
    """The features of every unit of `sites`, from one pass over the batches in the memory of one block.

    Args:
        loaded: where the model lies; its own modules are neither used nor changed.
        recipe: says which scheme each linear gets, and SmoothQuant's exponent.
    """
    opened = loaded.reopen()
    model, wanted = opened.model, {site.name for site in sites}
    here = [site for site in find_linears(model, opened.architecture) if site.name in wanted]
    inputs = find_inputs(model, opened.architecture, here)
    found: list[Features] = []
    for stage in stream_lazily(opened, here, batches, fast=True):
        progress.say(f"analyzing block {stage.index}")
        stats = stage.observe(stage.sites, partial(observe, gram=True, fast=stage.fast))
        for unit in dict.fromkeys(site.unit for site in stage.sites):
            members = [site for site in stage.sites if site.unit == unit]
            seen = _seen(model, members, inputs, stats)
            n_weights = sum(weight_of(model.get_submodule(site.name)).numel() for site in members)
            scheme = scheme_of(recipe, members[0])[0]
            with named(unit), fast_matmul():
                found.append(measure(unit, members, scheme, n_weights, seen, alpha=recipe.options.alpha))
        if len(found) == len({site.unit for site in here}):
            break  # what this stage puts out is nobody's input
    return found


def _seen(
    model: nn.Module, sites: Sequence[LinearSite], inputs: Sequence[SharedInput], stats: Mapping[str, LayerStats]
) -> list[Seen]:
    """The inputs of a unit's linears; for experts, the inputs of a few that tokens reached, evenly spaced."""
    reads = {site.name: site.reads for site in sites}
    read: list[tuple[LayerStats, list[str], bool]] = []
    for shared in inputs:
        alike: dict[tuple[str, int], list[str]] = {}
        for name in shared.sites:
            if name in reads and name in stats:
                alike.setdefault(reads[name], []).append(name)
        read += [(stats[names[0]], names, shared.producer is not None) for names in alike.values()]
    step = max(1, len(read) // (2 * _SAMPLE_EXPERTS))  # an expert reads two tensors
    return [
        Seen(seen, [weight_of(model.get_submodule(name)) for name in readers], foldable)
        for seen, readers, foldable in read[::step]
    ]
