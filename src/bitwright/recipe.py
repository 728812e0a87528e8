"""`Recipe`: what the user asks for, as data. Written in YAML, or built from the options of the command line.

scheme: w4a16                    # what linears get that no rule names
method: gptq                     # how their codes are chosen; `auto` lets the measured model decide
rules:                           # the first that matches a linear decides; one that matches nothing is an error
  - {match: "encoder.layer.0.*", scheme: 16bit, reason: "first block"}
  - {role: ffn, scheme: w8a8, method: smoothquant}
  - {role: head, scheme: 16bit}
embeddings: 16bit                # or int8
attention: auto                  # on our engine: int8, float; auto takes int8 where it costs next to nothing
range: min_max                   # how a static activation range is chosen
weight_range: mse                # how a weight's range is chosen; by default as the method says
targets: [bitwright, vllm]       # runtimes that must load the result; by default ours, and transformers if it can
options: {alpha: search}         # of the methods and of the ranges
calibration: {samples: 128, max_tokens: 512}
polish: {tokens: 65536}          # or true: train scales and norms after rounding, with the float model as teacher
budget: {max_loss: 0.01}         # with goal: smallest instead of schemes, the search chooses them
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bitwright.errors import RecipeError
from bitwright.families import Role
from bitwright.files.yaml_file import complaint, nearest, read_mapping
from bitwright.methods import METHODS, Alpha
from bitwright.models.sites import LinearSite
from bitwright.numerics.least_error import LEAST_CLIP
from bitwright.numerics.ranges import PERCENT, RANGES, RangeFunction, range_named
from bitwright.numerics.schemes import SCHEMES, scheme_families
from bitwright.record import PlanRow

AUTO = "auto"  # the method that lets the decision engine choose
SHIPPED = Path(__file__).parent / "recipes"  # a comment in each says when to use it
FLOAT = "16bit"
AttentionScheme = Literal["int8", "float"]
AttentionChoice = Literal["auto", "int8", "float"]
DEFAULT_TARGETS = ("bitwright", "transformers")
_HEADS_STAY = "a head or pooler: it is small, and in 8 bits other programs would give other results"


class _Strict(BaseModel):
    """A base model that is immutable and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """Linears chosen by name or unit (shell pattern), by role, or both, and the scheme or the method they get.

    range: how a static activation range is chosen for them. attention: how the attention is computed whose module
    `match` names.
    """

    match: str | None = None
    role: Role | None = None
    scheme: str | None = None
    method: str | None = None
    range: str | None = None
    attention: AttentionScheme | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _chooses_something(self) -> "Rule":
        if self.match is None and self.role is None:
            raise ValueError("a rule needs `match` (a name pattern) or `role`")
        if not self.is_for_linears and self.attention is None:
            raise ValueError("a rule needs `scheme`, `method`, `range` or several of them, or `attention`")
        if self.attention is not None and self.match is None:
            raise ValueError("a rule with `attention` needs `match`, because a role is one of linears")
        return self

    @property
    def is_for_linears(self) -> bool:
        """Whether it says something of linears."""
        return (self.scheme, self.method, self.range) != (None, None, None)

    def matches_attention(self, name: str) -> bool:
        """Whether this rule says how the attention of this name is computed."""
        return self.attention is not None and self.match is not None and fnmatchcase(name, self.match)

    def matches(self, site: LinearSite | PlanRow) -> bool:
        """Whether this rule matches `site`."""
        named = self.match is None or fnmatchcase(site.name, self.match) or fnmatchcase(site.unit, self.match)
        return named and self.role in (None, site.role)


class Mix(_Strict):
    """How many built-in texts of each kind methods look at, relative to the other kinds."""

    documentation: int = Field(default=1, ge=0, le=100)
    encyclopaedia: int = Field(default=1, ge=0, le=100)
    reviews: int = Field(default=1, ge=0, le=100)
    code: int = Field(default=1, ge=0, le=100)

    @model_validator(mode="after")
    def _leaves_some(self) -> "Mix":
        if not any(self.model_dump().values()):
            raise ValueError("every kind counts 0, so no text is left; give one of them a larger number")
        return self


class Calibration(_Strict):
    """The texts that methods look at: whole texts for encoders, windows of running text for language models.

    mix: of built-in texts; by default as many of each kind as there are.
    """

    samples: int = Field(default=256, ge=1)
    max_tokens: int = Field(default=256, ge=2)
    batch_size: int = Field(default=16, ge=1)
    mix: Mix | None = None


class Polish(_Strict):
    """The training of scales and norms after rounding.

    tokens: of text that is trained on in each epoch; an eighth as many more choose among the steps. epochs: passes over
    it. learning_rate: the largest step of a 4-bit scale, relative to it, of 3 bits twice that; None takes 0.002. top:
    the most likely tokens of the float language model that are kept for each position.
    """

    tokens: int = Field(default=65536, ge=256)
    epochs: int = Field(default=2, ge=1, le=100)
    learning_rate: float | None = Field(default=None, gt=0, lt=0.1)
    top: int = Field(default=256, ge=1, le=1 << 16)


