"""Observes what enters the linears of a stage, and lends statistics to experts that saw too few tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce

from torch import Tensor

from bitwright.calibration.observers import LayerStats, merge, observe, observe_beside, rescaled
from bitwright.calibration.stream import Stage
from bitwright.errors import named
from bitwright.methods.loss_weighted import observe_weighted
from bitwright.models.rescale import SharedInput
from bitwright.models.sites import LinearSite
from bitwright.numerics.linear import InputTransform
from bitwright.quantizing.work import Weights, Work

_FEWEST_TOKENS = 32  # an expert that saw fewer is starved: its own statistics say little


def observe_inputs(work: Work, inputs: Sequence[SharedInput]) -> None:
    """Statistics of what these inputs' linears read, as their transformed selves will see it. Mutates `work`.

    Raises:
        NumericsError: NaN or infinity among the inputs; the message names the block.
    """
    wanted = {name for shared in inputs for name in work.chosen(shared)}
    sites = [site for site in work.sites if site.name in wanted]
    with _named_stage(work.stage):
        needs_histogram = work.needs_histogram(wanted)
        see, beside = partial(observe, gram=True, histogram=needs_histogram, fast=work.stage.fast), None
        if work.stage.originals:
            see = partial(observe_beside, histogram=needs_histogram, fast=work.stage.fast)
            beside = partial(_original_inputs, work, sites)
        found = work.stage.observe(sites, see, beside)
    for site in sites:
        seen = found[site.name].n_tokens if site.name in found else 0
        work.notes[site.name] = work.notes.get(site.name, {}) | {"n_tokens": seen}
    work.stats.drop(wanted)
    for names in _that_read_the_same([site for site in sites if site.name in found]):
        work.stats.put(names, found[names[0]])
    for shared in inputs:
        if names := [name for name in shared.sites if name in found and name in work.applied]:
            rescale(work, names, work.applied[names[0]])
    _lend_to_starved(work, inputs)


def observe_weighted_inputs(work: Work, names: Sequence[str]) -> None:
    """Statistics of what these linears read, weighted by the loss, where weights are known. Mutates `work`."""
    if (weights := work.plan.loss_weights) is None:
        return
    sites = [
        replace(site, input=site.name)  # the weights of linears that read the same differ
        for site in work.sites
        if site.name in names and site.is_whole and work.plan.is_gptq(site.name)
    ]
    if not sites:
        return
    with _named_stage(work.stage):
        found = work.stage.observe(sites, partial(observe_weighted, fast=work.stage.fast), weights)
    for name, groups in found.items():
        transform = work.applied.get(name)
        work.weighted[name] = groups if transform is None else tuple(rescaled(stats, transform) for stats in groups)


def rescale(work: Work, names: Sequence[str], transform: InputTransform) -> None:
    """Bring the statistics of linears that read one input to its transform. Mutates `work`."""
    work.stats.replace(names, lambda stats: rescaled(stats, transform))


def see_histograms(work: Work, names: Sequence[str]) -> None:
    """The histograms of a transformed input, which do not follow from those of the input as it was. A starved expert
    gets that of all experts. Mutates `work`."""
    lost = [name for name in names if (stats := work.stats.get(name)) is not None and stats.histogram is None]
    if not lost or not work.needs_histogram(lost):
        return
    sites = [site for site in work.sites if site.name in lost]
    found = work.stage.observe(sites, partial(_observe_transformed, applied=work.applied.get(lost[0])))
    leaders = [alike[0] for alike in _that_read_the_same([site for site in sites if site.name in found])]
    every = reduce(merge, (found[name] for name in leaders)).histogram
    for name in lost:
        seen = every if "starved" in work.notes[name] else found[name].histogram
        assert seen is not None
        work.histograms[name] = seen


def _original_inputs(work: Work, sites: Sequence[LinearSite], index: int) -> dict[str, Tensor]:
    """What linears read of one batch in the float model, while the stage computes as that does."""
    with _with_weights(work, work.originals):
        return work.stage.original_inputs(sites, index)


@contextmanager
def _with_weights(work: Work, weights: Weights) -> Iterator[None]:
    """The stage with these weights and biases, by linear, until the end of the block."""
    before = work.weights(weights)
    try:
        work.put(weights)
        yield
    finally:
        work.put(before)


def _that_read_the_same(sites: Sequence[LinearSite]) -> list[list[str]]:
    """Names of linears by the tensor that they read."""
    groups: dict[tuple[str, int], list[str]] = {}
    for site in sites:
        groups.setdefault(site.reads, []).append(site.name)
    return list(groups.values())


def _lend_to_starved(work: Work, inputs: Sequence[SharedInput]) -> None:
    """Give experts that saw too few tokens the statistics of all experts that read the same input; where there are
    none (an expert's second linear), it will be rounded to nearest. Both are noted.
    """
    experts = {site.name for site in work.sites if site.role == "expert"}
    for shared in inputs:
        names = [name for name in shared.sites if name in experts]
        starved = [name for name in names if work.notes[name]["n_tokens"] < _FEWEST_TOKENS]
        if not starved:
            continue
        fed = work.stats.distinct(name for name in names if name not in starved)
        if fed:
            work.stats.put(starved, reduce(merge, fed))
        else:
            work.stats.drop(starved)
        for name in starved:
            policy, seen = "lent" if fed else "rtn", work.notes[name]["n_tokens"]
            work.notes[name]["starved"] = {"n_tokens": seen, "fewest": _FEWEST_TOKENS, "policy": policy}


def _observe_transformed(stats: LayerStats | None, x_MK: Tensor, *, applied: InputTransform | None) -> LayerStats:
    return observe(stats, x_MK if applied is None else applied.seen(x_MK))


@contextmanager
def _named_stage(stage: Stage) -> Iterator[None]:
    with named(f"block {', '.join(map(str, stage.blocks))}" if stage.blocks else "heads"):
        yield
