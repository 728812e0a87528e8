"""Checkpoints of GPTQModel and AutoGPTQ, and of AutoRound where it packs as they do. A linear `<m>` of N outputs, K
inputs, b bits, G groups:

    <m>.qweight   int32 (⌈K·b/32⌉, N)    codes from 0, packed along K
    <m>.qzeros    int32 (G, ⌈N·b/32⌉)    zero points, packed along N; v1 stores them less one, v2 as they are
    <m>.scales    float (G, N)           w = (q − z) · s
    <m>.g_idx     int32 (K,)             the group of each column; may be left out

Columns whose groups are no runs (act-order: `desc_act`) become a float weight: a permuted input would have to be
gathered before each product, which no kernel does.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from bitwright.checkpoints.checkpoint import (
    Checkpoint,
    Module,
    Opened,
    assemble,
    flag,
    groups_of,
    modules_with,
    own_settings,
    read_bias,
    refuse_excluded,
    whole,
)
from bitwright.checkpoints.integer_codes import by_index, in_order, integer_spec, integer_weight
from bitwright.checkpoints.linear_tensors import Entry
from bitwright.checkpoints.module_patterns import patterns
from bitwright.checkpoints.spelling import (
    Common,
    Contents,
    Shape,
    Spelling,
    any_group,
    drops_inputs,
    group_of,
    of_rows,
    uneven,
)
from bitwright.errors import CheckpointError, NumericsError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import Array
from bitwright.numerics.bits import add_words, pack_words, unpack_words
from bitwright.numerics.linear import LinearForm, PendingFloat, PendingLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)
SCALES = ("F16", "BF16", "F32")
_FLOATS: Mapping[str, Any] = {}  # what "-:" says of a module
Settings = Callable[[str], Mapping[str, Any]]  # of a module: the whole checkpoint's, and its own over them


class _Layout(NamedTuple):
    """What the header of a linear says. less_one: whether zero points are stored so. turned: whether it is symmetric
    and has negative scales, as AutoRound's: codes from 1 − 2^(b−1) to 2^(b−1), which zero points say."""

    n: int
    k: int
    bits: int
    group: int
    groups: int
    symmetric: bool
    less_one: bool
    turned: bool

    @property
    def spec(self) -> QuantSpec:
        """Of its codes."""
        return integer_spec(self.bits, self.group, self.k, symmetric=self.symmetric and not self.turned)


def read_gptq(directory: ModelDirectory) -> Checkpoint:
    """Open a GPTQ checkpoint.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another, or a layout that this
        release lacks.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    version = said.get("checkpoint_format") or said.get("format") or "gptq"
    if said.get("is_marlin_format"):
        version = "marlin"
    if version not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"{where}: checkpoint_format {brief(version)}; this release reads 'gptq' and 'gptq_v2'")
    dynamic = said.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(own, dict) for own in dynamic.values()):
        raise CheckpointError(f"{where}: dynamic must map patterns to settings, but is {brief(dynamic)}")
    # As GPTQModel has it: the first pattern that matches counts, and "-:" leaves a module as it was.
    rules: dict[str, Mapping[str, Any]] = {}
    for key, own in dynamic.items():
        rules.setdefault(key.removeprefix("+:").removeprefix("-:"), _FLOATS if key.startswith("-:") else own)
    find = own_settings(rules, f"{where}: dynamic")
    refuse_excluded(modules_with(directory, "qweight"), lambda module: find(module) is _FLOATS, f"{where}: dynamic")
    return read_packed(directory, lambda module: {**said, **(find(module) or {})}, less_one=version == "gptq")


def read_packed(directory: ModelDirectory, settings: Settings, *, less_one: bool) -> Checkpoint:
    """Open a checkpoint of this layout, whoever's settings say what it holds: bits, group_size, sym."""
    assert directory.quantization is not None
    where = directory.quantization.where
    modules = modules_with(directory, "qweight")
    opened = {name: _open(Module(directory, name), settings(name), where, less_one) for name in modules}
    return assemble(directory, opened, SUFFIXES)


def _open(module: Module, said: Mapping[str, Any], where: str, less_one: bool) -> Opened:
    layout = _layout(module, said, where, less_one)
    n, k, group = layout.n, layout.k, layout.group
    runs = True
    if "g_idx" in module:
        module.expect("g_idx", ("I32", "I64"), (k,), "K inputs")
        try:
            runs = in_order(module.ints("g_idx"), layout.groups, group)
        except NumericsError as error:
            raise module.fault("g_idx", str(error)) from None
    if not runs or k % group:
        stored = f"int{layout.bits} {'in the order of activations' if not runs else 'with an incomplete group'}"
        return PendingFloat((n, k), "float32", stored, module.loads(_load_float, module, layout))
    return PendingLinear((n, k), LinearForm(layout.spec), module.loads(_load, module, layout))


