"""Quantizing one stage of a model: observe, transform, round, account, leave the rounded weights in place.

A stage is a block, or several that must be observed together. Its linears come in sets that read the same input: a
transform is chosen for such a set, a rounding for each linear.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.calibration.observers import LayerStats, merge, observe, rescaled
from bitwright.calibration.stream import Stage
from bitwright.checkpoints.stored import StoredLinear
from bitwright.errors import NumericsError, named
from bitwright.evaluate.output_errors import output_errors
from bitwright.methods import METHODS, Rounded, Transformed, rounding_of, transform_of
from bitwright.methods.rows import round_together
from bitwright.methods.rtn import rtn
from bitwright.methods.scaling import input_error
from bitwright.models.rescale import SharedInput, fold, legal_scale, scale_readers
from bitwright.models.sites import LinearSite
from bitwright.numerics import RANGES, WEIGHT_RANGES
from bitwright.numerics.grids import scale_and_zero_point
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import SCHEMES, QuantSpec, Scheme
from bitwright.plan import PlanRow
from bitwright.quantizing.block_outputs import distance, mean_squared_error, rounded_to_nearest
from bitwright.quantizing.shards import Made
from bitwright.recipe import Recipe

_COMPARED_BATCHES = 1  # whose block outputs are compared, before and after
_FEWEST_TOKENS = 32  # an expert that saw fewer is starved: its own statistics say little
_EXACT_RANGES = ("absmax", "min_max")  # static input ranges that follow from each feature's extremes


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done with a stage.

    rows: the plan's rows of the linears to quantize, by name. inputs: the sets that read one input, in forward order.
    half: what "16 bit" is for this model.
    """

    rows: Mapping[str, PlanRow]
    inputs: Sequence[SharedInput]
    recipe: Recipe
    half: torch.dtype


@dataclass(slots=True)
class _Work:
    """A stage under way. stats: of every linear's input, transformed. applied: transforms that did not fold.
    histograms: of transformed inputs, where a static range needs them."""

    model: nn.Module
    stage: Stage
    task: Task
    sites: list[LinearSite]
    stats: dict[str, LayerStats] = field(default_factory=dict)
    applied: dict[str, Transformed] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def scheme(self, name: str) -> Scheme:
        return SCHEMES[self.task.rows[name].scheme]

    def linear(self, name: str) -> nn.Linear:
        module = self.model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module


def quantize_stage(model: nn.Module, stage: Stage, task: Task) -> Made:
    """Quantize the linears of a stage. Mutates `model`: afterwards it computes with the rounded weights.

    Raises:
        NumericsError: NaN or infinity in a weight or among the inputs; the message names the linear.
    """
    work = _Work(model, stage, task, [site for site in stage.sites if site.name in task.rows])
    if not work.sites:
        return Made({}, {}, {}, [])
    here = {site.name for site in work.sites}
    inputs = [shared for shared in task.inputs if here.intersection(shared.sites)]
    sample = range(min(_COMPARED_BATCHES, len(stage.inputs)))
    before = stage.outputs(sample)
    _observe(work, work.sites)
    _lend_to_starved(work, inputs)
    for site in work.sites:
        work.notes[site.name] |= {"error_rtn": _rtn_error(work, site.name)}
    for shared in inputs:
        _transform(work, shared, sample, before)
    float_weights = {name: _kept(work, name) for name in work.changed}
    layers: dict[str, StoredLinear] = {}
    biases: dict[str, Tensor] = {}
    for number, shared in enumerate(inputs):
        if task.recipe.options.sequential and number:
            _observe(work, [site for site in work.sites if site.name in shared.sites])
            _lend_to_starved(work, [shared])
        _round(work, shared, layers, biases)
    moved = distance(before, stage.outputs(sample))
    account = [_account_row(work, site, moved) for site in work.sites]
    return Made(layers, float_weights, biases, account)


