"""`Plan`: a recipe resolved against one model: a row per linear, per embedding table, and for the attention of each
block, with scheme, bytes and reason.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from bitwright.errors import NumericsError, RecipeError, TargetError
from bitwright.families import Architecture
from bitwright.kernels import native
from bitwright.methods import METHODS, REPRODUCE
from bitwright.models.rescale import find_inputs
from bitwright.models.sites import LinearSite, find_attention, is_transposed
from bitwright.numerics.known_grid import is_reproducible
from bitwright.numerics.schemes import SCHEMES, fit_group, with_sizes
from bitwright.numerics.spec import QuantSpec, stored_dtype
from bitwright.recipe import DEFAULT_TARGETS, AttentionScheme, Recipe, attention_of, check_rules, scheme_of
from bitwright.record import ATTENTION, EMBEDDING, HELD, PlanRow
from bitwright.targets import TARGETS, check_names, check_shapes, check_target, stored_bytes, stored_embedding_bytes

Plan = tuple[PlanRow, ...]
AreCodes = Callable[[str, QuantSpec], bool]


def make_plan(
    recipe: Recipe, model: nn.Module, architecture: Architecture, sites: list[LinearSite], embeddings: list[str],
    dtype_of: Callable[[str], torch.dtype], are_codes: AreCodes | None = None, *, generates: bool = True,
) -> Plan:  # fmt: skip
    """Resolve `recipe` for `model`, and check it against the targets that the recipe names, if it names any.

    dtype_of: the dtype in the source's files of the weight of a linear or a table, by the module's name. are_codes:
    whether the weight of a linear is codes of a scheme already; those are kept, whatever the method. generates: whether
    a language model is used as one, and not to score.

    Raises:
        RecipeError: a rule matches nothing, or gives linears that share an input different schemes or methods.
        TargetError: a target cannot run the plan, or would compute something else.
    """
    attention = find_attention(model, architecture)
    check_rules(recipe, sites, attention)
    modules = dict(model.named_modules())
    read: dict[str, set[int]] = {}  # by unit: the K of its linears, which differ among those of an expert
    for site in sites:
        read.setdefault(site.unit, set()).add(int(modules[site.name].weight.shape[1]))
    kept = {} if are_codes is None else _kept_codes(recipe, sites, read, are_codes)
    rows = []
    for site in sites:
        name, method, reason = scheme_of(recipe, site)
        weight = modules[site.name].weight
        shape = (weight.shape[0], weight.shape[1])
        scheme, reason = _fitted(site.name, name, sorted(read[site.unit]), reason)
        if site.unit in kept:
            scheme, method = kept[site.unit], REPRODUCE
            reason = f"{reason}; its weights are codes of {scheme} already, and stay so"
        elif method == REPRODUCE and are_codes is not None and SCHEMES[scheme].weight is not None:
            raise RecipeError(f"{site.name}: method: {REPRODUCE}, but its weights are no codes of {scheme}")
        bias = getattr(modules[site.name], "bias", None) is not None
        values, dtype = shape[0] * (shape[1] + bias), dtype_of(site.name)
        after = stored_bytes(shape, SCHEMES[scheme], bias=bias, source_bytes_per_value=dtype.itemsize)
        rows.append(
            PlanRow(site.name, site.block, site.role, site.unit, shape, scheme, method,
                    values * dtype.itemsize, after, reason, _half(dtype))
        )  # fmt: skip
    for name in embeddings:
        rows.append(_embedding_row(name, modules[name], recipe.embeddings, dtype_of(name)))
    _check_units(rows)
    rows += _attention_rows(recipe, attention, model, architecture, rows)
    rows += _held_rows(model, architecture, rows) if generates else []
    check_names(recipe.targets or ())
    for target, why in refusals(recipe.targets or (), recipe, rows, model, architecture, sites).items():
        raise TargetError(
            f"{why}; or leave {target} out with --target bitwright, or targets: [bitwright] in the recipe"
        )
    return tuple(rows)


def fit_targets(
    recipe: Recipe, plan: Plan, model: nn.Module, architecture: Architecture, sites: list[LinearSite]
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with its targets named, and the targets that were left out with the reasons.

    Of the default ones, which a recipe that names none stands for, those stay that can load what the plan makes.
    """
    if recipe.targets is not None:
        return recipe, ()
    dropped = refusals(DEFAULT_TARGETS, recipe, plan, model, architecture, sites)
    kept = tuple(target for target in DEFAULT_TARGETS if target not in dropped)
    told = tuple(
        f"the result is not made for {target}, because {target} cannot load it: {why}"
        for target, why in dropped.items()
    )
    return recipe.model_copy(update={"targets": kept}), told


