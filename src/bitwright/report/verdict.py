"""The first thing a reader sees: one sentence, one state, four numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.record import ALL_INT8, Evaluation, PlanRow, Record, Size, SpeedRow, Verification
from bitwright.report.wording import (
    ABSENT,
    alike,
    is_finite,
    metric_phrase,
    number,
    percent,
    ratio,
    short_name,
    size,
    times,
)

OURS = "bitwright"  # the runtime's name in `Speed`, or how it begins
NOT_USABLE = "not usable"  # the verdict on a result of which a runtime gives other outputs than those that were judged

# The verdict -> (CSS class, symbol, heading). The symbol repeats what the colour says.
STATES = {
    "met": ("met", "✓", "Budget met"),
    "not met": ("not-met", "✕", "Budget not met"),
    "undecided": ("undecided", "?", "Undecided"),
    "not judged on pairs": ("undecided", "?", "Not judged on pairs"),
    NOT_USABLE: ("not-met", "✕", "Check failed: do not use it"),
}
NO_BUDGET = ("no-budget", "–", "No budget set")
NOT_EVALUATED = ("no-budget", "–", "Not evaluated")


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the four numbers at the top: a label, the number, and what it is relative to."""

    label: str
    value: str
    context: str


_BUSY_CORES = 0.25  # with so many kept busy by others, ratios are no longer those of a quiet machine


def state(record: Record) -> tuple[str, str, str]:
    """(CSS class, symbol, heading) of the record's verdict."""
    evaluation = record.evaluation
    if not failed_checks(record) and (evaluation is None or evaluation.loss is None):
        return NOT_EVALUATED
    return STATES.get(verdict_word(record) or "", NO_BUDGET)


def failed_checks(record: Record) -> list[Verification]:
    """The runtimes that give other outputs than those that were judged, or none."""
    return [row for row in record.verify or () if row.ok is False]


def verdict_word(record: Record) -> str | None:
    """The verdict of the evaluation, if the outputs that were judged are those of the result; else `NOT_USABLE`."""
    if failed_checks(record):
        return NOT_USABLE
    return None if record.evaluation is None else record.evaluation.verdict


def verdict_sentence(record: Record) -> str:
    """The verdict in one plain sentence, such as

    "MiniLM is 3.9 times smaller and 2.4 times faster; it loses 0.08 % (at most 0.21 % with 95 % confidence) of its
    agreement with human judgement of similarity, inside the 1 % budget."
    """
    name = short_name(record.model.name)
    if failed := failed_checks(record):
        return f"{name} is not usable as it was written: {_failures(failed)}. {_loss_as_judged(record.evaluation)}"
    gains = []
    if (smaller := size_ratio(record)) is not None:
        gains.append(times(smaller, "smaller", "larger"))
    if speed_ratios := _speed_ratios(record):
        gains.append(times(_geometric_mean(speed_ratios), "faster", "slower") + _while_busy(record))
    opening = f"{name} is {' and '.join(gains)}" if gains else f"{name} was processed"
    return f"{opening}; {_loss_clause(record.evaluation)}{_beside_int8(record)}."


def _beside_int8(record: Record) -> str:
    """Of the goal "smallest", what it brings and costs beside 8 bits for everything:

    "; its linears take 31 % fewer bytes than in all-INT8, and it is 1.4 times slower than that"
    """
    if record.smallest is None:
        return ""
    saved = 1 - record.smallest.bytes / record.smallest.int8_bytes
    clause = f"; its linears take {percent(abs(saved))} {'fewer' if saved >= 0 else 'more'} bytes than in all-INT8"
    factors = _ratios_to_fp32(record)
    shapes = factors.get(ALL_INT8, {}).keys() & factors.get(OURS, {}).keys()
    if not shapes:
        return clause
    speed = _geometric_mean([factors[OURS][shape] / factors[ALL_INT8][shape] for shape in shapes])
    slower = times(speed, "faster", "slower")
    return f"{clause}, and it is {slower} {'as' if slower.startswith('about') else 'than'} that"


def _failures(failed: Sequence[Verification]) -> str:
    """ "it failed the check in transformers (output shape (4, 2), expected (4, 3))"."""
    told = (f"{row.target} ({row.detail})" if row.detail else row.target for row in failed)
    return f"it failed the check in {' and in '.join(told)}"