def _layout(module: Module, said: Mapping[str, Any], where: str, less_one: bool) -> _Layout:
    bits = whole(said, "bits", where)
    if bits not in BITS:
        raise CheckpointError(f"{where}: bits = {bits}; this release reads {', '.join(map(str, BITS))}")
    rows, n = module.shape("qweight", ("I32",), 2)
    k = module.shape("g_idx", ("I32", "I64"), 1)[0] if "g_idx" in module else rows * 32 // bits
    what = f"{bits}-bit codes of N, K = {[n, k]}"
    module.expect("qweight", ("I32",), (-(-k * bits // 32), n), what)
    group, groups = groups_of(k, whole(said, "group_size", where), where)
    what = f"{what} in groups of {group}"
    module.expect("scales", SCALES, (groups, n), what)
    module.expect("qzeros", ("I32",), (groups, -(-n * bits // 32)), what)
    symmetric = flag(said, "sym", where, True)
    turned = symmetric and bool((module.floats("scales") < 0).any())
    return _Layout(n, k, bits, group, groups, symmetric, less_one, turned)


def _values(module: Module, layout: _Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """codes int8 (N, K), scale float32 (N, G), zero point int8 (N, G) or None."""
    codes_KN = unpack_words(module.ints("qweight"), layout.bits, layout.k, dim=0)
    zero_GN = zero_points(module.ints("qzeros"), layout.bits, layout.n, less_one=layout.less_one)
    scale_NG = np.ascontiguousarray(module.floats("scales").T)
    if layout.symmetric and zero_GN.any():
        raise module.fault("qzeros", f"holds zero points other than {1 << layout.bits - 1}, but the file says sym")
    zero_NG = None if layout.symmetric else np.ascontiguousarray(zero_GN.T)
    return np.ascontiguousarray(codes_KN.T), scale_NG, zero_NG


def zero_points(words: np.ndarray, bits: int, n: int, *, less_one: bool) -> np.ndarray:
    """Zero points int8 (G, N), as codes are held: 0 is 2^(b−1) of a file. less_one: whether they are stored so."""
    words = add_words(words, 1, bits) if less_one and bits != 3 else words
    zero: np.ndarray = unpack_words(words, bits, n)
    if not less_one or bits != 3:
        return zero
    # GPTQModel adds to whole words, but where codes straddle words, to each code.
    return np.where(zero == 3, np.int8(-4), zero + np.int8(1))


def _load(module: Module, layout: _Layout) -> QuantizedLinear:
    codes, scale, zero = _values(module, layout)
    weight: QTensor = integer_weight(codes, scale, layout.spec, zero_NG=zero)
    return QuantizedLinear(weight, read_bias(module.directory, module.name, layout.n))


def _load_float(module: Module, layout: _Layout) -> np.ndarray:
    index = module.ints("g_idx") if "g_idx" in module else np.arange(layout.k) // layout.group
    in_order(index, layout.groups, layout.group)  # the file may have changed
    return by_index(*_values(module, layout), index)


def _gptq_refuses(shape: Shape, form: LinearForm) -> str:
    n, k = shape
    if n % 32 or k % 32:
        return f"N, K = {[n, k]} are not multiples of 32"
    return uneven(form)


def _gptq_entries(shape: Shape, form: LinearForm, common: Common) -> dict[str, Entry]:
    (n, k), bits = shape, form.weight.bits
    groups = k // (form.weight.group_size or k)
    return {
        "qweight": ("I32", (k * bits // 32, n)),
        "qzeros": ("I32", (groups, n * bits // 32)),
        "scales": ("F16", (groups, n)),
        "g_idx": ("I32", (k,)),
    }


def _gptq_tensors(linear: QuantizedLinear, common: Common) -> dict[str, Array]:
    weight, (n, k) = linear.weight, linear.shape
    bits = weight.spec.bits
    scale_GN = of_rows(weight.scale_NG, n, np.float16)
    zero_GN = np.zeros(scale_GN.shape, np.int8)
    if weight.zero_point_NG is not None:
        zero_GN = of_rows(weight.zero_point_NG, n, np.int8)
    stored = pack_words(zero_GN, bits, what="zero points")
    if not common.zero_points:  # version 1 stores zero points less one; all are 2^(b−1), so none runs over
        stored = pack_words(zero_GN - np.int8(1), bits) if bits == 3 else add_words(stored, -1, bits)
    return {
        "qweight": pack_words(np.ascontiguousarray(weight.codes_NK.T), bits, dim=0),
        "qzeros": stored,
        "scales": scale_GN,
        "g_idx": (np.arange(k) // (weight.spec.group_size or k)).astype(np.int32),
    }


def _gptq_config(contents: Contents) -> dict[str, Any]:
    forms = contents.forms
    said = {name: _gptq_settings(form.weight) for name, form in forms.items()}
    common = Counter(tuple(settings.items()) for settings in said.values()).most_common(1)
    usual = dict(common[0][0]) if common else {"bits": 4, "group_size": 128, "sym": True}
    alike: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for name, settings in said.items():
        alike.setdefault(tuple(settings.items()), []).append(name)
    own: dict[str, dict[str, Any]] = {}
    for key, names in alike.items():
        if dict(key) != usual:
            own |= {f"+:{pattern}": dict(key) for pattern in _patterns(names, contents.prefix)}
    own |= {f"-:{pattern}": {} for pattern in _patterns(contents.floats, contents.prefix)}
    return {
        "quant_method": "gptq",
        **usual,
        "desc_act": False,
        "lm_head": any(name.endswith("lm_head") for name in forms),
        "checkpoint_format": "gptq" if all(form.weight.symmetric for form in forms.values()) else "gptq_v2",
        "pack_dtype": "int32",
        **({"dynamic": own} if own else {}),
    }


def _gptq_settings(spec: QuantSpec) -> dict[str, Any]:
    return {"bits": spec.bits, "group_size": group_of(spec), "sym": spec.symmetric}


def _patterns(names: Collection[str], prefix: str) -> list[str]:
    """What matches these modules, from the beginning of a name to its end; few, because readers try each on all."""
    found = patterns(names, prefix)
    return [f"^{entry.removeprefix('re:') if entry.startswith('re:') else f'{re.escape(entry)}$'}" for entry in found]


GPTQ = Spelling(
    _gptq_refuses, drops_inputs, any_group, _gptq_entries, _gptq_tensors, _gptq_config, scale="F16", half="F16"
)
