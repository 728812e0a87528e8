"""Numbers and names as a reader sees them. Absent numbers are a dash, never an error: a step may not have run."""

import math
from pathlib import PurePosixPath
from typing import Any

from bitwright.numerics.spec import SCHEMES

ABSENT = "–"
_NBSP = "\u00a0"

ROLE_NAMES = {
    "qkv": "qkv",
    "attention_output": "attention output",
    "ffn": "ffn",
    "head": "head",
    "embedding": "embedding",
}

# What each number beside the main metric means, for readers who do not work with quantization.
COMPANION_MEANING = {
    "cosine": "How parallel the outputs before and after are; 1 is identical. Insensitive: small losses hide near 1.",
    "emd": "Earth mover's distance between the outputs before and after, each standardised; 0 is identical. "
    "It sees a change of shape, not one of order.",
    "kendall": "Share of pairs in the same order minus the share of swapped pairs; 1 means that no pair swapped. "
    "The strictest of the rank measures: near ties swap easily.",
    "kl": "Kullback–Leibler divergence of the predicted probabilities from the original ones, in nats; 0 is identical.",
    "max_abs_error": "The largest difference of any single output value.",
    "pearson": "Linear correlation of the scores before and after; 1 is identical up to scale.",
    "rank_flips": "Share of pairs whose order the quantized model swaps; 0 is best.",
    "spearman": "Rank correlation of the scores before and after; 1 means the same order.",
    "sqnr_db": "Signal-to-quantization-noise ratio of the outputs in decibels; 6 dB more is half the error.",
    "top1": "Share of inputs whose best answer is unchanged; 1 is best.",
}


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float (NaN and infinity included), and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def percent(fraction: Any) -> str:
    """A fraction as a percentage: 0.0008 -> "0.08 %", 0.01 -> "1 %", 0.123 -> "12.3 %"."""
    if not is_number(fraction) or not math.isfinite(fraction):
        return number(fraction)
    value = 100 * fraction
    if 0 < abs(value) < 0.001:
        return f"{'<' if value > 0 else '>'}{_NBSP}{_signed(math.copysign(0.001, value), 3)}{_NBSP}%"
    digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 1
    return f"{_signed(value, digits)}{_NBSP}%"


def size(n_bytes: Any) -> str:
    """Bytes in decimal units with three significant digits: 90_870_000 -> "90.9 MB"."""
    if not is_number(n_bytes) or not math.isfinite(n_bytes):
        return number(n_bytes)
    value, unit = float(n_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the unit reached is the result
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{_signed(value, digits, keep_zeros=True)}{_NBSP}{unit}"


def number(value: Any) -> str:
    """Four significant digits at most: 0.98765 -> "0.9877", 1234567 -> "1,234,567", infinity -> "∞"."""
    if not is_number(value):
        return ABSENT if value is None or not str(value) else str(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    magnitude = abs(value)
    text = f"{value:.3g}" if magnitude < 1e-3 else f"{value:.4g}" if magnitude < 1000 else f"{value:,.0f}"
    return text.replace("e-0", "e-").replace("-", "−")


def ratio(value: Any) -> str:
    """A factor: 3.88 -> "3.9×"."""
    if not is_number(value) or not math.isfinite(value):
        return number(value)
    return f"{value:.2f}×" if value < 2 else f"{value:.1f}×"


def times(factor: float, better: str, worse: str) -> str:
    """A factor in words: (3.88, "smaller", "larger") -> "3.9 times smaller"; (0.5, ...) -> "2.0 times larger"."""
    word, factor = (better, factor) if factor >= 1 else (worse, 1 / factor)
    return f"{factor:.1f} times {word}" if factor >= 1.05 else f"about as {_POSITIVE[better]}"


_POSITIVE = {"smaller": "large", "faster": "fast"}


def seconds(value: Any) -> str:
    """A duration: 0.25 -> "0.25 s", 75 -> "1 min 15 s"."""
    if not is_number(value) or not math.isfinite(value):
        return number(value)
    if value < 60:
        return f"{value:.2g}{_NBSP}s" if value < 10 else f"{value:.0f}{_NBSP}s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}{_NBSP}h"] * bool(hours) + [f"{minutes}{_NBSP}min"] + [f"{rest}{_NBSP}s"] * (not hours)
    return " ".join(parts)


def words(name: Any) -> str:
    """An identifier as words: "attention_output" -> "attention output"."""
    return ABSENT if name is None else ROLE_NAMES.get(str(name), str(name).replace("_", " "))


def short_name(model_name: Any) -> str:
    """The last part of a model's name or path: "sentence-transformers/all-MiniLM-L6-v2" -> "all-MiniLM-L6-v2"."""
    return PurePosixPath(str(model_name or "")).name or "The model"


def scheme_words(name: str) -> str:
    """What a scheme stores: "w8a8" -> "int8 weights, int8 activations (scaled at run time)"."""
    scheme = SCHEMES.get(name)
    if scheme is None:
        return name
    if scheme.weight is None:
        return "kept in 16 bit"
    weights = f"int{scheme.weight.bits} weights"
    if scheme.input is None:
        return f"{weights}, float activations"
    how = "scaled at run time" if scheme.input.dynamic else "scaled by calibration"
    return f"{weights}, int{scheme.input.bits} activations ({how})"


def companion_meaning(name: str) -> str:
    """The explanation of a companion: by its name, else by the known name that it contains, else empty."""
    key = name.lower().replace("-", "_").replace(" ", "_")
    known = sorted((known for known in COMPANION_MEANING if known in key), key=len)
    return COMPANION_MEANING[known[-1]] if known else ""


def _signed(value: float, digits: int, *, keep_zeros: bool = False) -> str:
    text = f"{value:.{digits}f}"
    if "." in text and not keep_zeros:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "-0.0", "-0.00") else text.replace("-", "−")