def _loss_as_judged(evaluation: Evaluation | None) -> str:
    """The measured loss, and whose it is."""
    if evaluation is None or evaluation.loss is None:
        return "It was not evaluated either."
    said = _measured_loss(evaluation, evaluation.loss)
    return f"Where it was judged, {said}."


def _while_busy(record: Record) -> str:
    """A word of caution if other programs held the cores: runtimes whose threads wait for each other suffer most."""
    cores = None if record.speed is None else record.speed.other_load_cores
    if cores is None or cores < _BUSY_CORES:
        return ""
    return f" (timed while other programs kept {cores:.1f} cores busy: `bitwright bench` times it again)"


def facts(record: Record) -> tuple[Fact, Fact, Fact, Fact]:
    """Size, speed (bits per weight where it was not measured), loss and budget."""
    return (_size_fact(record), _speed_fact(record), *_loss_facts(record))


def size_ratio(record: Record) -> float | None:
    """Bytes of the source checkpoint / bytes of the quantized one, or None where not both are known."""
    before, after = record.size.source_bytes, record.size.checkpoint_bytes
    return before / after if before and after else None


def bits_per_weight(plan: Sequence[PlanRow]) -> float | None:
    """Bits that the plan's linears take per weight, with their scales, zero points and biases; None for none."""
    linears = [row for row in plan if row.role != "embedding" and row.bytes_after]
    values = sum(math.prod(row.shape) for row in linears)
    return 8 * sum(row.bytes_after for row in linears) / values if values else None


def held_out(evaluation: Evaluation) -> str:
    """What the loss was measured on: "40 held-out windows"."""
    return f"{number(evaluation.n_held_out)} held-out {unit(evaluation)}"


def unit(evaluation: Evaluation) -> str:
    """What a sample consists of, in the plural: "windows"."""
    return evaluation.metric.unit or "samples"


def metric_name(evaluation: Evaluation) -> str:
    """The metric's own name, such as "nDCG@10"."""
    return evaluation.metric.name or "the metric"


def is_bitwright(row: SpeedRow) -> bool:
    """Whether a row of the speed table is one of Bitwright's own runtimes."""
    return row.runtime.startswith(OURS)


def _loss_clause(evaluation: Evaluation | None) -> str:
    if evaluation is None or evaluation.loss is None:
        return "it was not evaluated, so what that costs in accuracy is not known"
    budget, verdict = f"the {percent(evaluation.max_loss)} budget", evaluation.verdict
    clause = _measured_loss(evaluation, evaluation.loss)
    if verdict == "met":
        return f"{clause}, inside {budget}"
    if verdict == "not met":
        return f"{clause}, over {budget}"
    if verdict == "not judged on pairs":
        return f"{clause} on single texts, but it reads pairs, so that says nothing about {budget}"
    if verdict != "undecided":
        return f"{clause}; no budget was set"
    if evaluation.kinds:
        return f"{clause}; text of another kind than the {len(evaluation.kinds)} tried may be outside {budget}"
    samples, needed = evaluation.n_held_out, evaluation.needed_samples
    few = f"{number(samples)} {unit(evaluation)} are" if samples else "the sample is"
    enough = f"; about {number(needed)}, half of which judge, would be enough" if needed else ""
    return f"{clause}, but {few} too few to tell whether that is inside {budget}{enough}"


def _measured_loss(evaluation: Evaluation, loss: float) -> str:
    """ "it loses 0.08 % (at most 0.21 % with 95 % confidence) of its accuracy": the bound that the verdict rests on."""
    over = evaluation.verdict == "not met"
    side, limit = ("at least", evaluation.loss_lower) if over else ("at most", evaluation.loss_upper)
    confidence = percent(evaluation.confidence or 0.95)
    new_kind = " on a kind of text that was not tried," if evaluation.kinds and not over else ""
    aside = f" ({side} {percent(limit)}{new_kind} with {confidence} confidence)" if is_finite(limit) else ""
    if evaluation.metric.higher_is_better is False:
        return _rise(evaluation, loss) + aside
    what = metric_phrase(evaluation.metric.name)
    if loss <= 0:
        return f"it loses nothing measurable{aside} of {what}"
    return f"it {'appears to lose' if evaluation.verdict == 'undecided' else 'loses'} {percent(loss)}{aside} of {what}"


