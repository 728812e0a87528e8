"""The model card: README.md of a quantized checkpoint, written from its record."""

import html
import re
from typing import Any

import yaml

from bitwright.families.tasks import AUTO_CLASSES
from bitwright.record import Record
from bitwright.report.experts import expert_blocks
from bitwright.report.schemes import scheme_tag, scheme_words
from bitwright.report.tables import decisions
from bitwright.report.verdict import held_out, is_bitwright, metric_name, verdict_sentence
from bitwright.report.wording import (
    alike,
    is_number,
    milliseconds,
    number,
    percent,
    ratio,
    short_name,
    size,
    times,
    words,
)

PIPELINE_TAGS = {
    "embedding": "sentence-similarity",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "text-generation": "text-generation",
}
_USES = {
    "embedding": 'model.encode(["A sentence to embed."])',
    "text-generation": 'ids = model.tokenizer("Once upon a time", return_tensors="pt").input_ids\n'
    "print(model.tokenizer.decode(model.hf.generate(ids, max_new_tokens=40)[0]))",
}
FP32 = "torch fp32"  # the runtime that every speed is relative to
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def render_model_card(record: Record, source_readme: str | None) -> str:
    """README.md in Markdown: front matter, what it is, how to load it, what was measured, how it was made, its limits.

    source_readme: the original model's card; only its license is taken from it, before the record's.
    """
    model = record.get("model") or {}
    sections = [
        _front_matter(record, source_readme),
        f"# {_text(short_name(model.get('name')))}, quantized",
        _text(verdict_sentence(record)),
        _what_it_is(record),
        _how_to_load(record),
        _results(record),
        _how_it_was_made(record),
        _limits(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def license_of(readme: str | None) -> dict[str, Any]:
    """The license fields (license, license_name, license_link) of a card's YAML front matter, if any."""
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", readme or "", flags=re.DOTALL)
    if not match:
        return {}
    try:
        fields = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}  # a card that is not valid YAML says nothing about the license; the record may
    if not isinstance(fields, dict):
        return {}
    return {key: fields[key] for key in ("license", "license_name", "license_link") if fields.get(key)}


def _front_matter(record: Record, source_readme: str | None) -> str:
    model = record.get("model") or {}
    task = str(model.get("task"))
    fields: dict[str, Any] = license_of(source_readme)
    if not fields and model.get("license"):
        fields = {"license": model["license"]}
    if _HUB_NAME.fullmatch(str(model.get("name"))):
        fields |= {"base_model": model["name"], "base_model_relation": "quantized"}
    fields["library_name"] = _library(record)
    if task in PIPELINE_TAGS:
        fields["pipeline_tag"] = PIPELINE_TAGS[task]
    fields["tags"] = ["bitwright", "quantized", *sorted(_weight_tags(record))]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _what_it_is(record: Record) -> str:
    model = record.get("model") or {}
    lines = ["## What it is", "", f"A quantized copy of {_code(_public_name(model.get('name')))}."]
    plan = decisions(record.get("plan") or [])
    for group in plan:
        roles = ", ".join(words(role) for role in group["roles"])
        n = len(group["names"])
        by = f", by {_text(group['method'])}" if group["method"] not in (None, "cast", "rtn") else ""
        reason = f": {_text(group['reason'])}" if group["reason"] else ""
        stored = _text(scheme_words(group["scheme"]))
        lines.append(f"- {n} layer{'s' * (n != 1)} ({_text(roles)}): {stored}{by}{reason}")
    if plan:
        lines.insert(3, "")
    return "\n".join(lines)


def _public_name(name: Any) -> str:
    """A model's name on the Hub, or the last part of its path: where it lies on someone's disk concerns nobody."""
    return str(name) if _HUB_NAME.fullmatch(str(name)) else short_name(name)


def _how_to_load(record: Record) -> str:
    task = (record.get("model") or {}).get("task")
    use = _USES.get(str(task), "# model.hf is the transformers model")
    blocks = [
        "## How to load it",
        "`MODEL` is this directory, or its name on the Hub.",
        "On Bitwright's CPU kernels (`pip install bitwright`):",
        f"```python\nimport bitwright\n\nmodel = bitwright.load(MODEL)\n{use}\n```",
    ]
    if _library(record) == "bitwright":
        blocks.append("It was made for Bitwright alone, and tried in no other runtime.")
    elif _library(record) == "sentence-transformers":
        blocks += [
            "In Sentence Transformers (`pip install sentence-transformers compressed-tensors`):",
            "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer(MODEL)\nmodel.encode(["A sentence to embed."])\n```',
        ]
    else:
        loader = AUTO_CLASSES.get(str(task), "AutoModel")
        blocks += [
            "In Transformers (`pip install transformers compressed-tensors`):",
            f"```python\nfrom transformers import AutoTokenizer, {loader}\n\n"
            f"model = {loader}.from_pretrained(MODEL)\ntokenizer = AutoTokenizer.from_pretrained(MODEL)\n```",
        ]
    return "\n\n".join(blocks)


def _results(record: Record) -> str:
    rows = [("what", "original", "quantized", "change")]
    sizes, evaluation = record.get("size") or {}, record.get("evaluation") or {}
    before, after = sizes.get("source_bytes"), sizes.get("checkpoint_bytes")
    if before and after:
        rows.append(("size on disk", size(before), size(after), times(before / after, "smaller", "larger")))
    if is_number(evaluation.get("loss")):
        before, after = alike(evaluation.get("float_score"), evaluation.get("quantized_score"))
        bound = evaluation.get("loss_upper")
        at_most = f", at most {percent(bound)} (95 %)" if is_number(bound) else ""
        better = ", lower is better" if (evaluation.get("metric") or {}).get("higher_is_better") is False else ""
        rows.append((metric_name(record) + better, before, after, f"loss {percent(evaluation['loss'])}{at_most}"))
    speed = record.get("speed") or {}
    timed = speed.get("rows") or []
    fp32 = {(row.get("batch"), row.get("tokens")): row.get("median_ms") for row in timed if row.get("runtime") == FP32}
    for row in timed:
        if is_bitwright(row) and is_number(row.get("ratio_to_fp32")):
            what = f"latency, batch {number(row.get('batch'))} × {number(row.get('tokens'))} tokens, ms"
            before_ms, after_ms = fp32.get((row.get("batch"), row.get("tokens"))), row.get("median_ms")
            change = f"{ratio(row['ratio_to_fp32'])} the speed"
            rows.append((what, milliseconds(before_ms), milliseconds(after_ms), change))
    if len(rows) == 1:
        return ""
    header, *body = ("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    environment = record.get("environment") or {}
    where = [_text(environment[key]) for key in ("cpu", "isa") if environment.get(key)]
    where += [f"{speed['threads']} threads"] if speed.get("threads") else []
    sample = f"Accuracy on {_text(held_out(evaluation))}{_protocol(evaluation)}."
    notes = [sample] if evaluation.get("n_held_out") else []
    notes += [f"Measured on {', '.join(where)}."] if where else []
    return "\n".join(["## Measured", "", header, "|---|---:|---:|---:|", *body, "", " ".join(notes)]).rstrip()


def _how_it_was_made(record: Record) -> str:
    command = record.get("command")
    version = record.get("bitwright_version")
    made = f"With Bitwright {_text(version)}" if version else "With Bitwright"
    closing = "`record.json` holds everything that was measured, and `report.html` shows it."
    if not command:
        return f"## How it was made\n\n{made}. {closing}"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"## How it was made\n\n{made}:\n\n{fence}sh\n{command}\n{fence}\n\n{closing}"


def _limits(record: Record) -> str:
    evaluation = record.get("evaluation") or {}
    lines = ["## Limits", ""]
    if not is_number(evaluation.get("loss")):
        lines.append("- It was not evaluated: what quantizing costs in accuracy is not known.")
    elif (evaluation.get("metric") or {}).get("label_free"):
        lines.append(
            "- The loss compares the answers with the original model's own, without labels; it says nothing about how "
            "right either is."
        )
    if is_number(evaluation.get("loss")):
        lines.append(
            "- The loss holds for data like the evaluation data. Other languages, domains and lengths may differ."
        )
    if evaluation.get("verdict") == "undecided":
        lines.append("- The sample was too small to decide whether the accuracy budget is met.")
    if evaluation.get("verdict") == "not met":
        lines.append("- The accuracy budget that was asked for is not met.")
    blocks = expert_blocks(record)
    if starved := sum(block.n_starved for block in blocks):
        experts = sum(len(block.tokens) for block in blocks)
        lines.append(
            f"- {number(starved)} of {number(experts)} experts saw too little of the calibration texts to be quantized "
            "by what they see; `report.html` says what was done instead."
        )
    lines += [f"- {_text(warning)}" for warning in record.get("warnings") or []]
    lines.append("- The limits and biases of the original model remain; see its card.")
    return "\n".join(lines)


def _protocol(evaluation: Record) -> str:
    protocol = (evaluation.get("metric") or {}).get("protocol")
    return f" ({_text(protocol)})" if protocol else ""


def _library(record: Record) -> str:
    """The library that loads it: Bitwright's own where no other was asked for, and none was tried."""
    tried = {row.get("target") for row in record.get("verify") or []}
    targets = tried | set((record.get("recipe") or {}).get("targets") or ())
    if targets == {"bitwright"}:
        return "bitwright"
    embeds = (record.get("model") or {}).get("task") == "embedding"
    return "sentence-transformers" if "sentence-transformers" in tried or (embeds and not tried) else "transformers"


def _weight_tags(record: Record) -> set[str]:
    """ "int8" and the like, for every grid and width that the plan uses."""
    return {tag for row in record.get("plan") or [] if (tag := scheme_tag(row.get("scheme")))}


def _text(value: Any) -> str:
    """Text that Markdown and HTML leave alone, on one line."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _cell(value: str) -> str:
    return _text(value)


def _code(value: Any) -> str:
    """An inline code span, delimited by more backticks than it contains."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