def _observe(work: _Work, sites: Sequence[LinearSite]) -> None:
    """Statistics of what enters these linears, as their transformed selves will see it."""
    needs_histogram = _needs_histogram(work, [site.name for site in sites])
    with _named_stage(work.stage):
        see = partial(observe, gram=True, histogram=needs_histogram, fast=work.stage.fast)
        found = work.stage.observe(sites, see)
    for site in sites:
        seen = found[site.name].n_tokens if site.name in found else 0
        work.notes[site.name] = work.notes.get(site.name, {}) | {"n_tokens": seen}
        work.stats.pop(site.name, None)
    work.stats |= found
    for transformed, names in _by_transform(work.applied, found):
        _rescale(work, names, transformed)


def _by_transform(applied: Mapping[str, Transformed], names: Iterable[str]) -> list[tuple[Transformed, list[str]]]:
    """These linears by the transform at their input, but those without one."""
    groups: dict[int, tuple[Transformed, list[str]]] = {}
    for name in names:
        if name in applied:
            groups.setdefault(id(applied[name]), (applied[name], []))[1].append(name)
    return list(groups.values())


def _rescale(work: _Work, names: Iterable[str], transformed: Transformed) -> None:
    """Bring the statistics of linears to their transformed input. Those that share statistics go on sharing them."""
    done: dict[int, LayerStats] = {}
    for name in names:
        stats = work.stats[name]
        if id(stats) not in done:
            done[id(stats)] = rescaled(stats, transformed.scale_K, transformed.shift_K)
        work.stats[name] = done[id(stats)]


def _lend_to_starved(work: _Work, inputs: Sequence[SharedInput]) -> None:
    """Give experts that saw too few tokens the statistics of all experts that read the same input; where there are
    none (an expert's second linear), it will be rounded to nearest. Both are noted.
    """
    experts = {site.name for site in work.sites if site.role == "expert"}
    for shared in inputs:
        names = [name for name in shared.sites if name in experts]
        starved = [name for name in names if work.notes[name]["n_tokens"] < _FEWEST_TOKENS]
        fed = [work.stats[name] for name in names if name not in starved]
        if not starved:
            continue
        lent = reduce(merge, {id(stats): stats for stats in fed}.values()) if fed else None
        for name in starved:
            saw = f"saw {work.notes[name]['n_tokens']} calibration tokens, fewer than {_FEWEST_TOKENS}"
            if lent is not None:
                work.stats[name] = lent
                work.notes[name]["starved"] = f"{saw}: uses what all experts of the block saw"
            else:
                work.stats.pop(name, None)
                work.notes[name]["starved"] = f"{saw}: rounded to nearest"


def _transform(work: _Work, shared: SharedInput, sample: Sequence[int], before: Sequence[Any]) -> None:
    """Choose the transform of one input, and apply it: folded where that is exact, else kept for the input."""
    names = [name for name in shared.sites if name in work.task.rows]
    rows = [work.task.rows[name] for name in names]
    row = next((row for row in rows if METHODS[row.method].transform is not None), None)
    known = [name for name in names if name in work.stats]
    if row is None or not known:
        return
    stats = work.stats[known[0]]
    for other in {id(work.stats[name]): work.stats[name] for name in known[1:]}.values():
        stats = stats if other is stats else merge(stats, other)
    weights = [_float_weight(work.model, reader) for reader in shared.readers]
    scheme = SCHEMES[row.scheme]
    error = partial(_block_error, work, shared, names, scheme, stats, sample, before)
    alpha = work.task.recipe.options.alpha
    choose = transform_of(row.method, alpha=alpha, shiftable=shared.shiftable)
    assert choose is not None
    by_block = METHODS[row.method].transform != "awq"  # AWQ's own estimate, from the Gram matrix, needs no forward
    transformed = choose(weights, stats, scheme, error if by_block and alpha == "search" else None)
    if transformed is None:
        work.notes[names[0]]["transform"] = "none: no candidate is better"
        return
    transformed = replace(transformed, scale_K=legal_scale(shared, transformed.scale_K))
    scale, shift = transformed.scale_K, transformed.shift_K
    if shared.producer is not None:
        for name in fold(work.model, shared, scale, shift):
            work.changed[name] = scale  # its value is taken once all transforms are in
    else:
        scale_readers(work.model, shared, scale, shift)
        work.applied |= dict.fromkeys(names, transformed)
    _rescale(work, known, transformed)
    where = "folded" if shared.producer is not None else "at the input"
    for name in names:
        work.notes[name] |= {"transform": where} | {
            f"transform_{key}": value for key, value in transformed.notes.items()
        }


