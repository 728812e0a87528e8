"""The first thing a reader sees: one state, and two short sentences."""

import math
from collections.abc import Sequence

from bitwright.record import ALL_INT8, ORIGINALS, Evaluation, PlanRow, Record, Shape, Speed, Verification
from bitwright.report.wording import is_finite, listed, metric_phrase, number, percent, short_name, times

OURS = "bitwright"  # the runtime's name in `Speed`, or how it begins
NOT_USABLE = "not usable"  # the verdict on a result of which a runtime gives other outputs than those that were judged
LONGEST = 140  # characters of a headline
QUIET_CORES = 0.15  # with more of them kept busy by others, ratios are no longer those of a quiet machine

# The verdict -> (CSS class, symbol, heading). The symbol repeats what the colour says.
STATES = {
    "met": ("met", "✓", "Budget met: you can use it"),
    "not met": ("not-met", "✕", "Budget not met"),
    "undecided": ("undecided", "?", "Undecided"),
    "not judged on pairs": ("undecided", "?", "Not judged on pairs"),
    NOT_USABLE: ("failed", "✕", "Check failed: do not use it"),
}
_NO_NAMES = ("model", "checkpoint", "output", "out")  # of directories that say nothing
NO_BUDGET = ("no-budget", "–", "No budget set")
NOT_EVALUATED = ("no-budget", "–", "Not evaluated")


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
    """What was gained and what was lost, in two sentences of at most 140 characters together, such as

    "MiniLM is 2.6 times smaller and 4.4 times as fast. It loses 0.14 % on 18 kinds of text, at most 0.2 % on a new
    kind."
    """
    name = short_name(record.model.name)
    name = "The model" if name.lower() in _NO_NAMES else name
    failed = [row.target for row in failed_checks(record)]
    if failed:
        first, second = "must not be used", f"It gives other outputs in {listed(failed)} than those that were judged."
    else:
        first, second = _gains(record), _loss_sentence(record.evaluation)
    whole = f"{name} {first}. {second}"
    return whole if len(whole) <= LONGEST else f"The model {first}. {second}"


def verdict_notes(record: Record) -> list[str]:
    """What stands under the headline, a sentence or two each: what a reader must not miss, and why figures lack."""
    notes = [f"The check in {row.target} failed: {row.detail}." for row in failed_checks(record) if row.detail]
    if notes or failed_checks(record):
        notes.append(f"Where it was judged, this was the loss: {_loss_sentence(record.evaluation)}")
    if record.model.decoded:
        notes.append(
            f"The original here is what the codes of {record.model.name} ({listed(record.model.decoded)}) stand for. "
            "What that file had lost before does not count."
        )
    evaluation = record.evaluation
    if evaluation and verdict_word(record) == "undecided" and evaluation.needed_samples:
        needed = number(evaluation.needed_samples)
        notes.append(f"About {needed} {unit(evaluation)}, half of which judge, would be enough to decide.")
    if record.smallest is not None:
        notes.append(beside_int8(record))
    if record.speed is not None and not speed_by_shape(record) and not is_quiet(record):
        notes.append(_busy(record.speed.other_load_cores))
    return notes


# The verdict -> what a reader does next.
_NEXT = {
    "met": "README.md, beside this report, shows how to load it. "
    "To compare it with the original on your own text: bitwright eval DIR --reference MODEL --data mine.txt",
    "not met": "Allow more loss with --max-loss, or choose a scheme with more bits, such as --scheme w8a16.",
    "not judged on pairs": "Give pairs of texts like yours, with --data FILE#FIRST,SECOND or with labels by --eval.",
    NOT_USABLE: "Do not use these files. Tell us what the check said, with record.json.",
    None: "Measure what it loses on your own text: bitwright eval DIR --reference MODEL --data mine.txt",
}
_UNDECIDED = "Give more rows, allow more loss with --max-loss, or accept the estimate with --accept-point-estimate."
_UNDECIDED_KINDS = "Give text like yours with --data, or allow more loss with --max-loss."


def next_step(record: Record) -> str:
    """What a reader does next, in one sentence or two."""
    word = verdict_word(record)
    if word == "undecided":
        return _UNDECIDED_KINDS if record.evaluation and record.evaluation.kinds else _UNDECIDED
    return _NEXT.get(word, _NEXT[None])


def _gains(record: Record) -> str:
    """ "is 3.9 times smaller and 2.4 times as fast", or of these what was measured."""
    gains = []
    if (smaller := size_ratio(record)) is not None:
        gains.append(times(smaller, "smaller", "larger"))
    if speed := speed_ratio(record):
        gains.append(as_fast(speed))
    return f"is {' and '.join(gains)}" if gains else "was quantized"


