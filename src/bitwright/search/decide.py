"""Which method for which linears: from what was measured of a model to a recipe, with the evidence and what was
rejected. Nothing here touches a model or a tensor.

In this order, for every unit (linears that share an input) that the recipe leaves to `method: auto`:

  1. Too large: if calibration would take more time or memory than there is, everything is rounded to nearest.
  2. Robust: where rounding to nearest leaves no more error than the budget tolerates, it is enough.
  3. Else the method with the least error that is expected from the unit's weights and inputs, or one that takes less
     work and does about as well: smoothing where the inputs' long tails are what costs, scaling and compensation where
     the weights are.

Units that come out alike share a rule. A method that the recipe names stays.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitwright.methods import METHODS
from bitwright.models.architectures import LinearSite
from bitwright.numerics.spec import SCHEMES
from bitwright.recipe import AUTO, Recipe, Rule, scheme_of
from bitwright.search.cost import Cost, Resources
from bitwright.search.features import COMPARED, Features, candidates


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers that decide, and where each comes from.

    loss_per_squared_error: the model's loss for a mean squared relative error of its linears' outputs.
    robust_share: how much of the budget rounding to nearest may use up before more is done.
    worth: the least gain in error that pays for more work.
    memory_share: of the memory there is, what a calibration may plan with: the estimate leaves out what libraries take.
    long_tail, long_channel: from which a tail, or the ratio of the largest channel, is called long in a reason.
    """

    loss_per_squared_error: float = 40.0
    robust_share: float = 0.25
    worth: float = 0.03
    memory_share: float = 0.8
    long_tail: float = 8.0
    long_channel: float = 8.0


THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Choice:
    """The method of one unit, with the errors that were expected of all that could be had, and why it is this one."""

    unit: str
    role: str
    block: int | None
    scheme: str
    method: str
    expected: Mapping[str, float]
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A method that no unit got, and the numbers that spoke against it."""

    method: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and on what grounds.

    recipe: the one asked for, with `auto` resolved. reason: of the decision as a whole. tolerable: relative error of a
    linear's outputs that the budget allows. overruled: linears whose method the recipe itself names.
    """

    recipe: Recipe
    reason: str
    tolerable: float
    choices: tuple[Choice, ...]
    rejected: tuple[Rejected, ...]
    features: tuple[Features, ...]
    cost: Cost
    resources: Resources
    overruled: int


def tolerable_error(max_loss: float, thresholds: Thresholds = THRESHOLDS) -> float:
    """The relative error of the linears' outputs that uses up `robust_share` of the loss allowed."""
    return math.sqrt(max_loss * thresholds.robust_share / thresholds.loss_per_squared_error)


def too_expensive(cost: Cost, resources: Resources, thresholds: Thresholds = THRESHOLDS) -> str:
    """Why a calibration cannot be paid for; "" if it can."""
    room = thresholds.memory_share * resources.memory_bytes
    if cost.memory_bytes > room:
        return (
            f"calibration takes about {cost.memory_bytes / 1e9:.1f} GB of memory, of which {room / 1e9:.1f} GB "
            "can be planned with"
        )
    if cost.seconds > resources.seconds:
        return (
            f"calibration takes about {_duration(cost.seconds)} ({cost.flops / 1e12:.0f} TFLOP at "
            f"{resources.flops_per_second / 1e9:.0f} GFLOP/s), and {_duration(resources.seconds)} are allowed"
        )
    return ""


def decide(
    features: Sequence[Features],
    recipe: Recipe,
    sites: Sequence[LinearSite],
    *,
    cost: Cost,
    resources: Resources,
    thresholds: Thresholds = THRESHOLDS,
) -> Decision:
    """Resolve `method: auto` of a recipe.

    Args:
        features: of every unit that has to be decided; () where a calibration cannot be paid for, which is then known
            without them.
        recipe: its scheme, budget, targets and rules hold; methods that it names do too.
        sites: all linears of the model.
        cost: of calibrating as the recipe says. resources: what there is.
    """
    tolerable = tolerable_error(recipe.budget.max_loss, thresholds)
    open_sites = [site for site in sites if _is_open(recipe, site)]
    overruled = sum(SCHEMES[scheme_of(recipe, site)[0]].weight is not None for site in sites) - len(open_sites)
    expensive = too_expensive(cost, resources, thresholds)
    if expensive or not open_sites:
        wanted = {site.name: ("rtn", expensive) for site in open_sites}
        choices = tuple(Choice(f.unit, f.role, f.block, f.scheme, "rtn", f.expected, expensive) for f in features)
        others = {name for site in open_sites for name in _candidates(recipe, site)} - {"rtn"}
        rejected = tuple(Rejected(name, expensive) for name in sorted(others, key=COMPARED.index))
        reason = f"rtn for everything: {expensive}" if open_sites else "the recipe names every method itself"
        return Decision(
            _resolved(recipe, wanted, sites), reason, tolerable, choices, rejected, tuple(features), cost, resources,
            overruled,
        )  # fmt: skip
    portable = any(target != "bitwright" for target in recipe.targets)
    choices = tuple(_choose(unit, tolerable, portable, thresholds) for unit in features)
    by_name = {
        site.name: choice for unit, choice in zip(features, choices, strict=True) for site in unit.sites
    }  # fmt: skip
    wanted = {site.name: (by_name[site.name].method, by_name[site.name].reason) for site in open_sites}
    return Decision(
        _resolved(recipe, wanted, sites), _summary(choices, tolerable), tolerable, choices,
        _rejected(features, choices, tolerable, portable), tuple(features), cost, resources, overruled,
    )  # fmt: skip


