"""Schemes and methods in words. They are told from their parts, so that a new one needs no entry here."""

from typing import Any

from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec

_GRIDS = {
    "pot": "{bits}-bit weights that are powers of two",
    "apot": "{bits}-bit weights that are sums of powers of two",
    "nf4": "4-bit NormalFloat weights",
    "fp4": "4-bit float weights",
    "kmeans": "weights from {levels} fitted levels",
    "ternary": "ternary weights (−1, 0, 1)",
    "binary": "binary weights (−1, 1)",
}
_TRANSFORMS = {
    "smoothquant": "SmoothQuant",
    "shift": "shift and SmoothQuant (Outlier Suppression+)",
    "awq": "AWQ scaling",
}
_RANGES = {
    "min_max": "",
    "absmax": "",
    "mse": "ranges of least error",
    "imatrix": "ranges of least error weighted by the inputs",
    "awq_clip": "AWQ clipping",
}
_ROUNDINGS = {"rtn": "rounded to nearest", "gptq": "GPTQ rounding", "reproduce": "the codes that it is already"}


def scheme_words(name: Any) -> str:
    """What a scheme stores: "w4a16_g64" -> "int4 weights in groups of 64, float activations"."""
    if name == "int8":
        return "int8 with one scale per row"
    scheme = SCHEMES.get(str(name))
    if scheme is None:
        return str(name)
    if scheme.weight is None:
        return "16 bits"
    group = "groups of a size that fits" if scheme.choose_group else None
    return f"{_weight_words(scheme.weight, group)}, {_input_words(scheme.input)}"


def scheme_tag(name: Any) -> str | None:
    """The tag of a scheme on the Hub: "w4a16_g64" -> "int4", "nf4_g64" -> "nf4"; None for what is not quantized."""
    scheme = SCHEMES.get(str(name))
    if scheme is None or scheme.weight is None:
        return None
    return f"int{scheme.weight.bits}" if scheme.weight.grid == "uniform" else scheme.name.partition("_")[0]


def rounds_inputs(name: Any) -> bool:
    """Whether a scheme quantizes activations."""
    scheme = SCHEMES.get(str(name))
    return scheme is not None and scheme.input is not None


def method_words(name: Any, weight_range: str | None = None) -> str:
    """How a method chooses codes: "awq" -> "AWQ scaling, AWQ clipping, rounded to nearest".

    weight_range: what a recipe asks for in place of the method's own range.
    """
    from bitwright.methods import METHODS  # takes torch, which the rest of a report does without

    method = METHODS.get(str(name))
    if method is None:
        return str(name).replace("_", " ")
    range_ = weight_range or method.range
    parts = (
        _TRANSFORMS.get(method.transform or "", method.transform),
        None if method.rounding == "reproduce" else _RANGES.get(range_, f"{range_} ranges"),
        _ROUNDINGS.get(method.rounding, method.rounding),
    )
    return ", ".join(filter(None, parts))


def method_note(name: Any) -> str:
    """When a method is the right one: "" for what is no method."""
    from bitwright.methods import METHODS

    return METHODS[str(name)].note if str(name) in METHODS else ""


def _weight_words(spec: QuantSpec, group: str | None) -> str:
    if spec.grid == "uniform":
        codes = f"int{spec.bits} weights"
    else:
        codes = _GRIDS[spec.grid].format(bits=spec.bits, levels=spec.code_max + 1)
    if group is None and spec.group_size is not None:
        group = f"groups of {spec.group_size}"
    if group is None:
        by, zeros = ("", " with zero points") if spec.bits == 8 else (" with a scale per row", " and zero points")
        by = " with one scale" if spec.per_tensor else by
    else:
        by, zeros = f"{'' if spec.grid == 'uniform' else ','} in {group}", " with zero points"
    return codes + by + ("" if spec.symmetric else zeros)


def _input_words(spec: QuantSpec | None) -> str:
    if spec is None:
        return "float activations"
    how = "scaled at run time" if spec.dynamic else "scaled by calibration"
    return f"int{spec.bits} activations ({'symmetric, ' if spec.symmetric else ''}{how})"