def _loss_sentence(evaluation: Evaluation | None) -> str:
    """ "It loses 0.14 % on 18 kinds of text, at most 0.2 % on a new kind." """
    if evaluation is None or evaluation.loss is None:
        return "Its loss of accuracy was not measured."
    verdict, loss, upper = evaluation.verdict, evaluation.loss, evaluation.loss_upper
    if verdict == "not judged on pairs":
        return f"It loses {percent(loss)} on single texts, but it reads pairs, so it was not judged."
    falls = evaluation.metric.higher_is_better is not False
    name = evaluation.metric.name or "error"
    loses = "It loses" if falls else f"Its {name} rises by"
    some = percent(loss) if loss > 0 else "nothing measurable"
    if loss <= 0 and not falls:
        loses, some = f"Its {name} does not rise", ""
    about = "about " if verdict == "undecided" and loss > 0 else ""
    what = f"{loses} {about}{some}".rstrip()
    if evaluation.kinds:
        on = f"{what} on {len(evaluation.kinds)} kinds of text"
        if verdict == "not met":
            return f"{on}, over the {percent(evaluation.max_loss)} allowed."
        if verdict == "undecided":
            return f"{on}, but a new kind may lose {percent(upper)}."
        return f"{on}, at most {percent(upper)} on a new kind."
    on = f"{what} on {held_out(evaluation)}" if evaluation.n_held_out else what
    if verdict == "undecided":
        return f"{on}, too few to be sure."
    if verdict == "not met":
        return f"{on}, over the {percent(evaluation.max_loss)} allowed."
    return f"{on}, at most {percent(upper)}." if is_finite(upper) else f"{on}."


def beside_int8(record: Record) -> str:
    """Of the goal "smallest", what it brings and costs beside 8 bits for everything."""
    assert record.smallest is not None
    saved = 1 - record.smallest.bytes / record.smallest.int8_bytes
    beside = f"Its linears take {percent(abs(saved))} {'fewer' if saved >= 0 else 'more'} bytes than in INT8"
    factors = _ratios(record)
    shapes = factors.get(ALL_INT8, {}).keys() & factors.get(OURS, {}).keys()
    if not shapes:
        return f"{beside}."
    speed = _geometric_mean([factors[OURS][shape] / factors[ALL_INT8][shape] for shape in shapes])
    return f"{beside}, and it is {as_fast(speed)} as that."


def _busy(cores: float | None) -> str:
    why = "" if cores is None else f": other programs kept {cores:.1f} cores busy"
    return f"Its speed was not measured{why}. The command bitwright bench measures it later."


def size_ratio(record: Record) -> float | None:
    """Bytes of the source checkpoint / bytes of the quantized one, or None where not both are known."""
    before, after = record.size.source_bytes, record.size.checkpoint_bytes
    return before / after if before and after else None


def speed_ratio(record: Record) -> float | None:
    """How many times as fast as the original, the geometric mean over input shapes; None if it was not measured."""
    ratios = speed_by_shape(record)
    return _geometric_mean(list(ratios.values())) if ratios else None


def as_fast(factor: float) -> str:
    """A speed in words: 4.43 -> "4.4 times as fast", 0.5 -> "0.5 times as fast", 1.02 -> "as fast"."""
    if 0.95 < factor < 1.05:
        return "as fast"
    return f"{factor:.1f} times as fast" if factor >= 0.1 else f"{factor:.2g} times as fast"


def bits_per_weight(plan: Sequence[PlanRow]) -> float | None:
    """Bits that the plan's linears take per weight, with their scales, zero points and biases; None for none."""
    linears = [row for row in plan if row.is_linear and row.bytes_after]
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


def loss_of_what(evaluation: Evaluation) -> str:
    """What the loss is a share of: "of its search quality (nDCG@10)"."""
    if evaluation.metric.higher_is_better is False:
        return f"rise of {metric_name(evaluation)}"
    return f"of {metric_phrase(evaluation.metric.name)}"


def is_result(runtime: str) -> bool:
    """Whether a runtime of the speed table is Bitwright with a quantized model."""
    return runtime.startswith(OURS) and not any(runtime in names for names in ORIGINALS.values())


def is_quiet(record: Record) -> bool:
    """Whether other programs left the machine alone while it was timed. Records of old do not know."""
    speed = record.speed
    return speed is None or (not speed.too_busy and (speed.other_load_cores or 0.0) <= QUIET_CORES)


def speed_by_shape(record: Record) -> dict[Shape, float]:
    """How many times as fast as the original Bitwright's fastest runtime is, by shape; empty if not measured.

    The original runs in torch, in float32 or bf16, whichever is faster for the shape: a user would take that one. A
    language model's runs in bf16, in torch or on the engine.
    """
    if not is_quiet(record):
        return {}
    ours = [shapes for name, shapes in _ratios(record).items() if is_result(name)]
    return max(ours, key=lambda shapes: _geometric_mean(list(shapes.values())), default={})


def original_words(record: Record) -> str:
    """What a speed is relative to: "the original in torch (float32 or bfloat16, the faster)"."""
    if any(row.work != "forward" for row in (record.speed or Speed()).rows):
        return "the original in bfloat16 (in torch or on this engine, the faster)"
    both = record.speed is not None and any(row.ratio_to_bf16 is not None for row in record.speed.rows)
    return f"the original in torch ({'float32 or bfloat16, the faster' if both else 'float32'})"


def _ratios(record: Record) -> dict[str, dict[Shape, float]]:
    """Speed relative to the original, by runtime and shape."""
    found: dict[str, dict[Shape, float]] = {}
    for row in () if record.speed is None else record.speed.rows:
        ratios = [ratio for ratio in (row.ratio_to_fp32, row.ratio_to_bf16) if ratio is not None and ratio > 0]
        if ratios:
            found.setdefault(row.runtime, {})[row.shape] = min(ratios)
    return found


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
