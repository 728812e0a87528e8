"""Two records side by side: what changed, in the order in which a reader asks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bitwright.record import Environment, Evaluation, Record, Sensitivity, Speed, shape_words
from bitwright.report.account import largest
from bitwright.report.experts import expert_blocks
from bitwright.report.page import content_policy, environment, packaged_style
from bitwright.report.verdict import bits_per_weight, is_result, verdict_sentence, verdict_word
from bitwright.report.wording import (
    ABSENT,
    companion,
    is_finite,
    milliseconds,
    moment,
    number,
    percent,
    ratio,
    short_name,
    size,
)


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One line of a comparison, as text ready to print: what, its value in a and in b, and how b differs from a."""

    name: str
    a: str
    b: str
    change: str


def compare_records(a: Record, b: Record) -> list[ComparisonRow]:
    """The rows of the comparison. Sizes and times change by a ratio b / a, losses and scores by a difference b − a.

    What neither record holds has no row; what one lacks is a dash.
    """
    return [row for row in _rows(a, b) if (row.a, row.b) != (ABSENT, ABSENT)]


def render_comparison(a: Record, b: Record) -> str:
    """The comparison as one self-contained HTML page, without scripts."""
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            names=[_title(record) for record in (a, b)],
            sentences=[verdict_sentence(record) for record in (a, b)],
            rows=compare_records(a, b),
            style=packaged_style(),
            policy=content_policy([]),
        )
    )


def _rows(a: Record, b: Record) -> Iterator[ComparisonRow]:
    def text(name: str, of: Callable[[Record], Any]) -> ComparisonRow:
        left, right = of(a), of(b)
        return ComparisonRow(name, number(left), number(right), _sameness(left, right))

    def factor(name: str, show: Callable[[Any], str], of: Callable[[Record], Any]) -> ComparisonRow:
        return _by_ratio(name, show, of(a), of(b))

    def difference(name: str, show: Callable[[Any], str], of: Callable[[Record], Any]) -> ComparisonRow:
        return _by_difference(name, show, of(a), of(b))

    def either(names: Callable[[Record], Iterable[str]]) -> list[str]:
        return list(dict.fromkeys(name for record in (a, b) for name in names(record)))

    yield text("model", lambda r: r.model.name)
    yield text("verdict", verdict_word)
    yield factor("size on disk", size, lambda r: r.size.checkpoint_bytes)
    yield factor("size of the weights", size, lambda r: r.size.weights_after)
    yield text("metric", lambda r: _judged(r).metric.name)
    yield text("protocol", lambda r: _judged(r).metric.protocol)
    yield difference("loss", percent, lambda r: _judged(r).loss)
    yield difference("loss, at most (95 %)", percent, lambda r: _judged(r).loss_upper)
    yield difference("budget", percent, lambda r: _judged(r).max_loss)
    yield difference("score, original", number, lambda r: _judged(r).float_score)
    yield difference("score, quantized", number, lambda r: _judged(r).quantized_score)
    for name in either(lambda r: _judged(r).companions):
        yield _by_difference(companion(name)[0], number, *(_judged(r).companions.get(name) for r in (a, b)))
    for scheme in either(lambda r: (row.scheme for row in r.plan if row.in_files)):
        yield _by_difference(f"layers stored as {scheme}", number, *(_count(r, scheme=scheme) for r in (a, b)))
    for method in either(lambda r: (row.method for row in r.plan if row.method != "cast" and row.in_files)):
        yield _by_difference(f"layers by {method}", number, *(_count(r, method=method) for r in (a, b)))
    yield difference("blocks with 8-bit attention", number, _int8_attention)
    yield difference("bits per weight", number, lambda r: bits_per_weight(r.plan))
    yield factor("error of the worst layer", percent, _worst_error)
    yield difference("experts starved", number, _starved)
    for shape in either(_latencies):
        yield _by_ratio(f"{shape}, ms", milliseconds, *(_latencies(r).get(shape) for r in (a, b)))
    for runtime in either(lambda r: _timed(r).peak_rss_mib):
        peaks = (_timed(r).peak_rss_mib.get(runtime) for r in (a, b))
        yield _by_ratio(f"{runtime}, peak memory MiB", number, *peaks)
    yield difference(
        "Spearman of EMD with the metric loss", number, lambda r: _sensitivity(r).spearman_with_metric_loss
    )
    for target in either(_verification):
        left, right = (_verification(r).get(target) for r in (a, b))
        yield ComparisonRow(f"verified in {target}", number(left), number(right), _sameness(left, right))
    yield text("processor", lambda r: _environment(r).cpu)
    yield text("instruction set", lambda r: _environment(r).isa)
    yield text("Bitwright", lambda r: r.bitwright_version)


def _by_ratio(name: str, show: Callable[[Any], str], a: Any, b: Any) -> ComparisonRow:
    known = is_finite(a) and is_finite(b) and a > 0
    return ComparisonRow(name, show(a), show(b), ratio(b / a) if known else ABSENT)


def _by_difference(name: str, show: Callable[[Any], str], a: Any, b: Any) -> ComparisonRow:
    if not (is_finite(a) and is_finite(b)):
        return ComparisonRow(name, show(a), show(b), ABSENT)
    change = b - a
    return ComparisonRow(name, show(a), show(b), ("+" if change > 0 else "") + show(change))


def _sameness(a: Any, b: Any) -> str:
    return ABSENT if a is None or b is None else "same" if a == b else "differs"


def _judged(record: Record) -> Evaluation:
    return record.evaluation or Evaluation()


def _timed(record: Record) -> Speed:
    return record.speed or Speed()


def _sensitivity(record: Record) -> Sensitivity:
    return record.sensitivity or Sensitivity()


def _environment(record: Record) -> Environment:
    return record.environment or Environment()


def _count(record: Record, *, scheme: str | None = None, method: str | None = None) -> int | None:
    """Rows of the plan with this scheme, or this method."""
    tensors = [row for row in record.plan if row.in_files]
    chosen = [row for row in tensors if scheme in (None, row.scheme) and method in (None, row.method)]
    return len(chosen) if record.plan else None


def _int8_attention(record: Record) -> int | None:
    """Blocks with int8 attention; None for a model whose attention has no rows."""
    schemes = [row.scheme for row in record.plan if row.is_attention]
    return schemes.count("int8") if schemes else None


def _worst_error(record: Record) -> float | None:
    """The largest relative output error among the linears that are stored as integers."""
    return largest(row.error for row in record.layers if not row.fallback)


def _starved(record: Record) -> int | None:
    blocks = expert_blocks(record.layers)
    return sum(block.n_starved for block in blocks) if blocks else None


def _latencies(record: Record) -> dict[str, float | None]:
    """Median latency of Bitwright's own runtimes in ms, by shape."""
    ours = (row for row in _timed(record).rows if is_result(row.runtime))
    return {f"{row.runtime}, {shape_words(row.shape)}": row.median_ms for row in ours}


def _verification(record: Record) -> dict[str, str]:
    said = {True: "passed", False: "failed", None: "not checked"}
    return {row.target: said[row.ok] for row in record.verify or ()}


def _title(record: Record) -> str:
    name = short_name(record.model.name)
    return f"{name}, {moment(record.created)}" if record.created else name