def refusals(
    targets: Sequence[str], recipe: Recipe, plan: Sequence[PlanRow], model: nn.Module, architecture: Architecture,
    sites: list[LinearSite],
) -> dict[str, str]:  # fmt: skip
    """Target -> why it cannot load the result of a plan; targets that can are left out."""
    if set(targets) <= {"bitwright"}:
        return {}
    transformed = transformed_names(plan, model, architecture, sites)
    transposed = [site.name for site in sites if is_transposed(architecture, f"{site.name}.weight")]
    refused = {}
    for target in targets:
        try:
            _check_family(target, architecture)
            check_target(
                target, {row.name: row.scheme for row in plan if row.in_files},
                int8_embeddings=recipe.embeddings == "int8",
                transformed=transformed, transposed=transposed,
                experts=[row.name for row in plan if row.role == "expert"],
                heads=[row.name for row in plan if row.role == "head"], needs_weights=architecture.needs_weights,
            )  # fmt: skip
            check_shapes(target, {row.name: row.scheme for row in plan}, _fused_shapes(plan))
        except TargetError as error:
            refused[target] = str(error)
    return refused


def _check_family(target: str, architecture: Architecture) -> None:
    """Raises:
    TargetError: a language model, for a target that runs encoders alone.
    """
    if target in TARGETS and TARGETS[target].encoders and architecture.decodes:
        raise TargetError(f"{target} runs the graphs that `bitwright export` makes, and those are of encoders alone")


def _fused_shapes(plan: Sequence[PlanRow]) -> dict[str, tuple[int, int]]:
    """(N, K) of each linear, N with all that read the same input: q, k and v, gate and up. Experts stay apart."""
    fused: dict[str, int] = {}
    linears = [row for row in plan if row.is_linear]
    for row in linears:
        fused[row.unit] = fused.get(row.unit, 0) + row.shape[0]
    return {row.name: (row.shape[0] if row.role == "expert" else fused[row.unit], row.shape[1]) for row in linears}


def transformed_names(
    rows: Sequence[PlanRow], model: nn.Module, architecture: Architecture, sites: list[LinearSite]
) -> list[str]:
    """Linears whose method transforms their input where nothing before it can take the inverse."""
    methods = {row.name: row.method for row in rows if row.method in METHODS and METHODS[row.method].transform}
    chosen = [site for site in sites if site.name in methods]
    return [name for shared in find_inputs(model, architecture, chosen) if not shared.producer for name in shared.sites]


def _kept_codes(
    recipe: Recipe, sites: Sequence[LinearSite], read: Mapping[str, Collection[int]], are_codes: AreCodes
) -> dict[str, str]:
    """The scheme of each unit whose weights are codes of it already. Where the recipe leaves the group size open, the
    largest size is taken that they have.
    """
    units: dict[str, list[LinearSite]] = {}
    for site in sites:
        units.setdefault(site.unit, []).append(site)
    kept = {}
    for unit, members in units.items():
        asked = {scheme_of(recipe, site)[0] for site in members}
        if len(asked) > 1:  # which is refused later
            continue
        for scheme in with_sizes(SCHEMES[asked.pop()], math.gcd(*read[unit])):
            spec = scheme.weight
            if spec is not None and is_reproducible(spec) and all(are_codes(site.name, spec) for site in members):
                kept[unit] = scheme.name
                break
    return kept


def _fitted(name: str, scheme: str, ks: Sequence[int], reason: str) -> tuple[str, str]:
    """The scheme and the reason. If the scheme leaves the group size open, it gets one that divides every K of the
    unit.
    """
    try:
        fitted, why = fit_group(SCHEMES[scheme], math.gcd(*ks))
    except NumericsError as error:
        raise RecipeError(f"{name}: {error}") from None
    if why and len(ks) > 1:
        why = f"these linears share a group size, and their K are {' and '.join(map(str, ks))}"
    return fitted.name, f"{reason}; {why}, so {fitted.name.removeprefix(scheme + '_')}" if why else reason


def quantized_names(plan: Plan) -> frozenset[str]:
    """Names of the linears whose weights become integers."""
    return frozenset(row.name for row in plan if row.is_linear and SCHEMES[row.scheme].weight is not None)


def half_names(plan: Plan) -> frozenset[str]:
    """Names of the linears kept in 16 bit."""
    return frozenset(row.name for row in plan if row.is_linear and SCHEMES[row.scheme].weight is None)


def half_dtypes(plan: Plan) -> dict[str, torch.dtype]:
    """The dtype that "16 bit" means for each linear and table of a plan."""
    return {row.name: getattr(torch, row.half) for row in plan if row.half is not None}


def attention_rows(plan: Plan) -> Plan:
    """The rows that say how the attention of each block is computed, in the order of the blocks."""
    return tuple(row for row in plan if row.is_attention)


