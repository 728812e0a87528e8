"""Features of a model, from a small calibration sample that goes once through it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from bitwright.calibration.observers import LayerStats, observe
from bitwright.calibration.stream import fast_matmul, stream_stages
from bitwright.errors import named
from bitwright.models.lazy import materialise, open_lazily, release
from bitwright.models.load import LoadedModel
from bitwright.models.rescale import SharedInput, find_inputs
from bitwright.models.sites import LinearSite, find_linears
from bitwright.progress import Progress
from bitwright.recipe import Recipe, scheme_of
from bitwright.search.features import Features, Seen, measure

_SAMPLE_EXPERTS = 4  # of a block: errors of the others are alike


def measure_features(
    loaded: LoadedModel, sites: Sequence[LinearSite], recipe: Recipe, batches: Sequence[Mapping[str, Tensor]],
    progress: Progress, *, trust_remote_code: bool = False,
) -> list[Features]:  # fmt: skip
    """The features of every unit of `sites`, from one pass over the batches in the memory of one block.

    Args:
        loaded: where the model lies; its own modules are neither used nor changed.
        recipe: says which scheme each linear gets, and SmoothQuant's exponent.
    """
    opened = open_lazily(loaded.path, trust_remote_code=trust_remote_code, task=loaded.task, tokenizes=False)
    model, wanted = opened.model, {site.name for site in sites}
    here = [site for site in find_linears(model, opened.architecture) if site.name in wanted]
    inputs = find_inputs(model, opened.architecture, here)
    found: list[Features] = []
    stages = stream_stages(
        model, opened.architecture, here, batches, fast=True,
        enter=partial(_each, materialise, opened), leave=partial(_each, release, opened),
    )  # fmt: skip
    for stage in stages:
        progress.say(f"looking at block {stage.index}")
        stats = stage.observe(stage.sites, partial(observe, gram=True, fast=stage.fast))
        for unit in dict.fromkeys(site.unit for site in stage.sites):
            members = [site for site in stage.sites if site.unit == unit]
            seen = _seen(model, [site.name for site in members], inputs, stats)
            n_weights = sum(_weight(model, site.name).numel() for site in members)
            scheme = scheme_of(recipe, members[0])[0]
            with named(unit), fast_matmul():
                found.append(measure(unit, members, scheme, n_weights, seen, alpha=recipe.options.alpha))
        if len(found) == len({site.unit for site in here}):
            break  # what this stage puts out is nobody's input
    return found


def _seen(
    model: nn.Module, names: Sequence[str], inputs: Sequence[SharedInput], stats: Mapping[str, LayerStats]
) -> list[Seen]:
    """The tensors that the linears of a unit read; of experts those of a few that tokens reached, evenly spaced."""
    read = []
    for shared in inputs:
        readers = [name for name in shared.sites if name in names and name in stats]
        for first in {id(stats[name]): name for name in readers}.values():
            alike = [name for name in readers if stats[name] is stats[first]]
            read.append((stats[first], alike, shared.producer is not None))
    step = max(1, len(read) // (2 * _SAMPLE_EXPERTS))  # an expert reads two tensors
    return [
        Seen(seen, [_weight(model, name) for name in readers], foldable) for seen, readers, foldable in read[::step]
    ]


def _each(act: Callable[[LoadedModel, str], None], opened: LoadedModel, paths: Sequence[str]) -> None:
    for path in paths:
        act(opened, path)


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach()