class Options(_Strict):
    """Options of the methods.

    alpha: SmoothQuant's exponent, or "search" by the block's output error; None takes 0.4 for dynamic inputs, and
    searches by the expected error for static ones. act_order: GPTQ rounds the columns with the largest inputs first.
    damping: of GPTQ's Gram matrix, relative to its mean diagonal. sequential: observe again after each shared input of
    a block, instead of once per block. mismatch: the share of what earlier layers' rounding did to a linear's inputs
    that GPTQ makes up for; it observes sequentially. loss_groups: so many groups of a linear's outputs get a Gram
    matrix of their own in GPTQ, weighted by the gradients of the loss; 0 weighs nothing. bias_correction: add the mean
    output error to biases. percent: of the values that the percentile range keeps. clip: the least share of a group's
    range that AWQ's clipping tries.
    """

    alpha: Alpha = None
    act_order: bool = True
    damping: float = Field(default=0.01, gt=0, lt=1)
    sequential: bool = False
    mismatch: float = Field(default=0.0, ge=0, le=1)
    loss_groups: int = Field(default=0, ge=0, le=64)
    bias_correction: bool = False
    percent: float = Field(default=PERCENT, gt=50, le=100)
    clip: float = Field(default=LEAST_CLIP, ge=0.05, le=1)

    @property
    def observes_again(self) -> bool:
        """Whether inputs are observed again after each shared input of a block. Without that, every linear of a block
        would make up for the same mismatch, which those before it have made up for already."""
        return self.sequential or self.mismatch > 0

    def range(self, name: str) -> RangeFunction:
        """The range of this name, with its options bound."""
        return range_named(name, percent=self.percent, clip=self.clip)

    @model_validator(mode="after")
    def _alpha_is_a_share(self) -> "Options":
        if isinstance(self.alpha, float) and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: give a number from 0 to 1, or search")
        return self


class Budget(_Strict):
    """The loss, relative to the float model, that is allowed; and how many times as fast as the faster of float32 and
    bf16 the result should be.

    goal: "smallest", the fewest bytes inside that loss, for which the search chooses the schemes; None carries out the
    schemes that the recipe names.
    """

    max_loss: float = Field(default=0.01, gt=0, lt=1)
    accept_point_estimate: bool = False
    min_speedup: float | None = Field(default=None, gt=0, le=100)
    goal: Literal["smallest"] | None = None


