"""Chooses a method for each unit of linears from measured features, with the evidence and the rejected methods. Nothing
here touches a model or a tensor.

In this order, for every unit (linears that share an input) that the recipe leaves to `method: auto`:

  1. Too large: if calibration would take more time or memory than there is, everything is rounded to nearest.
  2. Robust: where the whole model, rounded to nearest, loses little of what the budget allows, that is enough. So it is
     for a single unit whose outputs move no more than the units of such a model may.
  3. Else the method with the least error that is expected from the unit's weights and inputs, or one that takes less
     work and does about as well: smoothing where the inputs' long tails are what costs, scaling and compensation where
     the weights are.

Units that come out alike share a rule. A method that the recipe names stays.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.methods import METHODS
from bitwright.models.sites import LinearSite
from bitwright.numerics.schemes import SCHEMES
from bitwright.recipe import AUTO, DEFAULT_TARGETS, Recipe, scheme_of
from bitwright.search.cost import Cost, Resources
from bitwright.search.features import COMPARED, Features, candidates
from bitwright.search.rules import with_methods
from bitwright.targets import TARGETS


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The numbers that decide."""

    # How much of the budget rounding to nearest may use up before more is done. The loss comes from a small sample,
    # which is off by half of it at times; and what a better method could have saved stays below 0.25 % of the default
    # budget of 1 %.
    robust_share: float = 0.25
    # And how much of it a unit may, as if all units moved as far, in a model that is not robust as a whole: what is
    # spent on one is missing for the others, and calibration runs anyway.
    unit_share: float = 0.05
    # The least relative gain in expected error that pays for more work. Below it the ranking of two methods on other
    # data is a matter of luck: benchmarks/regret.py.
    worth: float = 0.03
    # Of the memory that is free, what a calibration may plan with: the estimate leaves out what libraries take.
    memory_share: float = 0.8
    # From where reasons call a tail long: eight times the 99.9th percentile, or a feature eight times as large as the
    # median one, costs three of eight bits.
    long_tail: float = 8.0


THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Choice:
    """The method of one unit, and why it is this one."""

    method: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A method that no unit got, and the numbers that spoke against it."""

    method: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision and its evidence.

    recipe: the one asked for, with `auto` resolved. reason: of the decision as a whole. rtn_loss: what the whole model
    loses if it is rounded to nearest, a fraction; None if not measured. tolerable: relative error of a unit's outputs
    that the budget allows. choices: one for each of the features. overruled: linears whose method the recipe names.
    """

    recipe: Recipe
    reason: str
    rtn_loss: float | None
    tolerable: float
    choices: tuple[Choice, ...]
    rejected: tuple[Rejected, ...]
    features: tuple[Features, ...]
    cost: Cost
    resources: Resources
    overruled: int


def tolerable_error(
    features: Sequence[Features], rtn_loss: float | None, max_loss: float, thresholds: Thresholds = THRESHOLDS
) -> float:
    """The relative error of a unit's outputs that would use up `unit_share` of the loss allowed if all units moved as
    far. The loss grows with the mean of the squared errors; how fast, this model's own `rtn_loss` says.
    """
    if not features or rtn_loss is None or rtn_loss <= 0:
        return math.inf
    error = _rms([unit.expected["rtn"] for unit in features])
    return error * math.sqrt(thresholds.unit_share * max_loss / rtn_loss)


def too_expensive(cost: Cost, resources: Resources, thresholds: Thresholds = THRESHOLDS) -> str:
    """Why a calibration costs too much memory or time; "" if it does not."""
    room = thresholds.memory_share * resources.memory_bytes
    if cost.memory_bytes > room:
        return (
            f"calibration needs about {cost.memory_bytes / 1e9:.1f} GB of memory, but only {room / 1e9:.1f} GB can "
            "be used"
        )
    if cost.seconds > resources.seconds:
        return (
            f"calibration needs about {_duration(cost.seconds)} ({cost.flops / 1e12:.0f} TFLOP at "
            f"{resources.flops_per_second / 1e9:.0f} GFLOP/s), but only {_duration(resources.seconds)} are allowed"
        )
    return ""