def _round(work: _Work, shared: SharedInput, layers: dict[str, StoredLinear], biases: dict[str, Tensor]) -> None:
    """Round the linears that read one input; those with the same statistics and spec as one matrix."""
    names = [name for name in shared.sites if name in work.task.rows]
    _see_histograms(work, names)
    together: dict[tuple[int, str, str], list[str]] = {}
    for name in names:
        row = work.task.rows[name]
        together.setdefault((id(work.stats.get(name)), row.scheme, row.method), []).append(name)
    for group in together.values():
        scheme, stats = work.scheme(group[0]), work.stats.get(group[0])
        assert scheme.weight is not None
        for name, rounded in zip(group, _rounded(work, group, stats, scheme.weight), strict=True):
            work.notes[name] |= rounded.notes
            work.notes[name] |= output_errors(work.linear(name).weight.detach(), rounded.qtensor.dequantize(), stats)
            if scheme.input is not None and stats is not None:
                work.notes[name] |= {"error_input": input_error(work.linear(name).weight.detach(), stats, scheme.input)}
            grid = _input_grid(work, name, scheme)
            layers[name] = _stored(work, name, rounded.qtensor, scheme, grid)
            bias = _new_bias(work, name, rounded)
            if bias is not None:
                biases[name] = bias
            _put_in_place(work, name, rounded.qtensor, bias)


def _rounded(work: _Work, names: Sequence[str], stats: LayerStats | None, spec: QuantSpec) -> list[Rounded]:
    """The rounded weights of linears that share their statistics."""
    row, recipe = work.task.rows[names[0]], work.task.recipe
    range_ = recipe.weight_range or METHODS[row.method].range
    if stats is None and range_ in WEIGHT_RANGES:
        range_ = "mse"
    has_bias = all(work.linear(name).bias is not None for name in names)
    options = recipe.options
    rounding = rtn if stats is None else rounding_of(
        row.method, act_order=options.act_order, damping=options.damping,
        bias_correction=options.bias_correction and has_bias,
    )  # fmt: skip
    weights = [work.linear(name).weight.detach().float() for name in names]
    with named(", ".join(names)):
        return round_together(rounding, weights, stats, spec, RANGES[range_])


def _stored(
    work: _Work, name: str, weight: QTensor, scheme: Scheme, grid: tuple[Tensor, Tensor | None] | None
) -> StoredLinear:
    applied = work.applied.get(name)
    scale, zero = (None, None) if grid is None else grid
    return StoredLinear(
        weight,
        scheme.input,
        None if scale is None else scale.float().reshape(1),
        None if zero is None else zero.reshape(1),
        None if applied is None else applied.scale_K.float(),
        None if applied is None or applied.shift_K is None else applied.shift_K.float(),
    )


def _input_grid(work: _Work, name: str, scheme: Scheme) -> tuple[Tensor, Tensor | None] | None:
    """Scale and zero point of a static input."""
    spec = scheme.input
    if spec is None or spec.dynamic:
        return None
    stats = work.stats.get(name)
    if stats is None:
        seen = work.notes[name]["n_tokens"]
        raise NumericsError(
            f"{name}: {seen} calibration tokens reached it, too few for a static range; calibrate on more, or use a "
            "dynamic scheme"
        )
    range_ = work.task.recipe.range
    if range_ in _EXACT_RANGES:
        lo, hi = stats.min_K.min().reshape(1, 1), stats.max_K.max().reshape(1, 1)
        reach = torch.maximum(-lo, hi)
        return scale_and_zero_point(*((-reach, reach) if range_ == "absmax" else (lo, hi)), spec)
    histogram = work.histograms.get(name, stats.histogram)
    assert histogram is not None
    return RANGES[range_](histogram, spec)


