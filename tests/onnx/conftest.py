"""Quantized checkpoints of tiny encoders, their weights rounded to nearest: nothing is calibrated or judged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.files.directory import ModelDirectory
from bitwright.models.load import load_model
from bitwright.models.names import model_names
from bitwright.models.sites import find_linears
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid, ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES, fit_group
from bitwright.numerics.spec import QuantSpec

Made = Callable[..., Path]


def codes_of(w_NK: Tensor, spec: QuantSpec) -> QTensor:
    """The nearest codes on a grid that spans each group."""
    ends = torch.aminmax(grouped(w_NK, spec), dim=-1)
    return quantize(w_NK, *scale_and_zero_point(ends.min, ends.max, spec), spec)


@pytest.fixture(scope="session")
def quantized(tiny_model: Callable[..., Path], once: Callable[..., Path]) -> Made:
    """`quantized(family, scheme, task, transformed=…, **config)`: directory of a quantized tiny encoder, written once.

    Static inputs get the range that they have on random ids. transformed: each linear of a block gets an input
    transform, scale and shift, that its weight and bias have taken up. tables: embeddings are in 8 bits.
    """

    def make(
        family: str = "bert", scheme: str = "w8a8", task: str | None = None, *, transformed: bool = False,
        tables: bool = False, **config: Any,
    ) -> Path:  # fmt: skip
        source = tiny_model(family, task, **config)
        key = ("onnx", family, scheme, task, transformed, tables, sorted(config.items()))
        return once(key, lambda out: _write(source, out, scheme, transformed=transformed, tables=tables))

    return make


def _write(source: Path, out: Path, scheme: str, *, transformed: bool, tables: bool) -> None:
    loaded = load_model(source)
    model, architecture = loaded.model, loaded.architecture
    names = model_names(model, architecture)
    sites = [site.name for site in find_linears(model, architecture) if site.role not in ("head", "router")]
    ranges = _input_ranges(model, sites)
    layers = {name: _layer(model.get_submodule(name), scheme, ends, transformed) for name, ends in ranges.items()}
    words = {
        name: codes_of(model.get_submodule(name).weight.detach(), QuantSpec()) for name in names.embeddings * tables
    }
    parts = QuantizedParts({name: ready(layer) for name, layer in layers.items()}, tables=words)
    write_checkpoint(ModelDirectory(source), out, parts, names, model_card="card")


def _input_ranges(model: nn.Module, sites: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest of each input, (K,) each, on random ids; of linears that run."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().reshape(-1, given[0].shape[-1])
            found[name] = (rows.amin(0), rows.amax(0))

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in sites]
    ids = torch.randint(5, 200, (16, 32), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    return found


def _layer(linear: Any, scheme: str, ends: tuple[Tensor, Tensor], transformed: bool) -> QuantizedLinear:
    w_NK, bias_N = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
    k = w_NK.shape[1]
    weight, inputs = fit_group(SCHEMES[scheme], k)[0].weight, SCHEMES[scheme].input
    transform = None
    if transformed:
        shift = None if bias_N is None else torch.linspace(-0.2, 0.2, k)
        transform = InputTransform(torch.linspace(0.5, 2.0, k), shift)
        bias_N = None if bias_N is None else transform.absorbed_bias(w_NK, bias_N)
        w_NK = transform.absorbed(w_NK)
        ends = (transform.seen(ends[0]), transform.seen(ends[1]))
    static = None
    if inputs is not None and not inputs.dynamic:
        scale, zero = scale_and_zero_point(ends[0].min().view(1, 1), ends[1].max().view(1, 1), inputs)
        static = StaticGrid(float(scale), 0 if zero is None else int(zero))
    assert weight is not None
    return QuantizedLinear(codes_of(w_NK, weight), bias_N, inputs, static, transform)
