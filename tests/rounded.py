"""Linears rounded to nearest codes, and checkpoints that are made of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.families import architecture_of
from bitwright.models.sites import find_linears
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import InputTransform, QuantizedLinear, ready
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec


def rounded_linears(
    model: nn.Module, family: str, scheme: str | Scheme = "w4a16_g32", *, transformed: bool = False
) -> dict[str, QuantizedLinear]:
    """Every linear but heads and routers; a scheme, or its name; `transformed` gives each an input transform that its
    weight has taken up.
    """
    layers = {}
    for site in find_linears(model, architecture_of(family)):
        if site.role not in ("head", "router"):
            linear = model.get_submodule(site.name)
            bias = None if linear.bias is None else linear.get_parameter("bias").detach()
            layers[site.name] = rounded(linear.get_parameter("weight").detach(), bias, scheme, transformed=transformed)
    return layers


def rounded(w_NK: Tensor, bias: Tensor | None, scheme: str | Scheme, *, transformed: bool = False) -> QuantizedLinear:
    """One linear."""
    scheme = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    assert isinstance(scheme.weight, QuantSpec)
    transform = InputTransform(torch.linspace(0.5, 2.0, w_NK.shape[1])) if transformed else None
    w_NK = w_NK if transform is None else transform.absorbed(w_NK)
    ends = torch.aminmax(grouped(w_NK, scheme.weight), dim=-1)
    qtensor = quantize(w_NK, *scale_and_zero_point(ends.min, ends.max, scheme.weight), scheme.weight)
    return QuantizedLinear(qtensor, None if bias is None else bias.float(), scheme.input, transform=transform)


def write_rounded(
    source: Path,
    out: Path,
    scheme: str,
    *,
    transformed: bool = False,
    half: tuple[str, ...] = (),
    tables: bool = False,
    heads: tuple[str, ...] = (),
) -> Any:
    """Write the checkpoint of a model directory, its linears rounded but for `half`, which stay in 16 bit, and `heads`
    rounded too. tables: whether its word table is int8.
    """
    from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
    from bitwright.files.directory import ModelDirectory
    from bitwright.models.load import load_model
    from bitwright.models.names import model_names

    loaded = load_model(source)
    names = model_names(loaded.model, loaded.architecture)
    layers = rounded_linears(loaded.model, loaded.config.model_type, scheme, transformed=transformed)
    for head in heads:
        linear = loaded.model.get_submodule(head)
        layers[head] = rounded(linear.weight.detach(), linear.bias, scheme, transformed=transformed)
    words = loaded.model.get_input_embeddings().weight.detach()
    spec = QuantSpec()
    ends = torch.aminmax(grouped(words, spec), dim=-1)
    codes = {names.embeddings[0]: quantize(words, *scale_and_zero_point(ends.min, ends.max, spec), spec)}
    kept = {name: ready(layer) for name, layer in layers.items() if name not in half}
    parts = QuantizedParts(kept, half=half, tables=codes if tables else {})
    return write_checkpoint(ModelDirectory(source), out, parts, names, model_card="card")
