"""`SCHEMES`: how a linear layer can be represented, by the names that recipes have for it."""

from dataclasses import replace
from typing import NamedTuple

from bitwright.errors import NumericsError
from bitwright.numerics.spec import QuantSpec

GROUP_SIZES = (128, 64, 32)  # tried in this order where a scheme leaves the choice open


class Scheme(NamedTuple):
    """How one linear layer is represented. `weight=None` keeps it in 16 bit; `input=None` leaves activations float.

    `choose_group`: the weight's group size is the largest of `GROUP_SIZES` that divides K; if none does, a row is one
    group (`fit_group`).
    """

    name: str
    weight: QuantSpec | None
    input: QuantSpec | None = None
    choose_group: bool = False


_DYNAMIC = QuantSpec(bits=8, symmetric=False, dynamic=True)
_DYNAMIC_SYMMETRIC = replace(_DYNAMIC, symmetric=True)
_STATIC = QuantSpec(bits=8, symmetric=False, per_tensor=True)


def _family(stem: str, weight: QuantSpec, input_spec: QuantSpec | None, *, asymmetric: bool = True) -> list[Scheme]:
    """`stem` (the group size is chosen), `stem_g128` … `stem_channel`, and the asymmetric ones of each."""
    sizes: tuple[tuple[str, int | None], ...] = (("", GROUP_SIZES[0]), *((f"_g{g}", g) for g in GROUP_SIZES))
    return [
        Scheme(stem + size + suffix, replace(weight, group_size=group, symmetric=not suffix), input_spec, size == "")
        for suffix in (("", "_asym") if asymmetric else ("",))
        for size, group in (*sizes, ("_channel", None))
    ]


# Every scheme that a recipe can name. bf16 stands for "16 bit": fp16 sources keep fp16.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("16bit", None),
        Scheme("w8a8", QuantSpec(), _DYNAMIC),
        Scheme("w8a8_symmetric", QuantSpec(), _DYNAMIC_SYMMETRIC),
        Scheme("w8a8_static", QuantSpec(), _STATIC),
        Scheme("w8a8_static_symmetric", QuantSpec(), replace(_STATIC, symmetric=True)),
        Scheme("w8a16", QuantSpec()),
        *_family("w4a16", QuantSpec(bits=4), None),
        *_family("w4a8", QuantSpec(bits=4), _DYNAMIC),
        *_family("w3a16", QuantSpec(bits=3), None),
        *_family("w3a8", QuantSpec(bits=3), _DYNAMIC),
        *_family("w2a16", QuantSpec(bits=2), None),
        *_family("w2a8", QuantSpec(bits=2), _DYNAMIC),
        *_family("log4", QuantSpec(bits=4, grid="apot"), None, asymmetric=False),
        *_family("nf4", QuantSpec(bits=4, grid="nf4"), None, asymmetric=False),
        *_family("kmeans4", QuantSpec(bits=4, grid="kmeans"), None, asymmetric=False),
        *_family("ternary", QuantSpec(bits=2, grid="ternary"), None, asymmetric=False),
        *_family("ternary_a8", QuantSpec(bits=2, grid="ternary"), _DYNAMIC_SYMMETRIC, asymmetric=False),
        # As in BitNet b1.58, one scale for all weights of a linear.
        Scheme("ternary_tensor", QuantSpec(bits=2, grid="ternary", per_tensor=True)),
        Scheme("ternary_a8_tensor", QuantSpec(bits=2, grid="ternary", per_tensor=True), _DYNAMIC_SYMMETRIC),
        *_family("binary", QuantSpec(bits=1, grid="binary"), None, asymmetric=False),
    )
}


def with_sizes(scheme: Scheme, k: int) -> list[Scheme]:
    """The schemes that a linear with K = `k` inputs may have, largest groups first: one for each of `GROUP_SIZES` that
    divides K, where the scheme leaves the size open; else itself."""
    if not scheme.choose_group:
        return [scheme]
    stem, asym = scheme.name.removesuffix("_asym"), "_asym" if scheme.name.endswith("_asym") else ""
    return [SCHEMES[f"{stem}_g{size}{asym}"] for size in GROUP_SIZES if k % size == 0]


def fit_group(scheme: Scheme, k: int) -> tuple[Scheme, str]:
    """The scheme that a linear with K = `k` inputs gets, and why if it is another: "" if it is `scheme` itself.

    Raises:
        NumericsError: a group size that was named does not divide K.
    """
    weight = scheme.weight
    if weight is None or weight.group_size is None:
        return scheme, ""
    if not scheme.choose_group:
        if k % weight.group_size:
            fitting = ", ".join(f"g{g}" for g in GROUP_SIZES if k % g == 0)
            raise NumericsError(
                f"K = {k} is not a multiple of group_size = {weight.group_size}; use {fitting or 'channel'}, or "
                "name a scheme without a size, which chooses one"
            )
        return scheme, ""
    size = next((g for g in GROUP_SIZES if k % g == 0), None)
    suffix = "_channel" if size is None else f"_g{size}"
    stem, asym = scheme.name.removesuffix("_asym"), "_asym" if scheme.name.endswith("_asym") else ""
    refused = [g for g in GROUP_SIZES if k % g]
    why = (
        f"K = {k} is not a multiple of {' or '.join(map(str, refused))}" if refused else f"K = {k} is a multiple of 128"
    )
    return SCHEMES[stem + suffix + asym], why


def scheme_families() -> list[str]:
    """The names of the schemes, grouped by family: "w4a16[_g128|_g64|_g32|_channel][_asym]"."""
    words: list[str] = []
    for scheme in SCHEMES.values():
        if scheme.choose_group and not scheme.name.endswith("_asym"):
            asym = "[_asym]" if f"{scheme.name}_asym" in SCHEMES else ""
            words.append(f"{scheme.name}[_g128|_g64|_g32|_channel]{asym}")
        elif scheme.weight is None or scheme.weight.bits == 8 or scheme.weight.per_tensor:
            words.append(scheme.name)
    return words
