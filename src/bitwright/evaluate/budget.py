"""The accuracy budget: decides whether a loss is inside it, outside it, or the sample is too small to tell.

The loss is bounded from both sides by a paired bootstrap: units of the sample are drawn with replacement, both models
are scored on the same draw, and the spread of the relative losses is the uncertainty.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from bitwright.errors import DataError
from bitwright.evaluate.kinds import Outputs
from bitwright.evaluate.statistic import Estimated, FloatArray, MacroF1, Mean, Statistic
from bitwright.evaluate.tasks import Task, relative_loss

Pair = tuple[Statistic, Statistic]  # the scores of the float and of the quantized model

_NORMAL = NormalDist()
_MAX_JACKKNIFE = 200  # left-out parts of the sample; their number hardly moves the skew that is estimated from them
_COUNTS_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A loss (fraction of the float score) with its one-sided bounds: each holds alone with probability `confidence`.

    The bounds are infinite where the sample is a single number, which has no spread. kinds: of each kind of text its
    loss, where there are several; `loss` is then their mean, `lower` bounds that mean, and `upper` the loss on a kind
    that is not among them.
    """

    loss: float
    lower: float
    upper: float
    n_units: int
    unit: str = "units"
    confidence: float = 0.95
    kinds: tuple["KindLoss", ...] = ()

    @property
    def worst(self) -> "KindLoss | None":
        """The kind of text that loses most."""
        return max(self.kinds, key=lambda kind: kind.loss, default=None)


@dataclass(frozen=True, slots=True)
class KindLoss:
    """The loss on one kind of text, of n units."""

    kind: str
    n: int
    loss: float


@dataclass(frozen=True, slots=True)
class Given:
    """What the judging units were drawn from: their number, and the user's words for them ("rows of pairs.tsv"). The
    tuning units are among them.
    """

    n: int
    noun: str

    def enough(self, units: int, judging: int) -> int:
        """How many must be given so that `units` of them judge; now `judging` do."""
        return math.ceil(units * self.n / judging)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a budget is met. needed_samples: for an undecided verdict, how many samples would probably decide it;
    else None.

    "not judged on pairs": the loss is that of single texts, and the model reads pairs.
    """

    verdict: Literal["met", "not met", "undecided", "not judged on pairs"]
    needed_samples: int | None
    sentence: str


def paired_bootstrap(
    task: Task,
    float_outputs: Outputs,
    quant_outputs: Outputs,
    *,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The quantized model's loss, with one-sided bounds from `n` seeded resamples.

    Scores on a resample are exact (see `statistic`). Where documents or texts are the units, a pair counts the product
    of its members' counts and a text is never paired with its own duplicate.

    Rank correlations, whose losses near zero are biased and skewed, get BCa bounds (Efron 1987, *Better bootstrap
    confidence intervals*); the skew is estimated by a jackknife that leaves out one unit at a time, or one of 200 parts
    of a larger sample.

    Means of the units' own scores (accuracy, nDCG) get plain quantiles, and the upper one is that of a sample with one
    unit more, which the quantized model lost as far as any unit changed (entirely, where none did): often few units
    differ between the models, or none, and resampling cannot invent one. Without a change the bound is 3 / n_units, the
    rule of three; with few it follows the exact binomial (Clopper-Pearson) bound; with many it is a little cautious.

    Raises:
        DataError: the float model scores 0.
    """
    loss = task.loss(float_outputs, quant_outputs)
    pair = task.statistics(float_outputs, quant_outputs)
    lower, upper = bounds_of_pair(pair, task.kind.higher_is_better, n, seed, confidence)
    return Interval(loss, min(lower, loss), max(upper, loss), pair[0].n_units, task.kind.unit, confidence)


def bounds_of_pair(pair: Pair, better: bool, n: int, seed: int, confidence: float) -> tuple[float, float]:
    """The bounds of `paired_bootstrap` for the scores of both models; infinite for a sample of one unit.

    better: whether a higher score is."""
    if pair[0].n_units < 2:
        return -math.inf, math.inf
    cautious = _with_lost_unit(pair, better)
    if cautious is None:
        return _bca_bounds(pair, better, n, seed, confidence)
    lower = float(np.quantile(_resampled_losses(pair, better, n, seed), 1 - confidence))
    return lower, float(np.quantile(_resampled_losses(cautious, better, n, seed), confidence))


