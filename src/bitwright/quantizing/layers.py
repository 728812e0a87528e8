"""Quantizes the linears of a plan: block by block if a method needs the inputs, else tensor by tensor without running
the model.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitwright.calibration.stream import stream_lazily
from bitwright.errors import named
from bitwright.methods import METHODS, REPRODUCE, WEIGHTS_ALONE
from bitwright.methods.reproduce import reproduce
from bitwright.methods.rtn import rtn
from bitwright.models.heap import trim_heap
from bitwright.models.load import LoadedModel, release
from bitwright.models.rescale import find_inputs
from bitwright.models.sites import find_linears
from bitwright.numerics import RANGES, WEIGHT_RANGES
from bitwright.numerics.known_grid import is_reproducible
from bitwright.numerics.linear import LinearForm, PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec
from bitwright.plan import Plan, quantized_names
from bitwright.progress import Progress
from bitwright.quantizing.shards import Shards
from bitwright.quantizing.stages import quantize_stage
from bitwright.quantizing.work import LossWeights, StagePlan
from bitwright.recipe import AUTO, FLOAT, Recipe
from bitwright.record import LayerRow, PlanRow

_VALUES_AT_ONCE = 1 << 20  # of a weight, in float32 with what rounding makes of them
# What a killed run goes on from is as large as all hidden states. Keeping it takes at most this share of the time, or
# these seconds.
_SAVING, _QUICK_SAVE = 0.1, 0.1
_TOKENS_AT_ONCE = 2048  # of a batch: more make an FFN's activations larger than all else that a block needs


@dataclass(frozen=True, slots=True)
class Quantized:
    """The quantized linears of a model, each loaded when it is asked for.

    changed: float parameters that were changed by folding. biases: of quantized linears, by the linear's name; they
    belong to the quantized weight. account: the Record's rows of how each linear was quantized, and how well.
    tables: embedding tables as int8, a scale per row. finer: those of `layers` that have an 8-bit form to fall back to,
    in that form (`at_eight_bits`).
    """

    layers: Mapping[str, PendingLinear]
    changed: Mapping[str, Callable[[], Tensor]]
    biases: Mapping[str, Callable[[], Tensor]]
    account: Sequence[LayerRow]
    tables: Mapping[str, QTensor] = field(default_factory=dict)
    finer: Mapping[str, PendingLinear] = field(default_factory=dict)

    def layers_for(self, plan: Plan) -> dict[str, PendingLinear]:
        """The quantized linears of `plan`, each in the form of its scheme."""
        names = quantized_names(plan)
        return {row.name: self._as(row.name, SCHEMES[row.scheme]) for row in plan if row.name in names}

    def changed_for(self, plan: Plan) -> dict[str, Callable[[], Tensor]]:
        """Every float parameter that differs from the source after `plan` is carried out."""
        layers = self.layers_for(plan)
        folded = {name: load for name, load in self.changed.items() if name.removesuffix(".weight") not in layers}
        as_asked = {name for name, layer in layers.items() if layer is self.layers[name]}
        return folded | {f"{name}.bias": load for name, load in self.biases.items() if name in as_asked}

    def _as(self, name: str, scheme: Scheme) -> PendingLinear:
        """A linear in the form of a scheme."""
        forms = [layers[name] for layers in (self.layers, self.finer) if name in layers]
        found = [layer for layer in forms if (layer.form.weight, layer.form.input) == (scheme.weight, scheme.input)]
        assert found, f"{name} was not quantized as {scheme.name}"
        return found[0]


def needs_inputs(row: PlanRow, recipe: Recipe) -> bool:
    """Whether a row's method, range, options or scheme look at what enters the linear."""
    if not row.is_linear or SCHEMES[row.scheme].weight is None:
        return False
    if row.method == AUTO:
        return True
    scheme = SCHEMES[row.scheme]
    method = METHODS[row.method]
    static = scheme.input is not None and not scheme.input.dynamic
    weighed = (recipe.weight_range or method.range) in WEIGHT_RANGES or recipe.options.bias_correction
    return static or weighed or method.transform is not None or method.rounding not in WEIGHTS_ALONE


def quantize_linears(
    loaded: LoadedModel, plan: Plan, recipe: Recipe, batches: Sequence[Mapping[str, Tensor]], folder: Path | None,
    progress: Progress, loss_weights: LossWeights | None = None,
) -> Quantized:  # fmt: skip
    """Quantize every linear of `plan`.

    Args:
        loaded: where the model lies; its own modules are neither used nor changed.
        batches: calibration batches, if a row needs inputs.
        folder: keeps what is done, so that a stopped run goes on; needed if a row needs inputs.
        loss_weights: how much each token counts in a linear's outputs, by the number of a batch of `in_parts(batches)`.

    Raises:
        NumericsError: NaN or infinity in a weight or among the inputs; the message names the linear.
    """
    rows = {row.name: row for row in plan if row.name in quantized_names(plan)}
    if not any(needs_inputs(row, recipe) for row in rows.values()):
        return _tensor_by_tensor(loaded, rows, recipe)
    assert folder is not None
    return _block_by_block(loaded.reopen(), rows, recipe, batches, Shards(folder), progress, loss_weights)


def at_eight_bits(loaded: LoadedModel, quantized: Quantized, plan: Plan) -> dict[str, PendingLinear]:
    """Linears of `quantized` in the 8-bit schemes that `plan` has for them: their float weights, as folding left them,
    rounded to nearest when they are asked for. Beside them all others keep their codes.
    """
    return {
        row.name: _pending(row, partial(_rounded, row, RANGES["absmax"], loaded.source, quantized.changed))
        for row in plan
        if row.name in quantized.layers and row.scheme != FLOAT
    }