def decide(
    features: Sequence[Features],
    recipe: Recipe,
    sites: Sequence[LinearSite],
    *,
    rtn_loss: float | None,
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
        rtn_loss: what the whole model loses if it is rounded to nearest, a fraction; None where that was not measured.
        cost: of calibrating as the recipe says. resources: what there is.
    """
    open_sites = [site for site in sites if _is_open(recipe, site)]
    overruled = sum(SCHEMES[scheme_of(recipe, site)[0]].weight is not None for site in sites) - len(open_sites)
    tolerable = tolerable_error(features, rtn_loss, recipe.budget.max_loss, thresholds)
    if why := too_expensive(cost, resources, thresholds) or _robust(rtn_loss, recipe, thresholds):
        choices = tuple(Choice("rtn", why) for _ in features)
        others = {name for site in open_sites for name in candidates(SCHEMES[scheme_of(recipe, site)[0]])} - {"rtn"}
        rejected = tuple(Rejected(name, why) for name in sorted(others, key=COMPARED.index))
        reason = f"round to nearest (rtn) for everything: {why}"
    else:
        portable = any(TARGETS[target].plain or TARGETS[target].format for target in recipe.targets or DEFAULT_TARGETS)
        choices = tuple(_choose(unit, tolerable, portable, thresholds) for unit in features)
        rejected = _rejected(features, choices, portable)
        reason = _summary(features, choices, tolerable)
    wanted = {site.name: ("rtn", why) for site in open_sites}
    for unit, choice in zip(features, choices, strict=True):
        wanted |= {site.name: (choice.method, choice.reason) for site in unit.sites}
    return Decision(
        with_methods(recipe, wanted, sites), reason, rtn_loss, tolerable, choices, rejected, tuple(features), cost,
        resources, overruled,
    )  # fmt: skip


def _is_open(recipe: Recipe, site: LinearSite) -> bool:
    scheme, method, _ = scheme_of(recipe, site)
    return method == AUTO and SCHEMES[scheme].weight is not None


def _choose(unit: Features, tolerable: float, portable: bool, thresholds: Thresholds) -> Choice:
    """The method of one unit. portable: whether a transform must fold, since other runtimes cannot apply it."""
    allowed = {name: error for name, error in unit.expected.items() if not _unreadable(unit, name, portable)}
    least = min(allowed.values())
    enough = max(tolerable, least / (1 - thresholds.worth))
    method = min((name for name, error in allowed.items() if error <= enough), key=COMPARED.index)
    return Choice(method, _why(unit, method, tolerable, thresholds))


def _unreadable(unit: Features, method: str, portable: bool) -> bool:
    return portable and METHODS[method].transform is not None and not unit.foldable


def _why(unit: Features, method: str, tolerable: float, thresholds: Thresholds) -> str:
    """The reason for one choice, with the measured numbers."""
    rtn, error = unit.expected["rtn"], unit.expected[method]
    if method == "rtn":
        if rtn <= tolerable:
            return (
                f"robust: rounding to nearest moves the outputs by {_percent(rtn)}, and {_percent(tolerable)} is "
                "tolerable"
            )
        return (
            f"rounding to nearest moves the outputs by {_percent(rtn)}, and no other method reduces that by "
            f"{_percent(thresholds.worth)}"
        )
    causes = []
    if METHODS[method].transform is not None:
        long = unit.tail >= thresholds.long_tail or unit.channel_ratio >= thresholds.long_tail
        what = "long-tailed inputs" if long else "inputs of uneven size"
        causes.append(f"{what} (largest feature {unit.channel_ratio:.0f} × the median one)")
    if METHODS[method].rounding == "gptq":
        causes.append(f"sensitive weights (INT4 moves outputs by {_percent(unit.error_int4)})")
    return (
        f"{' and '.join(causes)}: the expected error is {_percent(error)}, and {_percent(rtn)} with rounding to nearest"
    )


def _summary(features: Sequence[Features], choices: Sequence[Choice], tolerable: float) -> str:
    counts = Counter(choice.method for choice in choices).most_common()
    words = " and ".join(f"{method} for {count if len(counts) > 1 else 'all'}" for method, count in counts)
    before = _rms([unit.expected["rtn"] for unit in features])
    return (
        f"{words} of {len(choices)} groups of linears. Rounding to nearest would move their outputs by "
        f"{_percent(before)}, and this choice moves them by {_percent(_left(features, choices))}; "
        f"{_percent(tolerable)} is tolerable"
    )


def _left(features: Sequence[Features], choices: Sequence[Choice]) -> float:
    """The expected error of all choices together."""
    return _rms([unit.expected[choice.method] for unit, choice in zip(features, choices, strict=True)])


def _robust(rtn_loss: float | None, recipe: Recipe, thresholds: Thresholds) -> str:
    """Why rounding everything to nearest is enough; "" if it is not, or if nobody knows."""
    room = thresholds.robust_share * recipe.budget.max_loss
    if rtn_loss is None or rtn_loss > room:
        return ""
    return (
        f"the model is robust: rounding to nearest loses {_percent(rtn_loss)} on the sample, and {_percent(room)} "
        "is tolerable"
    )


def _rejected(features: Sequence[Features], choices: Sequence[Choice], portable: bool) -> tuple[Rejected, ...]:
    """Methods that no unit got."""
    chosen = {choice.method for choice in choices}
    ours = _left(features, choices)
    found = []
    for method in sorted({name for unit in features for name in unit.expected} - chosen, key=COMPARED.index):
        of_this = [unit for unit in features if method in unit.expected]
        barred = sum(_unreadable(unit, method, portable) for unit in of_this)
        error = _rms([unit.expected[method] for unit in of_this])
        if barred:
            why = (
                f"{barred} of {len(of_this)} groups of linears would need a transform of their inputs at run time, "
                f"which only the target bitwright can do (expected error: {_percent(error)})"
            )
        elif error > ours:
            why = f"the expected error is {_percent(error)}, and {_percent(ours)} with the chosen methods"
        else:
            why = (
                f"the expected error is {_percent(error)} for more work, and the chosen methods' {_percent(ours)} "
                "is enough"
            )
        found.append(Rejected(method, why))
    every = {name for unit in features for name in unit.expected}
    if features and "smoothquant" not in every:
        found.append(Rejected("smoothquant", "the inputs stay float, so smoothing them gains nothing"))
    if features and "awq" not in every:
        found.append(Rejected("awq", "scaling helps only weights below 8 bits"))
    return tuple(found)


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


def _duration(seconds: float) -> str:
    for limit, divisor, unit in ((100, 1, "s"), (6000, 60, "min")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