class Recipe(_Strict):
    """Everything that a run shall do with a model.

    attention: how the engine computes attention where no rule says it; other runtimes compute it in float. "auto" is
    int8 in each block whose queries, keys and values come of linears with int8 inputs, if measuring shows that it costs
    next to nothing (`search/attention.py`).
    targets: None stands for those of `DEFAULT_TARGETS` that can load the result; a plan names them.
    polish: None trains nothing; true in its place stands for the defaults.
    """

    scheme: str = "w8a8"
    method: str = "rtn"
    rules: tuple[Rule, ...] = ()
    embeddings: Literal["16bit", "int8"] = "16bit"
    attention: AttentionChoice = "auto"
    range: str = "min_max"
    weight_range: str | None = None
    options: Options = Options()
    targets: tuple[str, ...] | None = None
    calibration: Calibration = Calibration()
    polish: Polish | None = None
    budget: Budget = Budget()
    seed: int = Field(default=0, ge=0)

    @field_validator("polish", mode="before")
    @classmethod
    def _polish_by_default(cls, value: Any) -> Any:
        return (Polish() if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _names_are_known(self) -> "Recipe":
        known: dict[str, Collection[str]] = {"scheme": SCHEMES, "method": [*METHODS, AUTO], "range": RANGES}
        used = [("scheme", self.scheme), ("method", self.method), ("range", self.range), ("range", self.weight_range)]
        used += [(kind, getattr(rule, kind)) for rule in self.rules for kind in known]
        for kind, name in used:
            if name is not None and name not in known[kind]:
                words = ", ".join(known[kind]) if kind != "scheme" else ", ".join(scheme_families())
                raise ValueError(f"{kind} {name!r} is unknown{nearest(name, known[kind])}; known: {words}")
        return self

    def with_fallback(self, units: tuple[str, ...], reason: str, scheme: str = FLOAT) -> "Recipe":
        """This recipe with first rules that give `units` a scheme with more bits, rounded to nearest."""
        method = None if scheme == FLOAT else "rtn"
        return self.with_rules(
            [Rule(match=_literal(unit), scheme=scheme, method=method, reason=reason) for unit in units]
        )

    def with_rules(self, first: Sequence[Rule]) -> "Recipe":
        """This recipe with further rules before its own."""
        return self.model_copy(update={"rules": (*first, *self.rules)})


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML. path: of a file, or the name of a recipe that Bitwright brings ("llm-int4").

    Raises:
        RecipeError: unreadable, not YAML, an unknown key (the message names the nearest), or a value out of range.
    """
    names = shipped_recipes()
    if str(path) in names and not path.exists():
        path = names[str(path)]
    what = "a recipe must be a mapping of keys such as `scheme` and `rules`"
    hint = "" if path.suffix else f", and no recipe has this name{nearest(str(path), names)}"
    return make_recipe(read_mapping(path, what, RecipeError, hint=hint), where=str(path))


def shipped_recipes() -> dict[str, Path]:
    """The recipes that Bitwright brings, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.yaml"), key=lambda file: file.stem)}


def make_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain data and make a Recipe of it.

    Raises:
        RecipeError: as `read_recipe`.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(complaint(error, where, _keys_at)) from None


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `read_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def scheme_of(recipe: Recipe, site: LinearSite) -> tuple[str, str, str]:
    """(scheme, method, reason) of one linear: of each the first rule that matches and names one, else the default's.
    Heads that no rule names stay in 16 bit.
    """
    rules = [rule for rule in recipe.rules if rule.matches(site)]
    by_scheme = next((rule for rule in rules if rule.scheme is not None), None)
    by_method = next((rule for rule in rules if rule.method is not None), None)
    method = by_method.method if by_method and by_method.method else recipe.method
    if by_scheme is None or by_scheme.scheme is None:
        if site.role == "head":
            return FLOAT, "cast", _HEADS_STAY
        reason = "the default of the recipe" if by_method is None else _why(by_method)
        return recipe.scheme, method, reason
    return by_scheme.scheme, method if by_scheme.scheme != FLOAT else "cast", _why(by_scheme)


def range_of(recipe: Recipe, site: LinearSite | PlanRow) -> str:
    """How the static activation range of a linear is chosen: by the first rule that matches and names a range, else as
    the recipe says."""
    named = (rule.range for rule in recipe.rules if rule.range is not None and rule.matches(site))
    return next(named, recipe.range)


def float_attention_rule(name: str, reason: str) -> Rule:
    """The rule that has the attention of this name computed in float."""
    return Rule(match=_literal(name), attention="float", reason=reason)


def attention_of(recipe: Recipe, name: str) -> tuple[AttentionChoice, str]:
    """(scheme, reason) of the attention of one block, by the name of its module: of the first rule that matches, else
    the recipe's."""
    rule = next((rule for rule in recipe.rules if rule.matches_attention(name)), None)
    if rule is None or rule.attention is None:
        return recipe.attention, "as asked"
    return rule.attention, _why(rule)


def _why(rule: Rule) -> str:
    chosen_by = f"match {rule.match!r}" if rule.match is not None else f"role {rule.role}"
    return rule.reason or f"rule: {chosen_by}"


def check_rules(recipe: Recipe, sites: list[LinearSite], attention: Sequence[str] = ()) -> None:
    """Refuse a rule that matches nothing in this model. attention: names of the modules that compute it.

    Raises:
        RecipeError: names the rule and the nearest linear, unit or attention.
    """
    names = [name for site in sites for name in (site.name, site.unit)]
    for rule in recipe.rules:
        if rule.match is not None and rule.attention is not None and not any(map(rule.matches_attention, attention)):
            if not attention:
                raise RecipeError(
                    f"the rule {rule.match!r} says how attention is computed, but Bitwright's engine does not run this "
                    "model; leave `attention` out of the rule"
                )
            raise RecipeError(
                f"the rule {rule.match!r} (attention: {rule.attention}) matches the attention of none of the "
                f"{len(attention)} blocks{nearest(rule.match, attention)}; that of the first is {attention[0]}"
            )
        if not rule.is_for_linears or any(rule.matches(site) for site in sites):
            continue
        if rule.match is None:
            roles = ", ".join(sorted({site.role for site in sites}))
            raise RecipeError(f"the rule for role {rule.role} matches nothing; this model has {roles}")
        raise RecipeError(
            f"the rule {rule.match!r} matches none of the {len(sites)} linears{nearest(rule.match, names)}; "
            "`bitwright quantize MODEL --dry-run` lists them"
        )


def _keys_at(path: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where pydantic found an unknown one."""
    models: dict[str, type[BaseModel]] = {
        "rules": Rule, "calibration": Calibration, "polish": Polish, "budget": Budget, "options": Options
    }  # fmt: skip
    model = Mix if path[1:2] == ("mix",) else models.get(str(path[0]), Recipe) if path else Recipe
    return list(model.model_fields)


def _literal(name: str) -> str:
    """A shell pattern that matches exactly `name`."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
