"""The model card: README.md of a quantized checkpoint, written from its record."""

import html
import re
from collections.abc import Sequence
from typing import Any

import yaml

from bitwright.families.tasks import AUTO_CLASSES
from bitwright.files.directory import front_matter
from bitwright.record import ORIGINALS, Environment, Evaluation, Record, Speed, SpeedRow, shape_words
from bitwright.report.attention import arithmetic_words, attention_words
from bitwright.report.experts import expert_blocks
from bitwright.report.judged import elsewhere_words, judged_on, worst_kind
from bitwright.report.leftovers import left_out_rows
from bitwright.report.schemes import scheme_tag, scheme_words
from bitwright.report.tables import decisions
from bitwright.report.verdict import failed_checks, is_result, metric_name, verdict_notes, verdict_sentence
from bitwright.report.wording import (
    alike,
    milliseconds,
    number,
    percent,
    ratio,
    short_name,
    size,
    times,
    words,
)
from bitwright.targets import TARGETS

PIPELINE_TAGS = {
    "embedding": "sentence-similarity",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "text-generation": "text-generation",
    "reranking": "text-ranking",  # by answers of a language model
}
_USES = {
    "reranking": 'model.rank("a question", ["a text", "another"])',
    "embedding": 'model.encode(["A sentence to embed."])',
    "text-generation": 'ids = model.tokenizer("Once upon a time", return_tensors="pt").input_ids\n'
    "print(model.tokenizer.decode(model.hf.generate(ids, max_new_tokens=40)[0]))",
}
MAX_FILES_LISTED = 20
FP32 = "torch fp32"  # the runtime that every speed is relative to
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def render_model_card(record: Record, source_readme: str | None) -> str:
    """README.md in Markdown: front matter, what it is, how to load it, what was measured, how it was made, its limits.

    source_readme: the original model's card; only its license is taken from it, before the record's.
    """
    sections = [
        _front_matter(record, source_readme),
        f"# {_text(short_name(record.model.name))}, quantized",
        _text(" ".join([verdict_sentence(record), *verdict_notes(record)])),
        _what_it_is(record),
        _how_to_load(record),
        _results(record),
        _how_it_was_made(record),
        _left_out(record),
        _limits(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def license_of(readme: str | None) -> dict[str, Any]:
    """The license fields (license, license_name, license_link) of a card's YAML front matter, if any."""
    try:
        fields = yaml.safe_load(front_matter(readme or ""))
    except Exception:  # it raises more than YAMLError; such a card says nothing about the license, the record may
        return {}
    if not isinstance(fields, dict):
        return {}
    return {key: fields[key] for key in ("license", "license_name", "license_link") if fields.get(key)}


def _front_matter(record: Record, source_readme: str | None) -> str:
    model = record.model
    fields: dict[str, Any] = license_of(source_readme)
    if not fields and model.license:
        fields = {"license": model.license}
    if _HUB_NAME.fullmatch(model.name or ""):
        fields |= {"base_model": model.name, "base_model_relation": "quantized"}
    fields["library_name"] = _library(record)
    if (task := "reranking" if _answers(record) else model.task) in PIPELINE_TAGS:
        fields["pipeline_tag"] = PIPELINE_TAGS[task]
    fields["tags"] = ["bitwright", "quantized", *sorted(_weight_tags(record))]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _what_it_is(record: Record) -> str:
    lines = ["## What it is", "", f"A quantized copy of {_code(_public_name(record.model.name))}."]
    plan = decisions(record.plan)
    for group in plan:
        roles = ", ".join(words(role) for role in group.roles)
        n = len(group.names)
        by = f", by {_text(group.method)}" if group.method not in ("cast", "rtn") else ""
        reason = f": {_text(group.reason)}" if group.reason else ""
        stored = _text(scheme_words(group.scheme))
        lines.append(f"- {n} layer{'s' * (n != 1)} ({_text(roles)}): {stored}{by}{reason}")
    if said := arithmetic_words(record):
        lines.append(f"- arithmetic of Bitwright's engine, in which it was judged: {_text(said)}")
    if said := attention_words(record):
        lines.append(f"- attention on Bitwright's engine: {_text(said)}")
    if plan:
        lines.insert(3, "")
    return "\n".join(lines)


def _public_name(name: str | None) -> str:
    """A model's name on the Hub, or the last part of its path: where it lies on someone's disk concerns nobody."""
    return str(name) if _HUB_NAME.fullmatch(str(name)) else short_name(name)


def _how_to_load(record: Record) -> str:
    task = "reranking" if _answers(record) else record.model.task or ""
    use = _USES.get(task, "# model.hf is the transformers model")
    blocks = [
        "## How to load it",
        "`MODEL` is this directory, or its name on the Hub.",
        "On Bitwright's CPU kernels (`pip install bitwright`):",
        f"```python\nimport bitwright\n\nmodel = bitwright.load(MODEL)\n{use}\n```",
    ]
    if _library(record) == "bitwright":
        blocks.append("It was made for Bitwright alone, and tried in no other runtime.")
    elif _library(record) == "sentence-transformers":
        kind, use = "SentenceTransformer", 'model.encode(["A sentence to embed."])'
        if _answers(record):
            kind, use = "CrossEncoder", _USES["reranking"]
        blocks += [
            "In Sentence Transformers (`pip install sentence-transformers compressed-tensors`):",
            f"```python\nfrom sentence_transformers import {kind}\n\nmodel = {kind}(MODEL)\n{use}\n```",
        ]
    else:
        loader = AUTO_CLASSES.get(task, "AutoModel")
        blocks += [
            "In Transformers (`pip install transformers compressed-tensors`):",
            f"```python\nfrom transformers import AutoTokenizer, {loader}\n\n"
            f"model = {loader}.from_pretrained(MODEL)\ntokenizer = AutoTokenizer.from_pretrained(MODEL)\n```",
        ]
    return "\n\n".join(blocks)


def _results(record: Record) -> str:
    rows = [("what", "original", "quantized", "change")]
    evaluation, speed = record.evaluation or Evaluation(), record.speed or Speed()
    source, result = record.size.source_bytes, record.size.checkpoint_bytes
    if source and result:
        rows.append(("size on disk", size(source), size(result), times(source / result, "smaller", "larger")))
    if evaluation.loss is not None:
        before, after = alike(evaluation.float_score, evaluation.quantized_score)
        bound = evaluation.loss_upper
        new_kind = " on a new kind of text" if evaluation.kinds else ""
        at_most = "" if bound is None else f", at most {percent(bound)}{new_kind} (95 %)"
        better = ", lower is better" if evaluation.metric.higher_is_better is False else ""
        rows.append((metric_name(evaluation) + better, before, after, f"loss {percent(evaluation.loss)}{at_most}"))
    rows += _speed_rows(speed.rows)
    if len(rows) == 1:
        return ""
    header, *body = ("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    environment = record.environment or Environment()
    where = [_text(part) for part in (environment.cpu, environment.isa) if part]
    where += [f"{speed.threads} threads"] if speed.threads else []
    sample = f"Accuracy on {_text(judged_on(evaluation))}{_protocol(evaluation)}{_judge(evaluation)}."
    if evaluation.kinds:
        sample += f" It loses {_text(worst_kind(evaluation.kinds))}."
    if evaluation.elsewhere:
        sample += f" Elsewhere it loses {_text(elsewhere_words(evaluation.elsewhere))}."
    notes = [sample] if evaluation.n_held_out else []
    notes += [f"Measured on {', '.join(where)}."] if where else []
    return "\n".join(["## Measured", "", header, "|---|---:|---:|---:|", *body, "", " ".join(notes)]).rstrip()


def _speed_rows(timed: Sequence[SpeedRow]) -> list[tuple[str, str, str, str]]:
    """(what, the original, the result, how many times as fast) of each shape: against float32, or of a language model
    against the fastest in bf16."""
    found = []
    for row in (row for row in timed if is_result(row.runtime)):
        dtype, factor = ("fp32", row.ratio_to_fp32) if row.work == "forward" else ("bf16", row.ratio_to_bf16)
        if factor is None:
            continue
        others = [other for other in timed if other.shape == row.shape and other.runtime in ORIGINALS[dtype]]
        change = f"{ratio(factor)} the speed"
        if row.work == "forward":
            original_ms = min((other.median_ms for other in others if other.median_ms is not None), default=None)
            what = f"latency, {shape_words(row.shape)}, ms"
            found.append((what, milliseconds(original_ms), milliseconds(row.median_ms), change))
        else:
            rate = max((other.per_second for other in others if other.per_second is not None), default=None)
            what = f"{shape_words(row.shape)}, tokens per s"
            found.append((what, milliseconds(rate), milliseconds(row.per_second), change))
    return found


def _how_it_was_made(record: Record) -> str:
    command, version = record.command, record.bitwright_version
    made = f"With Bitwright {_text(version)}" if version else "With Bitwright"
    closing = "`record.json` holds everything that was measured, and `report.html` shows it."
    if not command:
        return f"## How it was made\n\n{made}. {closing}"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"## How it was made\n\n{made}:\n\n{fence}sh\n{command}\n{fence}\n\n{closing}"


def _left_out(record: Record) -> str:
    """What lay beside the original model and is not here."""
    rows = left_out_rows(record.left_out or ())
    if not rows:
        return ""
    lines = ["## What is not in it", "", "The directory of the original model has this too:", ""]
    lines += [f"- {_code(row.name)}, {size(row.bytes)}: {_text(row.why)}" for row in rows[:MAX_FILES_LISTED]]
    if len(rows) > MAX_FILES_LISTED:
        lines.append(f"- and {number(len(rows) - MAX_FILES_LISTED)} more files: see `report.html`")
    return "\n".join(lines)


def _limits(record: Record) -> str:
    evaluation = record.evaluation or Evaluation()
    lines = ["## Limits", ""]
    if failed := failed_checks(record):
        names = ", ".join(_text(row.target) for row in failed)
        lines.append(f"- **Do not use it**: in {names} it gives other outputs than those that were judged.")
    if evaluation.loss is None:
        lines.append("- It was not evaluated: what quantizing costs in accuracy is not known.")
    elif evaluation.metric.label_free:
        lines.append(
            "- The loss compares the answers with the original model's own, without labels; it says nothing about how "
            "right either is."
        )
    if evaluation.kinds:
        lines.append(
            "- The bound is for text of a kind that was not tried, with the confidence that is named. Text unlike all "
            "of these may lose more."
        )
        if evaluation.languages_left_out:
            lines.append(f"- It was not judged on text in {_text(', '.join(evaluation.languages_left_out))}.")
    elif evaluation.loss is not None:
        lines.append(
            "- The loss holds for data like the evaluation data. Other languages, domains and lengths may differ."
        )
    if evaluation.verdict == "undecided":
        lines.append("- The sample was too small to decide whether the accuracy budget is met.")
    if evaluation.verdict == "not judged on pairs":
        lines.append("- It reads pairs of texts, and the loss is that of single ones: it is not judged as it is used.")
    if evaluation.verdict == "not met":
        lines.append("- The accuracy budget that was asked for is not met.")
    blocks = expert_blocks(record.layers)
    if starved := sum(block.n_starved for block in blocks):
        experts = sum(len(block.tokens) for block in blocks)
        lines.append(
            f"- {number(starved)} of {number(experts)} experts saw too little of the calibration texts to be quantized "
            "by what they see; `report.html` says what was done instead."
        )
    lines += [f"- {_text(warning)}" for warning in record.warnings]
    lines.append("- The limits and biases of the original model remain; see its card.")
    return "\n".join(lines)


def _judge(evaluation: Evaluation) -> str:
    return f"; the float model was run by {_text(evaluation.judge)}" if evaluation.judge else ""


def _protocol(evaluation: Evaluation) -> str:
    protocol = evaluation.metric.protocol
    return f" ({_text(protocol)})" if protocol else ""


def _library(record: Record) -> str:
    """The library that loads it: Bitwright's own where no other was asked for, and none was tried."""
    tried = {row.target for row in record.verify or ()}
    targets = tried | set(record.recipe.get("targets") or ())
    if targets and not any(name not in TARGETS or TARGETS[name].plain for name in targets):
        return "bitwright"
    if _answers(record):
        return "sentence-transformers"
    embeds = record.model.task == "embedding"
    return "sentence-transformers" if "sentence-transformers" in tried or (embeds and not tried) else "transformers"


def _answers(record: Record) -> bool:
    """Whether a language model is a reranker, of which its answers' logits are the score."""
    name = next(iter(record.model.architectures or ()), "")
    return record.model.task == "sequence-classification" and name.endswith("ForCausalLM")


def _weight_tags(record: Record) -> set[str]:
    """ "int8" and the like, for every grid and width that the plan uses."""
    return {tag for row in record.plan if (tag := scheme_tag(row.scheme))}


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
