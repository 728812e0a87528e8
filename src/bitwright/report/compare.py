"""Two records side by side: what changed, in the order in which a reader asks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bitwright.record import Record
from bitwright.report.account import worst_of
from bitwright.report.experts import expert_blocks
from bitwright.report.page import content_policy, environment, packaged_style
from bitwright.report.verdict import bits_per_weight, is_bitwright, verdict_sentence
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
    def text(name: str, *path: str) -> ComparisonRow:
        left, right = _at(a, *path), _at(b, *path)
        return ComparisonRow(name, number(left), number(right), _sameness(left, right))

    def factor(name: str, show: Callable[[Any], str], *path: str) -> ComparisonRow:
        return _by_ratio(name, show, _at(a, *path), _at(b, *path))

    def difference(name: str, show: Callable[[Any], str], *path: str) -> ComparisonRow:
        return _by_difference(name, show, _at(a, *path), _at(b, *path))

    yield text("model", "model", "name")
    yield text("verdict", "evaluation", "verdict")
    yield factor("size on disk", size, "size", "checkpoint_bytes")
    yield factor("size of the weights", size, "size", "weights_after")
    yield text("metric", "evaluation", "metric", "name")
    yield text("protocol", "evaluation", "metric", "protocol")
    yield difference("loss", percent, "evaluation", "loss")
    yield difference("loss, at most (95 %)", percent, "evaluation", "loss_upper")
    yield difference("budget", percent, "evaluation", "max_loss")
    yield difference("score, original", number, "evaluation", "float_score")
    yield difference("score, quantized", number, "evaluation", "quantized_score")
    for name in _keys(a, b, "evaluation", "companions"):
        yield difference(companion(name)[0], number, "evaluation", "companions", name)
    for scheme in _ordered(str(row.get("scheme")) for record in (a, b) for row in record.get("plan") or []):
        yield _by_difference(
            f"layers stored as {scheme}", number, *(_count(record, "scheme", scheme) for record in (a, b))
        )
    for method in _ordered(str(row.get("method")) for record in (a, b) for row in _linears(record)):
        yield _by_difference(f"layers by {method}", number, *(_count(record, "method", method) for record in (a, b)))
    yield _by_difference("bits per weight", number, *(bits_per_weight(record.get("plan") or []) for record in (a, b)))
    yield _by_ratio("error of the worst layer", percent, *(_worst_error(record) for record in (a, b)))
    yield _by_difference("experts starved", number, *(_starved(record) for record in (a, b)))
    speeds = [_speeds(record) for record in (a, b)]
    for key in _ordered(key for speed in speeds for key in speed):
        yield _by_ratio(f"{key}, ms", milliseconds, *(speed.get(key) for speed in speeds))
    for runtime in _keys(a, b, "speed", "peak_rss_mib"):
        yield factor(f"{runtime}, peak memory MiB", number, "speed", "peak_rss_mib", runtime)
    yield difference("Spearman of EMD with the metric loss", number, "sensitivity", "spearman_with_metric_loss")
    checks = [_verification(record) for record in (a, b)]
    for target in _ordered(target for check in checks for target in check):
        left, right = (check.get(target) for check in checks)
        yield ComparisonRow(f"verified in {target}", number(left), number(right), _sameness(left, right))
    yield text("processor", "environment", "cpu")
    yield text("instruction set", "environment", "isa")
    yield text("Bitwright", "bitwright_version")


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


def _at(record: Record, *path: str) -> Any:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _keys(a: Record, b: Record, *path: str) -> list[str]:
    return _ordered(key for record in (a, b) for key in _at(record, *path) or {})


def _ordered(names: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _linears(record: Record) -> list[dict[str, Any]]:
    """The rows of the plan that a method, not a cast, made."""
    return [row for row in record.get("plan") or [] if row.get("method") not in (None, "cast")]


def _count(record: Record, key: str, value: str) -> int | None:
    plan = record.get("plan")
    return sum(str(row.get(key)) == value for row in plan) if plan else None


def _worst_error(record: Record) -> float | None:
    """The largest relative output error among the linears that are stored as integers."""
    return worst_of([row for row in record.get("layers") or [] if not row.get("fallback")], "error")


def _starved(record: Record) -> int | None:
    blocks = expert_blocks(record)
    return sum(block.n_starved for block in blocks) if blocks else None


def _speeds(record: Record) -> dict[str, Any]:
    """Median latency of Bitwright's own runtimes in ms, by shape."""
    rows = (record.get("speed") or {}).get("rows") or []
    ours = (row for row in rows if is_bitwright(row))
    return {
        f"{row['runtime']}, batch {row.get('batch')} × {row.get('tokens')} tokens": row.get("median_ms") for row in ours
    }


def _verification(record: Record) -> dict[str, str]:
    said = {True: "passed", False: "failed"}
    return {str(row.get("target")): said.get(row.get("ok"), "not checked") for row in record.get("verify") or []}


def _title(record: Record) -> str:
    name, created = short_name(_at(record, "model", "name")), record.get("created")
    return f"{name}, {moment(created)}" if created else name