def judge(interval: Interval, max_loss: float, given: Given | None = None) -> Verdict:
    """Compare a loss with the limit: met if the upper bound is inside it, not met if the lower bound is outside.

    Otherwise undecided, with the sample that would decide if the loss stayed what it is: bounds close in by 1/√n, by
    1/n where nothing changed. given: what the units were drawn from; by default themselves.

    Raises:
        DataError: max_loss is not a positive number.
    """
    if not (max_loss > 0 and math.isfinite(max_loss)):
        raise DataError(f"max_loss = {max_loss}: give a fraction above 0, such as 0.01 for 1 %")
    found = f"loss {percent(interval.loss)} on {interval.n_units} {interval.unit}"
    if interval.kinds:
        found += f" of {len(interval.kinds)} kinds"
    limit = f"the budget of {percent(max_loss)}"
    level = f"{100 * interval.confidence:g} % bound"
    of_what = " of a new kind" if interval.kinds else ""
    if interval.upper <= max_loss:
        return Verdict("met", None, f"{found}, upper {level}{of_what} {percent(interval.upper)}: within {limit}")
    if interval.lower > max_loss:
        return Verdict("not met", None, f"{found}, lower {level} {percent(interval.lower)}: outside {limit}")
    if not math.isfinite(interval.upper):
        return Verdict(
            "undecided",
            None,
            f"{found}. A single number has no bounds; return a value per example to decide about {limit}",
        )
    if interval.worst is not None:
        worst = interval.worst
        may = f"text of a new kind may lose up to {percent(interval.upper)} ({level}), which is more than {limit}"
        said = f"{found}, at most {percent(worst.loss)} (on {worst.kind}); {may}. Give text like yours with --data"
        return Verdict("undecided", None, said)
    between = f"{found}, {level}s {percent(interval.lower)} and {percent(interval.upper)}: {limit} is between them"
    if interval.loss >= max_loss:
        return Verdict("undecided", None, f"{between}, and the loss itself is outside it")
    ratio = (interval.upper - interval.loss) / (max_loss - interval.loss)
    nothing_changed = interval.lower == interval.loss == 0
    units = math.ceil(interval.n_units * (ratio if nothing_changed else ratio**2))
    given = given or Given(interval.n_units, interval.unit)
    needed = given.enough(units, interval.n_units)
    return Verdict("undecided", needed, f"{between}; about {needed} {given.noun} would decide it")


def without_pairs(verdict: Verdict, evidence: str) -> Verdict:
    """Replace a verdict on single texts by "not judged on pairs", for a model that reads pairs.

    evidence: what shows that it does.
    """
    return Verdict(
        "not judged on pairs",
        None,
        f"this model reads pairs of texts ({evidence}), but it was run on single texts: {verdict.sentence}. Give "
        "pairs for a verdict: two columns of a table with --data FILE#FIRST,SECOND, or pairs with scores or labels "
        "with --eval",
    )


def _bca_bounds(pair: Pair, better: bool, n: int, seed: int, confidence: float) -> tuple[float, float]:
    """The BCa quantiles of the loss at 1 − confidence and at confidence."""
    units = pair[0].n_units
    point = _losses(pair, better, np.ones((1, units)))[0]
    resampled = _resampled_losses(pair, better, n, seed)
    # Ties count half, so that a loss which never moves is unbiased; the ends are kept off infinite quantiles.
    below = float(np.mean(resampled < point) + np.mean(resampled == point) / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / n), 1 - 0.5 / n))
    skew = _acceleration(pair, better)
    lower, upper = (bias + _NORMAL.inv_cdf(level) for level in (1 - confidence, confidence))
    adjusted = [_NORMAL.cdf(bias + z / max(1 - skew * z, 1e-9)) for z in (lower, upper)]
    lower, upper = np.quantile(resampled, adjusted)
    return float(lower), float(upper)


def _resampled_losses(pair: Pair, better: bool, n: int, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    units = pair[0].n_units
    step = max(1, _COUNTS_AT_ONCE // units)
    share = np.full(units, 1 / units)
    pieces = []
    for start in range(0, n, step):
        counts_BU = rng.multinomial(units, share, size=min(step, n - start)).astype(np.float64)
        pieces.append(_losses(pair, better, counts_BU))
    return np.concatenate(pieces)


def _acceleration(pair: Pair, better: bool) -> float:
    """Σd³ / (6·(Σd²)^1.5) of the jackknife's deviations d = mean − value: how skewed the loss is."""
    units = pair[0].n_units
    parts = min(units, _MAX_JACKKNIFE)
    part_U = np.arange(units) * parts // units
    values = _losses(pair, better, (part_U != np.arange(parts)[:, None]).astype(np.float64))
    if not np.isfinite(values).all():
        return 0.0
    deviations = values.mean() - values
    spread = float(np.square(deviations).sum())
    return float((deviations**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _losses(pair: Pair, better: bool, weights_BU: FloatArray) -> FloatArray:
    return relative_loss(pair[0](weights_BU), pair[1](weights_BU), better)


def _with_lost_unit(pair: Pair, better: bool) -> Pair | None:
    """The same sample with one more unit that is lost, for scores that are means; None for correlations."""
    match pair:
        case (Mean(left), Mean(right)):
            change = float(np.abs(left - right).max()) or float(np.abs(left).max())
            if isinstance(pair[1], Estimated):
                change = pair[1].one_more
            return Mean(np.append(left, left.mean())), Mean(
                np.append(right, left.mean() + (-change if better else change))
            )
        case (MacroF1(gold, left), MacroF1(_, right)):
            common = np.argsort(-np.bincount(gold), kind="stable")
            frequent, other = (*common, -1)[:2]  # taken for a class of its own, it would be a third of a macro F1
            right_U = np.append(right, other)
            return MacroF1(np.append(gold, frequent), np.append(left, frequent)), MacroF1(
                np.append(gold, frequent), right_U
            )
        case _:
            return None


def percent(fraction: float) -> str:
    """A fraction as a percentage of three digits, for a message."""
    return f"{100 * fraction:.3g} %"
