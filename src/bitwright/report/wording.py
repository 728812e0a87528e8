"""Numbers and names as a reader sees them. Absent numbers are a dash, never an error: a step may not have run."""

import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from markupsafe import Markup, escape

ABSENT = "–"
_NBSP = "\u00a0"

ROLE_NAMES = {
    "qkv": "query, key, value",
    "attention": "attention",
    "attention_output": "attention output",
    "ffn": "feed-forward",
    "head": "head",
    "embedding": "embedding",
}

# A number beside the main metric -> its label, and what it means to a reader who does not work with quantization.
COMPANIONS = {
    "cosine_mean": (
        "cosine, mean",
        "How parallel the outputs before and after are; 1 is identical. A damaged model can still be close to 1.",
    ),
    "cosine_min": ("cosine, worst", "The same for the sample that changed most."),
    "spearman": ("Spearman", "Rank correlation of the scores before and after; 1 means the same order."),
    "kendall": (
        "Kendall",
        "Share of pairs in the same order minus the share in the opposite one; 1 means that none swapped. "
        "The strictest of the rank measures, because near ties swap easily.",
    ),
    "rank_flips": ("rank flips", "Share of pairs whose order the quantized model swaps; 0 is best."),
    "top1_neighbour_agreement": (
        "same nearest neighbour",
        "Share of samples whose nearest neighbour is unchanged; 1 is best.",
    ),
    "top1_agreement": ("same answer", "Share of samples whose most probable class is unchanged; 1 is best."),
    "label_agreement": ("same labels", "Share of labels that are assigned, or not, as before; 1 is best."),
    "kl": ("KL divergence", "Distance between the predicted probabilities before and after, in nats; 0 is identical."),
    "emd": (
        "EMD",
        "Earth mover’s distance between the output values before and after, each standardised; 0 is identical. "
        "It sees that values moved, not that they changed places.",
    ),
    "sqnr_db": ("SQNR, dB", "Signal-to-quantization-noise ratio of the outputs; 6 dB more is half the error."),
    "max_abs": ("largest difference", "The largest change of any single output value."),
    "next_token_agreement": (
        "same next token",
        "Share of the tokens after which both models hold the same token most likely; 1 is best.",
    ),
    "mean_nll_difference": (
        "rise of the NLL, nats",
        "How much more each token surprises the quantized model, on average; 0 is no change. "
        "e to the power of it is the factor by which perplexity grows.",
    ),
    "roc_auc_float": ("ROC AUC, original", "How often a pair labelled 1 is scored higher than one labelled 0."),
    "roc_auc_quantized": ("ROC AUC, quantized", "The same for the quantized model."),
    "best_accuracy_float": (
        "accuracy at the best threshold, original",
        "Share of the pairs that one cosine, or score, chosen on these very pairs, tells apart.",
    ),
    "best_accuracy_quantized": (
        "accuracy at the best threshold, quantized",
        "The same for the quantized model, with a threshold of its own.",
    ),
    "ndcg_at_10_float": ("nDCG@10, original", "How well it ranks the texts of each query; 1 is best."),
    "ndcg_at_10_quantized": ("nDCG@10, quantized", "The same for the quantized model."),
}  # fmt: skip