def _see_histograms(work: _Work, names: Sequence[str]) -> None:
    """The histograms of a transformed input, which do not follow from those of the input as it was. A starved expert
    gets that of all experts."""
    lost = [name for name in names if name in work.stats and work.stats[name].histogram is None]
    if not lost or not _needs_histogram(work, lost):
        return
    sites = [site for site in work.sites if site.name in lost]
    found = work.stage.observe(sites, partial(_observe_transformed, applied=work.applied.get(lost[0])))
    every = reduce(merge, {id(stats): stats for stats in found.values()}.values()).histogram
    for name in lost:
        seen = every if "starved" in work.notes[name] else found[name].histogram
        assert seen is not None
        work.histograms[name] = seen


def _needs_histogram(work: _Work, names: Iterable[str]) -> bool:
    """Whether a range of these linears' inputs is static and follows from more than extremes."""
    specs = [work.scheme(name).input for name in names]
    return work.task.recipe.range not in _EXACT_RANGES and any(spec and not spec.dynamic for spec in specs)


def _observe_transformed(stats: LayerStats | None, x_MK: Tensor, *, applied: Transformed | None) -> LayerStats:
    if applied is not None:
        shift = 0 if applied.shift_K is None else applied.shift_K
        x_MK = (x_MK - shift) / applied.scale_K
    return observe(stats, x_MK)


def _new_bias(work: _Work, name: str, rounded: Rounded) -> Tensor | None:
    """The bias that belongs to the rounded weight, if it is another than the model's: float32 (N,)."""
    bias, applied = work.linear(name).bias, work.applied.get(name)
    shifted = applied is not None and applied.shift_K is not None
    if rounded.bias_N is None and not shifted:
        return None
    now = torch.zeros(work.linear(name).out_features) if bias is None else bias.detach().float().clone()
    return now if rounded.bias_N is None else now + rounded.bias_N


def _put_in_place(work: _Work, name: str, weight: QTensor, bias: Tensor | None) -> None:
    """Let the float linear compute what the quantized one will, but for the rounding of its input."""
    linear, applied = work.linear(name), work.applied.get(name)
    w_NK = weight.dequantize()
    if applied is not None:
        w_NK /= applied.scale_K
        if applied.shift_K is not None:
            assert bias is not None
            bias = bias - w_NK @ applied.shift_K
    with torch.no_grad():
        linear.weight.copy_(w_NK)
        if bias is not None:
            linear.bias.copy_(bias)


def _block_error(
    work: _Work, shared: SharedInput, names: Sequence[str], scheme: Scheme, stats: LayerStats, sample: Sequence[int],
    before: Sequence[Any], candidate: Transformed | None,
) -> float:  # fmt: skip
    """Mean squared error of the block's output when the linears of one input are quantized with a transform."""
    if candidate is None:
        candidate = Transformed(torch.ones_like(stats.min_K))
    candidate = replace(candidate, scale_K=legal_scale(shared, candidate.scale_K))
    with rounded_to_nearest(work.model, names, scheme, stats, candidate):
        return mean_squared_error(before, work.stage.outputs(sample))


def _rtn_error(work: _Work, name: str) -> float | None:
    """Relative output error that rounding to nearest would leave."""
    spec, stats = work.scheme(name).weight, work.stats.get(name)
    weight = work.linear(name).weight.detach().float()
    assert spec is not None
    with named(name):
        rounded = rtn(weight, None, spec, RANGES["min_max"]).qtensor.dequantize()
    return float(output_errors(weight, rounded, stats)["error"])


def _account_row(work: _Work, site: LinearSite, distance: float) -> dict[str, Any]:
    row = work.task.rows[site.name]
    facts = {"name": site.name, "block": site.block, "role": site.role, "unit": site.unit, "block_emd": distance}
    return facts | {"scheme": row.scheme, "method": row.method} | work.notes[site.name]


def _kept(work: _Work, name: str) -> Tensor:
    """A changed parameter as a checkpoint keeps it if it stays float: matrices of linears in 16 bit, the rest as is."""
    value = work.model.get_parameter(name).detach()
    quantized = name.removesuffix(".weight") in work.task.rows
    return value.to(work.task.half) if quantized and value.ndim == 2 else value.clone()


def _float_weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight.detach().float()


@contextmanager
def _named_stage(stage: Stage) -> Iterator[None]:
    with named(f"block {', '.join(map(str, stage.blocks))}" if stage.blocks else "heads"):
        yield
