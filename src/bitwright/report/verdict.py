"""The first thing a reader sees: one sentence, one state, four numbers."""

import math
from dataclasses import dataclass
from typing import Any

from bitwright.record import Record
from bitwright.report.wording import ABSENT, is_number, number, percent, ratio, short_name, size, times, words

# The verdict -> (CSS class, symbol, heading). The symbol repeats what the colour says.
STATES = {
    "met": ("met", "✓", "Budget met"),
    "not met": ("not-met", "✕", "Budget not met"),
    "undecided": ("undecided", "?", "Undecided"),
}
NO_BUDGET = ("no-budget", "–", "No budget set")
NOT_MEASURED = ("no-budget", "–", "Accuracy not measured")


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the four numbers at the top: a label, the number, and what it is relative to."""

    label: str
    value: str
    context: str


def state(record: Record) -> tuple[str, str, str]:
    """(CSS class, symbol, heading) of the record's verdict."""
    evaluation = record.get("evaluation")
    if not evaluation:
        return NOT_MEASURED
    return STATES.get(evaluation.get("verdict"), NO_BUDGET)


def verdict_sentence(record: Record) -> str:
    """The verdict in one plain sentence, such as

    "MiniLM is 3.9 times smaller and 2.4 times faster; it loses 0.08 % (at most 0.21 % with 95 % confidence) of the
    STS rank correlation, inside the 1 % budget."
    """
    name = short_name((record.get("model") or {}).get("name"))
    gains = []
    if (smaller := size_ratio(record)) is not None:
        gains.append(times(smaller, "smaller", "larger"))
    if speed_ratios := _speed_ratios(record):
        gains.append(times(_geometric_mean(speed_ratios), "faster", "slower"))
    opening = f"{name} is {' and '.join(gains)}" if gains else f"{name} was processed"
    return f"{opening}; {_loss_clause(record.get('evaluation'))}."


def facts(record: Record) -> tuple[Fact, Fact, Fact, Fact]:
    """Size, speed, loss and budget."""
    return (_size_fact(record), _speed_fact(record), *_loss_facts(record.get("evaluation") or {}))


def size_ratio(record: Record) -> float | None:
    """Bytes of the source checkpoint / bytes of the quantized one, or None where not both are known."""
    sizes = record.get("size") or {}
    before, after = sizes.get("source_bytes"), sizes.get("checkpoint_bytes")
    return before / after if before and after else None


def metric_words(evaluation: dict[str, Any]) -> str:
    """The metric as a noun: "the STS Spearman", "the agreement with the original model's answers"."""
    metric = evaluation.get("metric") or {}
    name = words(metric.get("name") or "the metric")
    return name if name.startswith("the ") else f"the {name}"


def _loss_clause(evaluation: dict[str, Any] | None) -> str:
    if not evaluation or not is_number(evaluation.get("loss")):
        return "its accuracy was not measured"
    loss, upper, budget = (evaluation.get(key) for key in ("loss", "loss_upper", "max_loss"))
    confidence = percent(evaluation.get("confidence") or 0.95)
    verdict = evaluation.get("verdict")
    bound = f" (at most {percent(upper)} with {confidence} confidence)" if is_number(upper) else ""
    metric = metric_words(evaluation)
    verb = "appears to lose" if verdict == "undecided" else "loses"
    if loss > 0:
        clause = f"it {verb} {percent(loss)}{bound} of {metric}"
    else:
        clause = f"it loses nothing measurable{bound} of {metric}"
    if verdict == "met":
        return f"{clause}, inside the {percent(budget)} budget"
    if verdict == "not met":
        return f"{clause}, over the {percent(budget)} budget"
    if verdict == "undecided":
        needed = evaluation.get("needed_samples")
        enough = f"; about {number(needed)} would be enough" if needed else ""
        samples = evaluation.get("n_held_out")
        few = f"{number(samples)} samples are" if samples else "the sample is"
        return f"{clause}, but {few} too few to decide whether that is inside the {percent(budget)} budget{enough}"
    return f"{clause}; no budget was set"


def _size_fact(record: Record) -> Fact:
    sizes = record.get("size") or {}
    factor = size_ratio(record)
    context = f"from {size(sizes.get('source_bytes'))}" + (f", {times(factor, 'smaller', 'larger')}" if factor else "")
    return Fact("Size on disk", size(sizes.get("checkpoint_bytes")), context if sizes else "not measured")


def _speed_fact(record: Record) -> Fact:
    ratios = _speed_ratios(record)
    if not ratios:
        return Fact("Speed", ABSENT, "not measured")
    threads = (record.get("speed") or {}).get("threads")
    on = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
    if len(ratios) == 1:
        return Fact("Speed", ratio(ratios[0]), f"that of the fp32 original{on}")
    spread = f"{ratio(min(ratios))} to {ratio(max(ratios))}"
    return Fact("Speed", ratio(_geometric_mean(ratios)), f"that of the fp32 original; {spread} by input shape{on}")


def _loss_facts(evaluation: dict[str, Any]) -> tuple[Fact, Fact]:
    loss, lower, upper, budget = (evaluation.get(key) for key in ("loss", "loss_lower", "loss_upper", "max_loss"))
    if not is_number(loss):
        return Fact("Loss", ABSENT, "not measured"), Fact("Budget", percent(budget), "not checked")
    context = f"of {metric_words(evaluation)}"
    if is_number(lower) and is_number(upper):
        context += f"; at least {percent(lower)}, at most {percent(upper)} (each with 95 % confidence)"
    if not is_number(budget):
        return Fact("Loss", percent(loss), context), Fact("Budget", ABSENT, "none was set")
    room = budget - upper if is_number(upper) else budget - loss
    left = f"the bound leaves {percent(room)}" if room >= 0 else f"the bound is {percent(-room)} over"
    return Fact("Loss", percent(loss), context), Fact("Budget", percent(budget), left)


def _speed_ratios(record: Record) -> list[float]:
    """Speed of Bitwright's fastest runtime relative to fp32, one number per measured shape."""
    by_runtime: dict[str, list[float]] = {}
    for row in (record.get("speed") or {}).get("rows") or []:
        factor = row.get("ratio_to_fp32")
        if str(row.get("runtime", "")).lower().startswith("bitwright") and is_number(factor) and factor > 0:
            by_runtime.setdefault(row["runtime"], []).append(factor)
    return max(by_runtime.values(), key=_geometric_mean, default=[])


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
