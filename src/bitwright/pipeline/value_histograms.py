"""What rounding does to the values of each linear: histograms of its weights and inputs, before and after."""

import torch
from torch import Tensor

from bitwright.calibration.data import token_batches
from bitwright.calibration.stream import stream_stages
from bitwright.evaluate.distributions import linear_distributions
from bitwright.models.parameters import weight_of
from bitwright.numerics import RANGES
from bitwright.numerics.grids import fake_quantize
from bitwright.numerics.linear import QuantizedLinear
from bitwright.pipeline.job import Job
from bitwright.pipeline.scored import as_texts
from bitwright.pipeline.swapped import folded
from bitwright.quantizing.layers import Quantized
from bitwright.record import Distribution

_SAMPLE_ROWS = 512  # tokens per linear whose values the report's histograms show


def describe_distributions(job: Job, quantized: Quantized) -> tuple[Distribution, ...]:
    """The Record's histograms: weights and inputs of every quantized linear, before and after."""
    texts = as_texts(job.scored.probe[:32])
    batches = token_batches(job.model.tokenizer, texts, max_tokens=job.model.max_tokens, batch_size=8)
    layers = {name: layer.load() for name, layer in quantized.layers_for(job.plan).items()}
    sites = [site for site in job.opened.sites if site.name in layers]
    samples: dict[str, Tensor] = {}

    def keep(seen: Tensor | None, x_MK: Tensor) -> Tensor:
        return x_MK[:_SAMPLE_ROWS] if seen is None else torch.cat((seen, x_MK))[:_SAMPLE_ROWS]

    base = folded(job.opened.loaded.model, quantized)
    for stage in stream_stages(base, job.opened.loaded.architecture, sites, batches):
        samples |= stage.observe(stage.sites, keep)
    rows = []
    for site in sites:
        layer, x = layers[site.name], samples.get(site.name)
        weight = weight_of(base.get_submodule(site.name))
        if layer.transform is not None:
            weight, x = layer.transform.absorbed(weight), None if x is None else layer.transform.seen(x)
        inputs = None if x is None else (x, _rounded_inputs(x, layer))
        rows.append(linear_distributions(site.name, site.role, (weight, layer.weight.dequantize()), inputs))
    return tuple(rows)


def _rounded_inputs(x_MK: Tensor, layer: QuantizedLinear) -> Tensor:
    spec, static = layer.input_spec, layer.static
    if spec is None:
        return x_MK
    if static is None:
        return fake_quantize(x_MK, *RANGES["min_max"](x_MK, spec), spec)
    zero = None if spec.symmetric else torch.tensor([[static.zero_point]], dtype=torch.int8)
    return fake_quantize(x_MK, torch.tensor([[static.scale]]), zero, spec)
