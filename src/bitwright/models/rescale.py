"""Scales the inputs of linears without changing the model's outputs.

With x̂ = (x − z) / s per feature:  W x + b = (W · diag(s)) x̂ + (b + W z).  `fold` has the module that makes x make x̂
instead (SmoothQuant, https://arxiv.org/abs/2211.10438, section 4; the shift z: Outlier Suppression+,
https://arxiv.org/abs/2304.09145, section 4.1; values and gated units: AWQ, https://arxiv.org/abs/2306.00978); where
none can, `scale_readers` changes the readers alone, and x̂ is computed where x is quantized.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import ModelError, NumericsError
from bitwright.families import Architecture
from bitwright.families.row import Input
from bitwright.models.sites import LinearSite, block_linears, find_blocks
from bitwright.numerics.linear import InputTransform

_NORMS = ("norm", "norm_plus_1")  # alone add a bias last, which takes a shift


@dataclass(frozen=True, slots=True)
class Producer:
    """The module that makes a tensor, and which of its outputs is which feature.

    name: in the model. Feature (g · repeats + r) · size + d of the K is made by row first + g · stride + d, g < heads,
    r < repeats, d < size: query heads that share a head of values repeat it. offset: a norm multiplies by
    offset + weight.
    """

    name: str
    first: int
    heads: int
    stride: int
    repeats: int
    size: int
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class SharedInput:
    """One tensor of one model, the linears that read it, and the module that makes it.

    unit: its name, unlike any other's: that of the readers' unit if they have one in common, a router's block and
    "router" for what router and experts read, else the reader. readers: names of all modules that read it; the first
    sees every token. sites: the quantizable ones among them. producer: None where no fold is exact. shiftable: whether
    there are biases to take a shift.
    """

    unit: str
    block: int | None
    readers: tuple[str, ...]
    sites: tuple[str, ...]
    producer: Producer | None
    shiftable: bool


def find_inputs(model: nn.Module, architecture: Architecture, sites: Sequence[LinearSite]) -> list[SharedInput]:
    """The tensors that `sites` read, in forward order. Weights are not looked at and may be on the meta device.

    Raises:
        ModelError: a producer that the row names is not in the model.
    """
    modules = dict(model.named_modules())
    wanted = {site.name: order for order, site in enumerate(sites)}
    found: list[SharedInput] = []
    for index, (block, _) in enumerate(find_blocks(model, architecture)):
        linears = block_linears(modules, block, architecture)
        for unit, readers, entry in _tensors(block, linears, architecture):
            chosen = tuple(reader for reader in readers if reader in wanted)
            if chosen:
                producer = _producer(modules, architecture, block, readers[0], entry) if entry else None
                takes = producer is None or (entry is not None and entry.made_by in _NORMS)
                shiftable = takes and _shiftable(modules, readers if producer else chosen, producer)
                found.append(SharedInput(unit, index, readers, chosen, producer, shiftable))
    found.sort(key=lambda shared: min(wanted[name] for name in shared.sites))
    for site in sites:
        if site.block is None:
            names = (site.name,)
            found.append(SharedInput(site.unit, None, names, names, None, _shiftable(modules, names, None)))
    return found


def legal_scale(shared: SharedInput, scale_K: Tensor) -> Tensor:
    """The nearest scale, in ratio, that folds: features made by one row get the geometric mean of theirs. (K,)"""
    made_by = shared.producer
    if made_by is None or made_by.repeats == 1:
        return scale_K
    mean = scale_K.log().view(made_by.heads, made_by.repeats, made_by.size).mean(1, keepdim=True).exp()
    return mean.expand(-1, made_by.repeats, -1).reshape(-1)


def fold(model: nn.Module, shared: SharedInput, scale_K: Tensor, shift_K: Tensor | None = None) -> list[str]:
    """Let the producer make (x − shift) / scale, and let the readers expect it. Mutates `model`; its outputs do not
    change.

    Args:
        scale_K: positive, floating (K,), equal where `legal_scale` makes it so. shift_K: floating (K,), or None for 0.

    Returns:
        Names of the parameters that changed.

    Raises:
        ModelError: the input has no producer, or takes no shift.
        NumericsError: a scale or shift that is not finite and positive, or of another shape, or that cannot fold.
    """
    made_by = shared.producer
    if made_by is None:
        raise ModelError(f"{shared.unit}: no module before this input can take a scale; scale only the readers")
    _check(model, shared, scale_K, shift_K)
    legal_K = legal_scale(shared, scale_K)
    if not torch.allclose(scale_K, legal_K, rtol=1e-5, atol=0.0):
        raise NumericsError(
            f"{shared.unit}: {made_by.repeats} features share each row of {made_by.name}, but their scales differ; "
            "pass the scale through legal_scale first"
        )
    changed = _scale(model, shared.readers, legal_K, shift_K)
    rows, each = _rows(made_by)
    producer = model.get_submodule(made_by.name)
    weight = _weight(producer)
    with torch.no_grad():
        _divide(weight, rows, _wide(legal_K, weight)[each], None, made_by.offset)
        changed.append(f"{made_by.name}.weight")
        bias = getattr(producer, "bias", None)
        if isinstance(bias, Tensor):
            shift = None if shift_K is None else _wide(shift_K, bias)[each]
            _divide(bias, rows, _wide(legal_K, bias)[each], shift, 0.0)
            changed.append(f"{made_by.name}.bias")
    return changed


def scale_readers(model: nn.Module, shared: SharedInput, scale_K: Tensor, shift_K: Tensor | None = None) -> list[str]:
    """Let the linears expect (x − shift) / scale, which the caller must give them. Mutates `model`.

    Readers that are not sites (a router) go on reading x. A head that shares its weight with the embedding gets one of
    its own. Arguments, result and errors as of `fold`, but any positive scale will do.
    """
    _check(model, shared, scale_K, shift_K)
    if shared.block is None:
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        for name in shared.sites:
            head = model.get_submodule(name)
            if id(head.weight) in tables:
                head.weight = nn.Parameter(_weight(head).detach().clone(), requires_grad=False)
    return _scale(model, shared.sites, scale_K, shift_K)


def _tensors(
    block: str, linears: dict[str, str], architecture: Architecture
) -> Iterator[tuple[str, tuple[str, ...], Input | None]]:
    """(name, readers, entry of the row or None) of every tensor that linears of a block read."""
    left = dict(linears)
    for entry in architecture.inputs:
        readers = [name for path in entry.readers for name, p in linears.items() if p == path]
        for name in readers:
            left.pop(name)
        if "*" in entry.readers[0]:
            yield from ((name, (name,), entry) for name in readers)
        elif readers:
            shared = len(entry.readers) > 1
            yield f"{block}.{architecture.roles[linears[readers[0]]]}" if shared else readers[0], tuple(readers), entry
    yield from ((name, (name,), None) for name, path in left.items() if architecture.roles[path] != "router")


def _producer(
    modules: dict[str, nn.Module], architecture: Architecture, block: str, reader: str, entry: Input
) -> Producer | None:
    """Where the K features of an input are among its producer's rows; None if the config rules the fold out."""
    config: Any = modules[""].config
    config = config.get_text_config()
    if entry.producer is None or (entry.only_if and not getattr(config, entry.only_if)):
        return None
    path = entry.producer
    name = f"{block}.{path}"
    if "*" in path:  # the expert that the reader belongs to
        stem, _, leaf = path.partition(".*.")
        expert = reader.removeprefix(f"{block}.{stem}.").partition(".")[0]
        name = f"{block}.{stem}.{expert}.{leaf}"
    if name not in modules:
        raise ModelError(
            f"{name}: there is no such module, but the architecture table expects it to make the input of {reader}"
        )
    if entry.made_by == "relu":
        activation = modules.get(f"{block}.{architecture.activations[path]}")
        if not isinstance(activation, nn.ReLU):
            return None
    weight = getattr(modules[name], "weight", None)
    if not isinstance(weight, Tensor):  # a norm without a weight, or the identity in its place
        return None
    n, k, heads = len(weight), _weight(modules[reader]).shape[-1], int(config.num_attention_heads)
    size = k // heads
    if entry.made_by == "value":
        n_values = n if n <= k else (n - k) // 2  # rows of queries (K), keys and values, if they are fused
        producer = Producer(name, n - n_values, n_values // size, size, k // n_values, size)
    elif entry.made_by == "latent_value":
        producer = Producer(name, n // heads - size, heads, n // heads, 1, size)
    else:
        producer = Producer(name, n - k, 1, k, 1, k, 1.0 if entry.made_by == "norm_plus_1" else 0.0)
    fits = producer.first >= 0 and producer.heads * producer.repeats * producer.size == k
    return producer if fits else None


def _shiftable(modules: dict[str, nn.Module], readers: tuple[str, ...], producer: Producer | None) -> bool:
    names = readers if producer is None else (*readers, producer.name)
    return all(isinstance(getattr(modules[name], "bias", None), Tensor) for name in names)


def _scale(model: nn.Module, names: tuple[str, ...], scale_K: Tensor, shift_K: Tensor | None) -> list[str]:
    """Let each of the linears read (x − shift) / scale. Returns what changed."""
    transform = InputTransform(_wide(scale_K, scale_K), None if shift_K is None else _wide(shift_K, shift_K))
    modules = {name: model.get_submodule(name) for name in names}
    changed: list[str] = []
    with torch.no_grad():
        for name, module in modules.items():
            weight = _weight(module)
            bias = getattr(module, "bias", None)
            wide = _wide(weight, weight)
            if shift_K is not None and isinstance(bias, Tensor):
                bias.copy_(transform.absorbed_bias(wide, _wide(bias, bias)))
                changed.append(f"{name}.bias")
            weight.copy_(transform.absorbed(wide))
            changed.append(f"{name}.weight")
    return changed


def _check(model: nn.Module, shared: SharedInput, scale_K: Tensor, shift_K: Tensor | None) -> None:
    k = _weight(model.get_submodule(shared.readers[0])).shape[-1]
    for what, tensor in (("scale", scale_K), ("shift", shift_K)):
        if tensor is not None and tuple(tensor.shape) != (k,):
            raise NumericsError(
                f"{shared.unit}: the {what} has the shape {tuple(tensor.shape)}, but there are K = {k} input features"
            )
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise NumericsError(f"{shared.unit}: the {what} holds NaN or infinity")
    if not bool((scale_K > 0).all()):
        raise NumericsError(
            f"{shared.unit}: the smallest scale is {float(scale_K.min()):.3g}; every scale must be positive"
        )
    if shift_K is not None and not shared.shiftable:
        raise ModelError(f"{shared.unit}: a shift needs a bias in every reader and in the norm that makes the input")


def _rows(producer: Producer) -> tuple[Tensor, Tensor]:
    """(rows of the producer, a feature that each of them makes), int64."""
    heads, features = torch.arange(producer.heads)[:, None], torch.arange(producer.size)
    rows = producer.first + heads * producer.stride + features
    first = heads * producer.repeats * producer.size + features
    return rows.flatten(), first.flatten()


def _divide(parameter: Tensor, rows: Tensor, scale: Tensor, shift: Tensor | None, offset: float) -> None:
    """(p + offset − shift) / scale − offset in these rows, in place."""
    rows = rows.to(parameter.device)
    part = _wide(parameter[rows], parameter) + offset
    part = part if shift is None else part - shift
    parameter[rows] = (part / scale.view(-1, *[1] * (part.ndim - 1)) - offset).to(parameter.dtype)


def _wide(tensor: Tensor, like: Tensor) -> Tensor:
    """At least float32, on the device of `like`: bfloat16 would round twice."""
    return tensor.to(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{type(module).__name__} has no float weight to scale; fold before the linear is replaced")
    return weight