def _is_open(recipe: Recipe, site: LinearSite) -> bool:
    scheme, method, _ = scheme_of(recipe, site)
    return method == AUTO and SCHEMES[scheme].weight is not None


def _candidates(recipe: Recipe, site: LinearSite) -> tuple[str, ...]:
    return candidates(SCHEMES[scheme_of(recipe, site)[0]])


def _choose(unit: Features, tolerable: float, portable: bool, thresholds: Thresholds) -> Choice:
    """The method of one unit. portable: whether a transform must fold, since other runtimes cannot apply it."""
    allowed = {name: error for name, error in unit.expected.items() if not _unreadable(unit, name, portable)}
    least = min(allowed.values())
    enough = max(tolerable, least / (1 - thresholds.worth))
    method = min((name for name, error in allowed.items() if error <= enough), key=COMPARED.index)
    return Choice(
        unit.unit, unit.role, unit.block, unit.scheme, method, dict(unit.expected),
        _why(unit, method, tolerable, thresholds),
    )  # fmt: skip


def _unreadable(unit: Features, method: str, portable: bool) -> bool:
    return portable and METHODS[method].transform is not None and not unit.foldable


def _why(unit: Features, method: str, tolerable: float, thresholds: Thresholds) -> str:
    """The reason of one choice, in the words of what was measured."""
    rtn, error = unit.expected["rtn"], unit.expected[method]
    if method == "rtn":
        if rtn <= tolerable:
            return f"robust: rounding to nearest moves outputs by {_percent(rtn)}, {_percent(tolerable)} is tolerable"
        return f"nothing gains {_percent(thresholds.worth)} on the {_percent(rtn)} that rounding to nearest leaves"
    causes = []
    if METHODS[method].transform is not None:
        long = unit.tail >= thresholds.long_tail or unit.channel_ratio >= thresholds.long_channel
        what = "long-tailed inputs" if long else "inputs of uneven size"
        causes.append(f"{what} (largest feature {unit.channel_ratio:.0f} × the median one)")
    if METHODS[method].rounding == "gptq":
        causes.append(f"sensitive weights (INT4 moves outputs by {_percent(unit.error_int4)})")
    return f"{' and '.join(causes)}: {_percent(error)} expected, {_percent(rtn)} by rounding to nearest"


def _summary(choices: Sequence[Choice], tolerable: float) -> str:
    counts: dict[str, int] = {}
    for choice in choices:
        counts[choice.method] = counts.get(choice.method, 0) + 1
    parts = sorted(counts.items(), key=lambda item: -item[1])
    words = ", ".join(f"{method} for {count}" for method, count in parts)
    before, after = (_rms([c.expected[name or c.method] for c in choices]) for name in ("rtn", ""))
    return (
        f"{words} of {len(choices)} sets of linears: rounding to nearest moves their outputs by {_percent(before)}, "
        f"this by {_percent(after)}; {_percent(tolerable)} is tolerable"
    )


def _rejected(
    features: Sequence[Features], choices: Sequence[Choice], tolerable: float, portable: bool
) -> tuple[Rejected, ...]:
    """Methods that no unit got."""
    chosen = {choice.method for choice in choices}
    ours = _rms([choice.expected[choice.method] for choice in choices])
    found = []
    for method in sorted({name for unit in features for name in unit.expected} - chosen, key=COMPARED.index):
        of_this = [unit for unit in features if method in unit.expected]
        barred = sum(_unreadable(unit, method, portable) for unit in of_this)
        error = _rms([unit.expected[method] for unit in of_this])
        if barred:
            why = (
                f"{barred} of {len(of_this)} units would need their inputs transformed at run time, which only the "
                f"target bitwright does ({_percent(error)} expected)"
            )
        elif error > ours:
            why = f"{_percent(error)} expected, the choice {_percent(ours)}"
        else:
            why = f"{_percent(error)} expected, for more work; the choice's {_percent(ours)} will do"
        found.append(Rejected(method, why))
    every = {name for unit in features for name in unit.expected}
    if features and "smoothquant" not in every:
        found.append(Rejected("smoothquant", "inputs stay float, so there is nothing to gain from smoothing them"))
    if features and "awq" not in every:
        found.append(Rejected("awq", "scaling is for weights below 8 bits"))
    return tuple(found)


def _resolved(recipe: Recipe, wanted: Mapping[str, tuple[str, str]], sites: Sequence[LinearSite]) -> Recipe:
    """The recipe with methods in place of `auto`: a default, and rules ahead of all others for what differs from it.

    wanted: (method, reason) of every linear that was open. No rule touches another linear.
    """
    counts: dict[str, int] = {}
    for method, _ in wanted.values():
        counts[method] = counts.get(method, 0) + 1
    default = max(counts, key=lambda method: counts[method], default="rtn")
    kept = tuple(
        rule.model_copy(update={"method": None}) if rule.method == AUTO else rule
        for rule in recipe.rules
        if rule.method != AUTO or rule.scheme is not None
    )
    base = recipe.model_copy(
        update={"rules": kept, "method": default if recipe.method == AUTO else recipe.method}
    )  # fmt: skip
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
    return base.model_copy(update={"rules": (*rules, *kept)})


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


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


def _duration(seconds: float) -> str:
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
