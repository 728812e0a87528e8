"""`Recipe`: what the user asks for, as data. Written in YAML, or built from the options of the command line.

scheme: w8a8                     # what linears get that no rule names
rules:                           # the first that matches a linear decides; one that matches nothing is an error
  - {match: "encoder.layer.0.*", scheme: 16bit, reason: "first block"}
  - {role: head, scheme: 16bit}
embeddings: 16bit                # or int8
range: min_max                   # how a static activation range is chosen
calibration: {samples: 256, max_tokens: 256}
budget: {max_loss: 0.01}
"""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitwright.errors import RecipeError
from bitwright.models.architectures import LinearSite, Role
from bitwright.numerics.ranges import RANGES
from bitwright.numerics.spec import SCHEMES


class _Strict(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """Linears chosen by name or unit (shell pattern), by role, or both, and the scheme they get."""

    match: str | None = None
    role: Role | None = None
    scheme: str
    reason: str = ""

    @model_validator(mode="after")
    def _chooses_something(self) -> "Rule":
        if self.match is None and self.role is None:
            raise ValueError("a rule needs `match` (a name pattern) or `role`")
        return self

    def matches(self, site: LinearSite) -> bool:
        """Whether this rule speaks of `site`."""
        named = self.match is None or fnmatchcase(site.name, self.match) or fnmatchcase(site.unit, self.match)
        return named and self.role in (None, site.role)


class Calibration(_Strict):
    """The texts that static ranges are chosen on."""

    samples: int = Field(default=256, ge=1)
    max_tokens: int = Field(default=256, ge=2)
    batch_size: int = Field(default=16, ge=1)


class Budget(_Strict):
    """The loss, relative to the float model, that is allowed."""

    max_loss: float = Field(default=0.01, gt=0, lt=1)
    accept_point_estimate: bool = False


class Recipe(_Strict):
    """All that a run is asked to do with a model."""

    scheme: str = "w8a8"
    rules: tuple[Rule, ...] = ()
    embeddings: Literal["16bit", "int8"] = "16bit"
    range: str = "min_max"
    targets: tuple[str, ...] = ("bitwright", "transformers")
    calibration: Calibration = Calibration()
    budget: Budget = Budget()
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_are_known(self) -> "Recipe":
        for name in (self.scheme, *(rule.scheme for rule in self.rules)):
            if name not in SCHEMES:
                raise ValueError(f"scheme {name!r} is unknown{_nearest(name, SCHEMES)}; known: {', '.join(SCHEMES)}")
        if self.range not in RANGES:
            raise ValueError(
                f"range {self.range!r} is unknown{_nearest(self.range, RANGES)}; known: {', '.join(RANGES)}"
            )
        return self

    def with_fallback(self, units: tuple[str, ...], reason: str) -> "Recipe":
        """This recipe with `units` kept in 16 bit, ahead of all other rules."""
        kept = tuple(Rule(match=_literal(unit), scheme="16bit", reason=reason) for unit in units)
        return self.model_copy(update={"rules": kept + self.rules})


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML.

    Raises:
        RecipeError: unreadable, not YAML, an unknown key (the message names the nearest), or a value out of range.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found, mark = getattr(error, "problem", None) or error, getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{where}: is not YAML ({found})") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys such as `scheme` and `rules`, this is {data!r:.60}")
    return make_recipe(data, where=str(path))


def make_recipe(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check plain data and make a Recipe of it.

    Raises:
        RecipeError: as `read_recipe`.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        # An unknown key is the cause of most other complaints: a misspelt `scheme` is also a missing one.
        problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys_at(problem["loc"][:-1])
            hint = _nearest(str(problem["loc"][-1]), known)
            raise RecipeError(f"{where}: unknown key `{path}`{hint}; keys here: {', '.join(known)}") from None
        message = problem["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{where}: {f'`{path}`: ' if path else ''}{message}") from None


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that `read_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def scheme_of(recipe: Recipe, site: LinearSite) -> tuple[str, str]:
    """(scheme, reason) of one linear: the first rule that matches; else heads in 16 bit, others the default scheme."""
    for rule in recipe.rules:
        if rule.matches(site):
            chosen_by = f"match {rule.match!r}" if rule.match is not None else f"role {rule.role}"
            return rule.scheme, rule.reason or f"rule: {chosen_by}"
    if site.role == "head":
        return "16bit", "heads and poolers are small and read 2-D inputs, which other runtimes quantize differently"
    return recipe.scheme, "default scheme"


def check_rules(recipe: Recipe, sites: list[LinearSite]) -> None:
    """Refuse a rule that matches nothing in this model.

    Raises:
        RecipeError: names the rule and the nearest linear or unit.
    """
    names = [name for site in sites for name in (site.name, site.unit)]
    for rule in recipe.rules:
        if any(rule.matches(site) for site in sites):
            continue
        if rule.match is None:
            roles = ", ".join(sorted({site.role for site in sites}))
            raise RecipeError(f"rule for role {rule.role} matches nothing; this model has {roles}")
        raise RecipeError(
            f"rule {rule.match!r} matches none of the {len(sites)} linears{_nearest(rule.match, names)}; "
            "`bitwright quantize MODEL --dry-run` lists them"
        )


def _keys_at(path: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where pydantic found an unknown one."""
    models: dict[str, type[BaseModel]] = {"rules": Rule, "calibration": Calibration, "budget": Budget}
    model = models.get(str(path[0]), Recipe) if path else Recipe
    return list(model.model_fields)


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _literal(name: str) -> str:
    """A shell pattern that matches exactly `name`."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