def int8_attention(plan: Plan) -> frozenset[int]:
    """The blocks whose attention the engine computes in int8."""
    return frozenset(row.block for row in plan if row.is_attention and row.scheme == "int8" and row.block is not None)


def _half(source: torch.dtype) -> str:
    return stored_dtype(str(source).removeprefix("torch."))


def _embedding_row(name: str, module: nn.Module, mode: str, dtype: torch.dtype) -> PlanRow:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    shape = (weight.shape[0], weight.shape[1])
    after = stored_embedding_bytes(shape, mode, source_bytes_per_value=dtype.itemsize)
    scheme, reason = (
        ("int8", "int8 with one scale per row, as asked")
        if mode == "int8"
        else ("16bit", "other programs cannot load 8-bit embeddings")
    )
    before = shape[0] * shape[1] * dtype.itemsize
    return PlanRow(
        name, None, EMBEDDING, name, shape, scheme, "rtn" if mode == "int8" else "cast", before, after, reason,
        _half(dtype),
    )  # fmt: skip


def _attention_rows(
    recipe: Recipe, names: Sequence[str], model: nn.Module, architecture: Architecture, rows: Sequence[PlanRow]
) -> list[PlanRow]:
    """How the engine computes the attention of each block.

    names: of the modules that compute it. rows: of the linears.

    Raises:
        RecipeError: int8 is asked for, and the engine does not run the family.
    """
    config: Any = model.config
    if not names and recipe.attention == "int8":
        raise RecipeError(
            f"attention: int8 is for encoders on Bitwright's engine, and {config.model_type} is none of them; "
            "use auto or float"
        )
    found = []
    for block, name in enumerate(names):
        scheme, reason = attention_of(recipe, name)
        if scheme == "auto":
            scheme, reason = _auto_attention([row for row in rows if row.block == block])
        elif scheme == "int8" and not quantized_names(tuple(rows)):
            scheme, reason = "float", "no linear is quantized, and the engine runs only quantized models"
        heads = int(getattr(config, architecture.keys.heads))
        shape = (heads, int(getattr(config, architecture.keys.hidden_size)) // heads)
        method = "rtn" if scheme == "int8" else "cast"
        found.append(PlanRow(name, block, ATTENTION, name, shape, scheme, method, 0, 0, reason))
    return found


def _held_rows(model: nn.Module, architecture: Architecture, rows: Sequence[PlanRow]) -> list[PlanRow]:
    """What the engine holds of a language model that no file has: a head in int8, and keys and values."""
    name, config = architecture.head.outputs.get("text-generation", ""), cast(Any, model.config)
    head = model.get_submodule(name) if name and hasattr(model, name) else None
    if architecture.decoding is None or head is None:
        return []
    heads = int(getattr(config, architecture.keys.heads))
    size = int(getattr(config, "head_dim", None) or getattr(config, architecture.keys.hidden_size) // heads)
    cache = int(getattr(config, "num_key_value_heads", None) or heads), size

    def held(what: str, shape: tuple[int, int], reason: str) -> PlanRow:
        return PlanRow(f"engine: {what}", None, HELD, f"engine: {what}", shape, "int8", "rtn", 0, 0, reason)

    found = [
        held("cache", cache, "keys and values, with a scale for each token and head, unless kv_cache asks for more")
    ]
    if not any(row.name == name and row.scheme != "16bit" for row in rows):
        weight = head.weight
        assert isinstance(weight, torch.Tensor)
        reason = "rounded when the model is loaded, because other programs read the head in 16 bit only"
        found.insert(0, held("head", (weight.shape[0], weight.shape[1]), reason))
    return found


def _auto_attention(block: Sequence[PlanRow]) -> tuple[AttentionScheme, str]:
    """The scheme that `attention: auto` begins with, and the reason. block: the rows of one block."""
    inputs = [SCHEMES[row.scheme].input for row in block if row.role == "qkv"]
    if any(spec is None or spec.bits != 8 for spec in inputs):
        return "float", "its queries, keys and values come of linears without 8-bit inputs"
    if (why := native.load_error()) is not None:
        return "float", f"the native kernels are not available: {why}"
    return "int8", "its queries, keys and values come of linears with 8-bit inputs"


def _check_units(rows: list[PlanRow]) -> None:
    """Check that linears with the same input, which share its codes and transform, have one scheme and one method."""
    first: dict[str, PlanRow] = {}
    for row in rows:
        other = first.setdefault(row.unit, row)
        for what, one, two in (("scheme", other.scheme, row.scheme), ("method", other.method, row.method)):
            if one != two:
                raise RecipeError(
                    f"{other.name} ({one}) and {row.name} ({two}) read the same input, so they must have one "
                    f"{what}; write the rule for both, with match: {row.unit!r}"
                )
