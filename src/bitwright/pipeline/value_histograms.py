"""Histograms of each linear's weights and inputs before and after rounding."""

import torch
from torch import Tensor

from bitwright.calibration.data import token_batches
from bitwright.calibration.stream import stream_lazily
from bitwright.evaluate.distributions import linear_distributions
from bitwright.models.heap import trim_heap
from bitwright.models.load import lent
from bitwright.models.parameters import weight_of
from bitwright.models.sites import LinearSite
from bitwright.numerics import RANGES
from bitwright.numerics.grids import fake_quantize
from bitwright.numerics.linear import QuantizedLinear
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import as_texts
from bitwright.pipeline.swapped import fold_in
from bitwright.quantizing.layers import Quantized
from bitwright.record import Distribution

_BATCH = 2  # texts: what a forward holds grows with it
_SAMPLE_ROWS = 512  # tokens per linear whose values the report's histograms show


def describe_distributions(job: Job, quantized: Quantized) -> tuple[Distribution, ...]:
    """The Record's histograms: weights and inputs of every quantized linear, before and after rounding."""
    texts = as_texts(job.scored.probe[:32])
    batches = token_batches(job.model.tokenizer, texts, max_tokens=job.model.max_tokens, batch_size=_BATCH)
    layers = quantized.layers_for(job.plan)
    sites = [site for site in job.opened.sites if site.name in layers]
    found: dict[str, Distribution] = {}

    def keep(seen: Tensor | None, x_MK: Tensor) -> Tensor:
        if seen is None:
            return x_MK[:_SAMPLE_ROWS].clone()  # no view, which would keep all rows
        return torch.cat((seen, x_MK[: _SAMPLE_ROWS - len(seen)]))

    with lent(job.opened.loaded) as opened:
        for stage in stream_lazily(opened, sites, batches):
            fold_in(opened.model, quantized.changed)
            samples = stage.observe(stage.sites, keep)
            for site in stage.sites:
                weight = weight_of(opened.model.get_submodule(site.name))
                layer = layers[site.name].load()
                found[site.name] = _distribution(site, weight, layer, samples.get(site.name))
            if len(found) == len(sites):
                break  # what this stage puts out is nobody's input
    trim_heap()
    return tuple(found[site.name] for site in sites)


def _distribution(site: LinearSite, weight: Tensor, layer: QuantizedLinear, x_MK: Tensor | None) -> Distribution:
    if layer.transform is not None:
        weight, x_MK = layer.transform.absorbed(weight), None if x_MK is None else layer.transform.seen(x_MK)
    inputs = None if x_MK is None else (x_MK, _rounded_inputs(x_MK, layer))
    return linear_distributions(site.name, site.role, (weight, layer.weight.dequantize()), inputs)


def _rounded_inputs(x_MK: Tensor, layer: QuantizedLinear) -> Tensor:
    spec, static = layer.input_spec, layer.static
    if spec is None:
        return x_MK
    if static is None:
        return fake_quantize(x_MK, *RANGES["min_max"](x_MK, spec), spec)
    zero = None if spec.symmetric else torch.tensor([[static.zero_point]], dtype=torch.int8)
    return fake_quantize(x_MK, torch.tensor([[static.scale]]), zero, spec)