# A metric -> what the quantized model loses a share of, as a phrase for the verdict.
METRIC_PHRASES = {
    "Spearman of cosine": "its agreement with human judgement of similarity",
    "nDCG@10": "its search quality (nDCG@10)",
    "accuracy": "its accuracy",
    "macro F1": "its classification quality (macro F1)",
    "Spearman of pairwise similarities with float": "the original’s ranking of similarities",
    "top-1 agreement with float": "the original’s answers",
    "top-1 agreement with float, estimated from margins": "the original’s answers, estimated from margins",
    "Spearman of scores with float": "the original’s ranking by score",
    "agreement of labels with float": "the original’s labels",
    "agreement of labels with float, estimated from margins": "the original’s labels, estimated from margins",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is an int or a float (NaN and infinity included), and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number other than NaN and infinity."""
    return is_number(value) and math.isfinite(value)


def percent(fraction: Any) -> str:
    """A fraction as a percentage: 0.0008 -> "0.08 %", 0.01 -> "1 %", 0.123 -> "12.3 %"."""
    if not is_finite(fraction):
        return number(fraction)
    value = 100 * fraction
    if 0 < abs(value) < 0.001:
        return f"{'<' if value > 0 else '>'}{_NBSP}{_signed(math.copysign(0.001, value), 3)}{_NBSP}%"
    digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 1
    return f"{_signed(value, digits)}{_NBSP}%"


def size(n_bytes: Any) -> str:
    """Bytes in decimal units with three significant digits: 90_870_000 -> "90.9 MB"."""
    if not is_finite(n_bytes):
        return number(n_bytes)
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{_signed(value, digits, keep_zeros=True)}{_NBSP}{unit}"


def number(value: Any) -> str:
    """Four significant digits at most: 0.98765 -> "0.9877", 1234567 -> "1,234,567", infinity -> "∞"."""
    if not is_number(value):
        return ABSENT if value is None or not str(value) else str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    magnitude = abs(value)
    text = f"{value:.3g}" if magnitude < 1e-3 else f"{value:.4g}" if magnitude < 1000 else f"{value:,.0f}"
    return text.replace("e-0", "e-").replace("-", "−")


def ratio(value: Any, digits: int = 2) -> str:
    """A factor: 3.876 -> "3.88×"."""
    return fixed(value, digits) + "×" if is_finite(value) else number(value)


def fixed(value: Any, digits: int) -> str:
    """A number with as many decimals as the column's others."""
    return _signed(value, digits, keep_zeros=True) if is_finite(value) else number(value)


def alike(*values: Any) -> tuple[str, ...]:
    """Numbers to be compared, with equally many decimals: (44.2287, 44.4) -> "44.23", "44.40"."""
    sizes = [abs(value) for value in values if is_finite(value) and value]
    if not sizes or min(sizes) < 1e-3 or max(sizes) >= 1000:
        return tuple(map(number, values))
    return tuple(fixed(value, 3 - math.floor(math.log10(min(sizes)))) for value in values)


def times(factor: float, better: str, worse: str) -> str:
    """A factor in words: (3.88, "smaller", "larger") -> "3.9 times smaller"; (0.5, ...) -> "2.0 times larger"."""
    word, factor = (better, factor) if factor >= 1 else (worse, 1 / factor)
    return f"{factor:.1f} times {word}" if factor >= 1.05 else f"about as {_POSITIVE[better]}"


_POSITIVE = {"smaller": "large", "faster": "fast"}


def milliseconds(value: Any) -> str:
    """A latency, with decimals that keep a column aligned: 1.2 -> "1.20", 333.9 -> "333.9"."""
    if not is_finite(value):
        return number(value)
    return f"{value:.2f}" if value < 100 else f"{value:,.1f}"


def moment(created: Any) -> str:
    """An ISO 8601 time in UTC as people write it: "2025-03-04T10:20:30Z" -> "2025-03-04 10:20 UTC"."""
    match = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:[\d.]+)?(Z|\+00:00)?$", str(created or ""))
    return f"{match[1]} {match[2]} UTC" if match else str(created or "")


def seconds(value: Any) -> str:
    """A duration: 0.25 -> "0.25 s", 75 -> "1 min 15 s"."""
    if not is_finite(value):
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


def listed(names: Sequence[str]) -> str:
    """Names in a row: "German, French and Greek"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def short_name(model_name: Any) -> str:
    """The last part of a model's name or path: "sentence-transformers/all-MiniLM-L6-v2" -> "all-MiniLM-L6-v2"."""
    return PurePosixPath(str(model_name or "")).name or "The model"


def companion(name: str) -> tuple[str, str]:
    """The label and the explanation of a companion; a name that nobody knows is its own label, unexplained."""
    return COMPANIONS.get(name, (words(name), ""))


def metric_phrase(name: Any) -> str:
    """What a loss is a share of: "nDCG@10" -> "its search quality (nDCG@10)"."""
    return METRIC_PHRASES.get(str(name), f"the {words(name)}" if name else "the metric")


def breakable(name: Any) -> Markup:
    """A dotted name that may break after its dots, where a table is narrow."""
    return Markup(".<wbr>").join(str(name).split("."))


def with_code(sentence: str) -> Markup:
    """A sentence in HTML, in which commands and options do not break: "use <code>--max-loss</code>"."""
    return Markup(re.sub(r"(bitwright [a-z]+|--[a-z-]+)", r"<code>\1</code>", str(escape(sentence))))


def _signed(value: float, digits: int, *, keep_zeros: bool = False) -> str:
    text = f"{value:.{digits}f}"
    if "." in text and not keep_zeros:
        text = text.rstrip("0").rstrip(".")
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")
