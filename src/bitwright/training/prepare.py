"""`prepare` a transformers model for training on its quantization grid, and `convert` what was trained.

plan = prepare(model, "w4a8_channel")
Trainer(model, …, callbacks=[delayed(model, after=0.1)]).train()
linears = convert(model)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bitwright.errors import InputError, RecipeError, named
from bitwright.families import architecture_of
from bitwright.models.sites import find_embeddings, find_linears
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.schemes import SCHEMES
from bitwright.plan import Plan, make_plan, quantized_names
from bitwright.recipe import Recipe, make_recipe, read_recipe
from bitwright.record import PlanRow
from bitwright.training.fake import FakeLinear, rounded_start
from bitwright.training.scale_rules import ScaleRule


def prepare(
    model: nn.Module, plan: Plan | Recipe | str | Path, *, start: Mapping[str, QuantizedLinear] | None = None,
    scale_rule: ScaleRule = "learned",
) -> Plan:  # fmt: skip
    """Put a `FakeLinear` in the place of every linear that the plan quantizes. Mutates `model`, whose parameters stay
    the same objects under the same names.

    Args:
        model: of transformers, or a module around one, such as a SentenceTransformer; in float32.
        plan: or a recipe, its path or name, or the name of a scheme, such as "w4a8_channel".
        start: what a method made of the linears, by their names in the transformers model; those that are not there are
            rounded to nearest.
        scale_rule: where scales come from (`scale_rules`).

    Returns:
        The plan.

    Raises:
        InputError: a linear that cannot be trained on its grid; the message names it and says why.
        RecipeError: a recipe that does not fit the model, or quantizes nothing.
    """
    inner = transformer_of(model)
    if not isinstance(plan, tuple):
        plan = plan_of(inner, plan)
    rows = [row for row in plan if row.name in quantized_names(plan)]
    if not rows:
        raise RecipeError("this plan quantizes no linear, so there is nothing to train; name a scheme below 16 bits")
    start = start or {}
    tied = _users(inner)
    for row in rows:
        _check(inner, row, start.get(row.name), tied)
    decodes = architecture_of(cast(Any, inner.config).model_type).decodes
    for row in rows:
        linear, scheme = inner.get_submodule(row.name), SCHEMES[row.scheme]
        assert isinstance(linear, nn.Linear)
        assert scheme.weight is not None
        with named(row.name):
            begin = start[row.name] if row.name in start else rounded_start(linear, scheme.weight, scheme.input)
            fake = FakeLinear(linear, begin, scale_rule=scale_rule, rounds_groups=decodes)
        inner.set_submodule(row.name, fake.train(linear.training))
    return plan


def convert(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantized linears of a prepared model, by their names in the transformers model. Mutates `model`: each
    becomes a plain linear again, whose weight is what its codes stand for.

    Raises:
        InputError: the model has none. NumericsError: NaN or infinity in a weight; the message names it.
    """
    inner, made = transformer_of(model), {}
    for name, module in fake_linears(inner):
        with named(name):
            made[name] = module.quantized()
    if not made:
        raise InputError("this model has no linear in training; call prepare(model, scheme) first")
    for name, quantized in made.items():
        old = inner.get_submodule(name)
        weight_NK, bias_N = quantized.effective()
        linear = nn.Linear(weight_NK.shape[1], weight_NK.shape[0], bias=bias_N is not None, device="meta")
        linear.weight = nn.Parameter(weight_NK)
        if bias_N is not None:
            linear.bias = nn.Parameter(bias_N)
        inner.set_submodule(name, linear.train(old.training))
    return made


def fake_linears(model: nn.Module) -> Iterator[tuple[str, FakeLinear]]:
    """The linears in training, with their names."""
    return ((name, module) for name, module in list(model.named_modules()) if isinstance(module, FakeLinear))


def set_blend(model: nn.Module, blend: float) -> None:
    """Let all linears in training compute in float (0), on their grids (1), or between. Mutates `model`."""
    for _, module in fake_linears(model):
        module.blend = blend


def transformer_of(model: nn.Module) -> nn.Module:
    """The transformers model in a module, which may be it.

    Raises:
        InputError: there is none.
    """
    for module in model.modules():
        if hasattr(type(module), "base_model_prefix") and hasattr(
            module, "config"
        ):  # what is around one may hand it on
            return module
    raise InputError(f"{type(model).__name__} holds no transformers model; prepare takes one, or a module around one")


def plan_of(model: nn.Module, recipe: Recipe | str | Path) -> Plan:
    """The plan that a recipe, or a scheme for all linears, gives for a transformers model in memory.

    Raises:
        RecipeError: as `make_plan`, `read_recipe`. ModelError: a model whose linears are not where its family has them.
    """
    if isinstance(recipe, str) and recipe in SCHEMES:
        recipe = make_recipe({"scheme": recipe}, where="the scheme given")
    elif not isinstance(recipe, Recipe):
        recipe = read_recipe(Path(recipe))
    architecture = architecture_of(cast(Any, model.config).model_type)
    modules = dict(model.named_modules())

    def dtype_of(name: str) -> torch.dtype:
        return cast(nn.Linear, modules[name]).weight.dtype

    sites = find_linears(model, architecture)
    recipe = recipe.model_copy(update={"targets": None})
    return make_plan(
        recipe, model, architecture, sites, find_embeddings(model, architecture), dtype_of, generates=False
    )


def _users(model: nn.Module) -> dict[int, list[str]]:
    """By parameter: the modules that have it."""
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(name)
    return users


def _check(model: nn.Module, row: PlanRow, start: QuantizedLinear | None, users: Mapping[int, list[str]]) -> None:
    """Raises:
    InputError: a linear cannot be trained on its grid.
    """
    linear, scheme = model.get_submodule(row.name), SCHEMES[row.scheme]
    if isinstance(linear, FakeLinear):
        raise InputError(f"{row.name}: it is in training already; call convert(model) before another prepare")
    if not isinstance(linear, nn.Linear):
        raise InputError(f"{row.name}: cannot be trained: {type(linear).__name__} is no linear")
    if linear.weight.is_meta or linear.weight.dtype != torch.float32:
        have = "no values" if linear.weight.is_meta else f"{linear.weight.dtype} weights"
        raise InputError(f"{row.name}: cannot be trained: it has {have}; load the model in float32")
    others = [name for name in users[id(linear.weight)] if name != row.name]
    if others:
        raise InputError(
            f"{row.name}: cannot be trained: {others[0]} has the same weight, which would be rounded too; keep it in "
            f"16 "
            f'bit, with the rule {{match: "{row.name}", scheme: 16bit}}'
        )
    if start is None and scheme.input is not None and not scheme.input.dynamic:
        raise InputError(
            f"{row.name}: cannot be trained: {row.scheme} needs calibrated input scales to start from; use "
            "`bitwright train`, or a scheme with scales at run time, such as w8a8"
        )
    if start is not None and start.weight.minimum_NG is not None:
        raise InputError(f"{row.name}: cannot be trained: its grid has minima; use a scheme with zero points")
    if start is not None and start.shape != tuple(linear.weight.shape):
        raise InputError(
            f"{row.name}: its weight is {tuple(linear.weight.shape)}, but the start is {start.shape}; take the start "
            f"of "
            "this model"
        )
