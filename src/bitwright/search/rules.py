"""Turns a method per linear into a recipe with few rules."""

import re
from collections.abc import Mapping, Sequence

from bitwright.models.sites import LinearSite
from bitwright.recipe import AUTO, Recipe, Rule, scheme_of


def with_methods(recipe: Recipe, wanted: Mapping[str, tuple[str, str]], sites: Sequence[LinearSite]) -> Recipe:
    """The recipe with methods in place of `auto`: a default, and rules ahead of all others for what differs from it.

    wanted: (method, reason) of every linear that was open. No rule touches another linear.
    """
    counts: dict[str, int] = {}
    for method, _ in wanted.values():
        counts[method] = counts.get(method, 0) + 1
    default = max(counts, key=lambda method: counts[method], default="rtn")
    base = with_method(recipe, default)
    rules: list[Rule] = []
    done: set[str] = set()
    for site in sites:
        if site.name not in wanted or site.name in done or scheme_of(base, site)[1] == wanted[site.name][0]:
            continue
        method = wanted[site.name][0]
        alike = {name for name, (other, _) in wanted.items() if other == method}
        tried = [(rule, [other.name for other in sites if rule.matches(other)]) for rule in _rules_for(site, method)]
        rule, covered = next((rule, covered) for rule, covered in tried if alike.issuperset(covered))
        rules.append(rule.model_copy(update={"reason": _common([wanted[name][1] for name in covered])}))
        done |= set(covered)
    return base.model_copy(update={"rules": (*rules, *base.rules)})


def with_method(recipe: Recipe, method: str) -> Recipe:
    """The recipe with one method wherever it says `auto`."""

    def named(found: str | None) -> str | None:
        return method if found == AUTO else found

    rules = tuple(rule.model_copy(update={"method": named(rule.method)}) for rule in recipe.rules)
    return recipe.model_copy(update={"rules": rules, "method": named(recipe.method)})


def _rules_for(site: LinearSite, method: str) -> tuple[Rule, ...]:
    """Rules for a linear, the widest first: its role, its place in every block, its unit, itself."""
    everywhere = re.sub(r"(?<=\.)\d+(?=\.)", "*", site.name)
    return (
        Rule(role=site.role, method=method),
        *(Rule(match=pattern, method=method) for pattern in (everywhere, site.unit, site.name)),
    )


def _common(reasons: Sequence[str]) -> str:
    """One reason for linears that share a rule: the most frequent, with how many it speaks for."""
    if len(set(reasons)) == 1:
        return reasons[0]
    return f"{reasons[0]} (the first of {len(reasons)} linears)"