def _rounded(
    row: PlanRow, range_: RangeFunction, source: Mapping[str, Tensor], changed: Mapping[str, Callable[[], Tensor]]
) -> QuantizedLinear:
    """A linear of the source, or what folding `changed` it to, rounded to nearest, or reproduced."""
    scheme = SCHEMES[row.scheme]
    assert scheme.weight is not None

    def value(name: str) -> Tensor:
        return changed[name]() if name in changed else source[name]

    bias_name = f"{row.name}.bias"
    bias = value(bias_name).float() if bias_name in changed or bias_name in source else None
    with named(row.name):
        w_NK, spec = value(f"{row.name}.weight"), scheme.weight
        known = row.method == REPRODUCE and is_reproducible(spec)
        weight = reproduce(w_NK, None, spec, range_).qtensor if known else _nearest(w_NK, spec, range_)
        return QuantizedLinear(weight, bias, scheme.input)


def _tensor_by_tensor(loaded: LoadedModel, rows: Mapping[str, PlanRow], recipe: Recipe) -> Quantized:
    """Quantize tensor by tensor: each weight is read and rounded when it is asked for."""
    ranges = {
        name: recipe.options.range(recipe.weight_range or METHODS[row.method].range) for name, row in rows.items()
    }
    layers = {
        name: _pending(row, partial(_rounded, row, ranges[name], loaded.source, {})) for name, row in rows.items()
    }
    account = [
        LayerRow(row.name, row.block, row.role, row.unit, scheme=row.scheme, method=row.method) for row in rows.values()
    ]
    return Quantized(layers, {}, {}, account)


def _nearest(w_NK: Tensor, spec: QuantSpec, range_function: RangeFunction) -> QTensor:
    """A weight rounded to nearest: some rows at a time, where they have scales and levels of their own, so that only
    the codes are ever there whole."""
    at_once = len(w_NK) if spec.per_tensor or spec.grid == "kmeans" else max(1, _VALUES_AT_ONCE // w_NK.shape[1])
    parts = [rtn(rows.float(), None, spec, range_function).qtensor for rows in torch.split(w_NK, at_once)]
    zeros = [part.zero_point_NG for part in parts if part.zero_point_NG is not None]
    return QTensor(
        torch.cat([part.codes_NK for part in parts]),
        torch.cat([part.scale_NG for part in parts]),
        torch.cat(zeros) if zeros else None,
        spec,
        parts[0].codebook,
    )


def _block_by_block(
    opened: LoadedModel, rows: Mapping[str, PlanRow], recipe: Recipe, batches: Sequence[Mapping[str, Tensor]],
    shards: Shards, progress: Progress, loss_weights: LossWeights | None,
) -> Quantized:  # fmt: skip
    model, architecture = opened.model, opened.architecture
    sites = [site for site in find_linears(model, architecture) if site.name in rows]
    plan = StagePlan(rows, find_inputs(model, architecture, sites), recipe, loss_weights)
    heads = [site.name for site in find_linears(model, architecture) if site.block is None]
    if not any(name in rows for name in heads):
        for name in heads:  # never run: a language model's is as large as several blocks
            release(opened, name)
    batches = in_parts(batches)
    resume = shards.resume()
    begin = resume[0]
    if begin:
        progress.say(f"continuing with block {begin}, because an earlier run finished the blocks before it")
    originals = recipe.options.mismatch > 0 and any(map(plan.is_gptq, rows))
    stages = stream_lazily(opened, sites, batches, resume=resume, fast=True, originals=originals)
    count, kept, cost = begin, time.monotonic(), 0.0
    for stage in stages:
        if stage.index > begin and cost <= max(_SAVING * (time.monotonic() - kept), _QUICK_SAVE):
            started = time.monotonic()
            shards.save_inputs(stage.index, [*stage.inputs, *stage.originals])
            kept = time.monotonic()
            cost = kept - started
        trim_heap()
        progress.say(f"quantizing block {stage.index}")
        shards.write(stage.index, quantize_stage(model, stage, plan))
        trim_heap()
        count = stage.index + 1
        if not stage.blocks:
            break
        done = max(stage.blocks)
        if not any(site.block is None or site.block > done for site in sites):
            break  # what this stage puts out is nobody's input
    shards.index(count)
    return Quantized(
        {name: _from_shard(shards, row) for name, row in rows.items()},
        {name: partial(shards.changed, name) for name in shards.changed_names()},
        {name: partial(shards.bias, name) for name in rows if shards.is_rebiased(name)},
        shards.account(count),
    )


def in_parts(batches: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Batches in parts that run at once."""
    return [part for batch in batches for part in _split(batch)]


def _split(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of no more than `_TOKENS_AT_ONCE`, or of one sequence if that is longer."""
    sequences, tokens = next(iter(batch.values())).shape
    at_once = max(1, _TOKENS_AT_ONCE // tokens)
    for start in range(0, sequences, at_once):
        yield {name: values[start : start + at_once] for name, values in batch.items()}


def _from_shard(shards: Shards, row: PlanRow) -> PendingLinear:
    has_scale, has_shift = (shards.has_part(row.name, part) for part in ("input_scale_K", "input_shift_K"))
    load = partial(shards.layer, row.name, SCHEMES[row.scheme])
    return _pending(row, load, scales_input=has_scale, shifts_input=has_shift)


def _pending(
    row: PlanRow, load: Callable[[], QuantizedLinear], *, scales_input: bool = False, shifts_input: bool = False
) -> PendingLinear:
    scheme = SCHEMES[row.scheme]
    assert scheme.weight is not None
    return PendingLinear(row.shape, LinearForm(scheme.weight, scheme.input, scales_input, shifts_input), load)