def _rise(evaluation: Evaluation, loss: float) -> str:
    """ "its perplexity rises from 24.10 to 24.82, by 3 %": the loss of a metric where lower is better."""
    name = evaluation.metric.name or "metric"
    scores = evaluation.float_score, evaluation.quantized_score
    change = " from {} to {}".format(*alike(*scores)) if all(map(is_finite, scores)) else ""
    if loss <= 0:
        return f"its {name} does not rise{change and ', going' + change}"
    rises = "appears to rise" if evaluation.verdict == "undecided" else "rises"
    return f"its {name} {rises}{change}{',' * bool(change)} by {percent(loss)}"


def _size_fact(record: Record) -> Fact:
    factor = size_ratio(record)
    context = f"from {size(record.size.source_bytes)}" + (f", {times(factor, 'smaller', 'larger')}" if factor else "")
    measured = record.size != Size()
    return Fact("Size on disk", size(record.size.checkpoint_bytes), context if measured else "not measured")


def _speed_fact(record: Record) -> Fact:
    ratios = _speed_ratios(record)
    if not ratios:
        bits = bits_per_weight(record.plan)
        if bits is None:
            return Fact("Speed", ABSENT, "not measured")
        return Fact("Bits per weight", f"{bits:.2f}", "of the linears, with scales and biases; speed was not measured")
    threads = None if record.speed is None else record.speed.threads
    on = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
    if len(ratios) == 1:
        return Fact("Speed", ratio(ratios[0], 1), f"that of the fp32 original{on}")
    spread = f"{ratio(min(ratios), 1)} to {ratio(max(ratios), 1)}"
    return Fact("Speed", ratio(_geometric_mean(ratios), 1), f"that of the fp32 original; {spread} by input shape{on}")


def _loss_facts(record: Record) -> tuple[Fact, Fact]:
    evaluation = record.evaluation or Evaluation()
    loss, lower, upper, budget = evaluation.loss, evaluation.loss_lower, evaluation.loss_upper, evaluation.max_loss
    metric = evaluation.metric
    if loss is None:
        return Fact("Loss", ABSENT, "not evaluated"), Fact("Budget", percent(budget), "not checked")
    context = f"of {metric_phrase(metric.name)}"
    if metric.higher_is_better is False:
        context = f"rise of {metric.name}, relative to the original"
    if is_finite(lower) and is_finite(upper):
        new_kind = " on a new kind of text" if evaluation.kinds else ""
        context += f"; 95 % sure of at most {percent(upper)}{new_kind}, and of at least {percent(lower)}"
    if budget is None:
        return Fact("Loss", percent(loss), context), Fact("Budget", ABSENT, "none was set")
    outcome = {
        "met": "met: with 95 % confidence the loss is inside it",
        "not met": "not met: with 95 % confidence the loss is over it",
        "not judged on pairs": "not judged: the loss is that of single texts, and the model reads pairs",
        "undecided": "undecided: it lies between the two bounds of the loss",
        NOT_USABLE: "not usable: a runtime gives other outputs than those that were judged",
    }
    said = outcome.get(verdict_word(record) or "", "not checked")
    return Fact("Loss", percent(loss), context), Fact("Budget", percent(budget), said)


def _speed_ratios(record: Record) -> list[float]:
    """Speed of Bitwright's fastest runtime relative to fp32, one number per measured shape."""
    ours = [list(shapes.values()) for name, shapes in _ratios_to_fp32(record).items() if name.startswith(OURS)]
    return max(ours, key=_geometric_mean, default=[])


def _ratios_to_fp32(record: Record) -> dict[str, dict[tuple[int, int], float]]:
    """Speed relative to fp32, by runtime and shape (batch, tokens)."""
    found: dict[str, dict[tuple[int, int], float]] = {}
    for row in () if record.speed is None else record.speed.rows:
        if row.ratio_to_fp32 is not None and row.ratio_to_fp32 > 0:
            found.setdefault(row.runtime, {})[row.batch, row.tokens] = row.ratio_to_fp32
    return found


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
