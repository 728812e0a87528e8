"""What a tuner may choose in a recipe: the parameters that matter for it, and a configuration as a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitwright.methods import METHODS
from bitwright.numerics.schemes import Scheme
from bitwright.recipe import Mix, Recipe, Rule
from bitwright.search.tuning.space import Config, Parameter, Space, Value, completed

EVEN = "even"  # as many calibration texts of each kind
_MOST = 3  # texts of the kind that there is most of, for one of the others
_SEARCH = "search"

# Linears whose static ranges are chosen alike, by their roles.
_RANGE_GROUPS: dict[str, tuple[str, ...]] = {
    "range_attention": ("qkv", "attention_output"), "range_ffn": ("ffn", "expert")
}  # fmt: skip
_LOOKS_AT_TEXT: dict[str, tuple[Value, ...]] = {
    "transform": ("smoothquant", "shift", "awq"), "rounding": ("gptq",), "weight_range": ("imatrix", "awq_clip"),
    "bias_correction": (True,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What the parameters depend on beside the recipe.

    schemes: of the linears that are quantized. roles: of those. groups: units that may be kept in 16 bit together, the
    most sensitive first; none where the budget has no room for them. sampled, mixed: whether the number of calibration
    texts and the share of their kinds may be chosen. biased: whether linears have biases.
    """

    schemes: tuple[Scheme, ...]
    roles: frozenset[str]
    groups: tuple[tuple[str, ...], ...] = ()
    sampled: bool = True
    mixed: bool = True
    biased: bool = True


def recipe_space(recipe: Recipe, facts: Facts) -> Space:
    """The parameters that matter for a recipe, with what it does as their defaults."""
    inputs = [scheme.input for scheme in facts.schemes if scheme.input is not None]
    static = any(not spec.dynamic for spec in inputs)
    low_bits = any(scheme.weight is not None and scheme.weight.bits < 8 for scheme in facts.schemes)
    method = METHODS[recipe.method]
    transforms = ["none", *(["smoothquant"] if inputs else []), *(["awq"] if low_bits else [])]
    options, settings = recipe.options, recipe.calibration
    alpha = _SEARCH if options.alpha is None else options.alpha
    found = [
        _parameter("transform", transforms, method.transform or "none"),
        _parameter("alpha", (_SEARCH, 0.3, 0.4, 0.5, 0.6, 0.7), alpha, {"transform": ("smoothquant", "shift")}),
        _parameter("rounding", ("rtn", "gptq"), method.rounding, {"transform": ("none", "smoothquant", "awq")}),
        _parameter("act_order", (False, True), options.act_order, {"rounding": ("gptq",)}),
        _parameter("damping", (0.003, 0.01, 0.03, 0.1), options.damping, {"rounding": ("gptq",)}),
        _parameter(
            "weight_range", ("min_max", "mse", "imatrix", *(["awq_clip"] if low_bits else [])),
            recipe.weight_range or method.range,
        ),
        _parameter("clip", (0.55, 0.7, 0.85, 0.95), options.clip, {"weight_range": ("awq_clip",)}),
    ]  # fmt: skip
    if facts.biased:
        found.append(_parameter("bias_correction", (False, True), options.bias_correction))
    if static:
        names = [name for name, roles in _RANGE_GROUPS.items() if facts.roles.intersection(roles)]
        ranges = ("min_max", "percentile", "mse", "entropy", "moving_average")
        found += [_parameter(name, ranges, recipe.range) for name in names]
        percents = (99.0, 99.9, 99.99, 99.999)
        found.append(_parameter("percent", percents, options.percent, dict.fromkeys(names, ("percentile",))))
    when = {} if static else _LOOKS_AT_TEXT
    if facts.sampled:
        found.append(_parameter("samples", (32, 64, 128, 256, 512), settings.samples, when))
    if facts.mixed and settings.mix is None:
        found.append(_parameter("mix", (EVEN, *Mix.model_fields), EVEN, when))
    found += [_parameter(f"keep_{number}", (False, True), False) for number in range(len(facts.groups))]
    return tuple(found)


def manual_config(space: Space) -> Config:
    """What a person may try first: percentile 99.99, α = 0.5, 256 texts."""
    by_name = {parameter.name: parameter for parameter in space}
    wanted: dict[str, Value] = {
        "transform": "smoothquant", "alpha": 0.5, "range_attention": "percentile", "range_ffn": "percentile",
        "percent": 99.99, "samples": 256,
    }  # fmt: skip
    return completed(
        space, {name: value for name, value in wanted.items() if name in by_name and value in by_name[name].choices}
    )


def as_recipe(recipe: Recipe, space: Space, config: Config, facts: Facts) -> Recipe:
    """The recipe with a configuration of its space. The default configuration is the recipe itself."""
    if config == completed(space, {}):
        return recipe
    options = {name: config[name] for name in ("act_order", "damping", "clip", "bias_correction", "percent", "alpha")
               if name in config}  # fmt: skip
    settings: dict[str, Any] = {"samples": config["samples"]} if "samples" in config else {}
    if (kind := config.get("mix", EVEN)) != EVEN:
        settings["mix"] = Mix.model_validate({kind: _MOST})
    changed = recipe.model_copy(
        update={
            "method": _method(config),
            "weight_range": config["weight_range"],
            "options": recipe.options.model_copy(update=options),
            "calibration": recipe.calibration.model_copy(update=settings),
        }
    )
    changed = changed.model_copy(update={"rules": (*changed.rules, *_range_rules(recipe, config, facts.roles))})
    kept = [facts.groups[number] for number in range(len(facts.groups)) if config.get(f"keep_{number}")]
    units = tuple(unit for group in kept for unit in group)
    return changed.with_fallback(units, "kept in 16 bit by the tuner") if units else changed


def sensitivity_groups(ranked: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Units in groups of 1, 2 and 4, the most sensitive first."""
    return tuple(group for start, end in ((0, 1), (1, 3), (3, 7)) if (group := tuple(ranked[start:end])))


def _method(config: Config) -> str:
    transform, rounding = config["transform"], config.get("rounding", "rtn")
    wanted = (None if transform == "none" else transform, rounding)
    return next(name for name, method in METHODS.items() if (method.transform, method.rounding) == wanted)


def _range_rules(recipe: Recipe, config: Config, roles_here: frozenset[str]) -> list[Rule]:
    """A rule for each role of the model, behind the recipe's own."""
    return [
        Rule.model_validate({"role": role, "range": config[name], "reason": "chosen by the tuner"})
        for name, roles in _RANGE_GROUPS.items()
        if config.get(name, recipe.range) != recipe.range
        for role in roles
        if role in roles_here
    ]


def _parameter(
    name: str, choices: Sequence[Value], default: Value, when: Mapping[str, tuple[Value, ...]] | None = None
) -> Parameter:
    """A parameter whose default is one of its choices."""
    merged = tuple(choices) if default in choices else (*choices, default)
    numbers = all(isinstance(choice, int | float) for choice in merged)
    return Parameter(name, tuple(sorted(merged)) if numbers else merged, default, when or {})
