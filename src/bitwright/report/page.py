"""Record -> one HTML page that needs nothing else: no network, no server, no other file.

The page forbids itself every request and every script but its own (a Content-Security-Policy with the scripts' hashes),
so that a model name that tries to be HTML stays text even where a template or a plotting library forgets to escape it.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from bokeh.embed import json_item
from bokeh.resources import Resources
from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from bitwright.atomic import write_text_atomically
from bitwright.record import Distribution, Evaluation, Record, Sensitivity, Speed, as_data, read_record
from bitwright.report import (
    account,
    evidence,
    leftovers,
    panels,
    plots,
    schemes,
    search_plots,
    tables,
    training,
    tuned,
    verdict,
    wording,
)
from bitwright.report.attention import arithmetic_words, attention_words
from bitwright.report.experts import expert_blocks, expert_rows
from bitwright.report.judged import judged_on
from bitwright.report.polishing import loss_by_step, polish_words

REPORT_FILE = "report.html"
MAX_EXPERTS_LISTED = 100  # in one page, those that saw least first
MAX_LAYERS_DRAWN = 96  # distributions in one page, the most sensitive first: they are most of what the page weighs


def render_report(record: Record) -> str:
    """The report as one self-contained HTML page. It names the steps that did not run."""
    sensitivity = record.sensitivity or Sensitivity()
    ranked = tables.ranked(sensitivity.rows)
    distributions = tables.distributions_by_sensitivity(record)
    drawn = distributions[:MAX_LAYERS_DRAWN]
    experts = expert_rows(record.layers)
    evaluation = record.evaluation or Evaluation()
    pictures = _pictures(record, ranked, drawn)
    figures = [json_item(picture.model, target) for target, picture in pictures.items()]
    shown = [
        {"weight": plots.histogram_columns(row.weight), "activation": plots.histogram_columns(row.activation)}
        for row in drawn
    ]
    scripts = [_bokeh_source(), _packaged("page.js")] if pictures else [_packaged("page.js")]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            record=record,
            title=f"{wording.short_name(record.model.name)}: quantization report",
            sentence=verdict.verdict_sentence(record),
            state=verdict.state(record),
            notes=verdict.verdict_notes(record),
            next_step=verdict.next_step(record),
            panels=panels.panels(record),
            decisions=tables.decisions(record.plan),
            attention=attention_words(record),
            arithmetic=arithmetic_words(record),
            training=training.training_words(record.training),
            polished=polish_words(record.polish) if record.polish else "",
            exhibits=evidence.exhibits(as_data(record.decision)),
            evaluation=evaluation,
            evaluated=evaluation.loss is not None,
            judged_on=judged_on(evaluation, named=len(evaluation.languages or ())),
            unit=verdict.unit(evaluation),
            scores=wording.alike(evaluation.float_score, evaluation.quantized_score),
            chosen=tables.chosen_step(record.steps, evaluation.max_loss),
            errors=account.error_rows(record.layers) if account.has_errors(record.layers) else [],
            n_tokens=max((row.n_tokens or 0 for row in record.layers), default=0),
            rounds_inputs=any(schemes.rounds_inputs(row.scheme) for row in record.layers),
            expert_blocks=expert_blocks(record.layers),
            experts=experts[:MAX_EXPERTS_LISTED],
            n_experts=len(experts),
            layers=account.collapsed(record.plan, tables.emd_by_linear(sensitivity)),
            left_out=leftovers.left_out_rows(record.left_out or ()),
            not_run=_not_run(record),
            ranked=ranked,
            ranked_units=tables.ranked(sensitivity.units),
            ranked_groups=tables.whole_groups(sensitivity),
            drawn=drawn,
            n_distributions=len(distributions),
            tokens_timed=any(row.work != "forward" for row in (record.speed or Speed()).rows),
            tried=tuned.trial_rows(record.tuning),
            influences=tuned.influences(record.tuning),
            recipe=yaml.safe_dump(dict(record.recipe), sort_keys=False, allow_unicode=True) if record.recipe else "",
            legends={target: picture.legend for target, picture in pictures.items()},
            data=_json_in_html({"figures": figures, "distributions": shown}),
            style=_packaged("style.css"),
            scripts=[Markup(script) for script in scripts],
            policy=content_policy(scripts),
        )
    )


def write_report(directory: Path) -> Path:
    """Read `record.json` in `directory`, write `report.html` beside it (all or nothing), and return the page's path.

    Raises:
        CheckpointError: there is no readable record.
    """
    page = directory / REPORT_FILE
    write_text_atomically(page, render_report(read_record(directory)))
    return page


@cache
def environment() -> Environment:
    """The templates of this package: everything is escaped, and what a record lacks is empty, never an error."""
    loader = PackageLoader("bitwright.report", package_path="")
    env = Environment(
        loader=loader, autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (
        median,
        schemes.method_note,
        schemes.method_words,
        schemes.scheme_words,
        tables.step_units,
        wording.breakable,
        wording.companion,
        wording.listed,
        wording.fixed,
        wording.milliseconds,
        wording.moment,
        wording.number,
        wording.percent,
        wording.ratio,
        wording.seconds,
        wording.size,
        wording.with_code,
        wording.words,
        as_data,
    )
    env.filters |= {function.__name__: function for function in filters}
    return env


def content_policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy of a page whose only scripts are these, given by their text."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def packaged_style() -> Markup:
    """The style sheet that every page shares."""
    return _packaged("style.css")


def _pictures(
    record: Record, ranked: Sequence[tables.RankedRow], distributions: Sequence[Distribution]
) -> dict[str, plots.Picture]:
    """Target element -> figure, for each figure whose data is there."""
    pictures: dict[str, plots.Picture] = {}
    if cells := tables.heat_cells(record.sensitivity):
        pictures["heat-map"] = plots.heat_map(cells)
    if points := account.error_points(record.layers):
        pictures["layer-errors"] = plots.layer_errors(points)
    if plots.comparable(ranked):
        pictures["emd-loss"] = plots.emd_against_loss(ranked)
    if distributions:
        first = distributions[0]
        pictures["weights"] = plots.histogram("weight", plots.histogram_columns(first.weight))
        pictures["activations"] = plots.histogram("activation", plots.histogram_columns(first.activation))
    if record.polish is not None:
        pictures["polish-loss"] = loss_by_step(record.polish)
    max_loss = None if record.evaluation is None else record.evaluation.max_loss
    measured = [step for step in record.steps if wording.is_finite(step.loss)]
    if len(measured) > 1:
        pictures["loss-size"] = search_plots.loss_against_size(
            measured, tables.chosen_step(measured, max_loss), max_loss
        )
    if record.training is not None:
        pictures["training-curve"] = training.training_curve(record.training)
    if record.tuning is not None and tuned.finite_trials(record.tuning):
        pictures["incumbents"] = search_plots.incumbent_curve(record.tuning)
    if front := record.front:
        pictures["loss-speed"] = search_plots.loss_against_speed(front.rows, front.min_speedup, max_loss)
    timed = () if record.speed is None else record.speed.rows
    if any(wording.is_finite(row.ratio_to_fp32) for row in timed):
        pictures["speed-bars"] = plots.speed_bars(timed)
    return pictures


def _not_run(record: Record) -> list[str]:
    """The steps that left nothing to show. A missing evaluation is told where it would stand."""
    sensitivity = record.sensitivity or Sensitivity()
    ran = {
        "The search for layers that need more bits": record.steps,
        "The measurement of layer errors": account.has_errors(record.layers),
        "The sensitivity analysis": sensitivity.rows or sensitivity.units or sensitivity.groups,
        "The recording of distributions": record.distributions,
        "The timing": record.speed and (record.speed.rows or record.speed.too_busy),
        "The verification in other processes": record.verify,
    }
    return [name for name, left in ran.items() if not left]


@cache
def _bokeh_source() -> str:
    """Bokeh's core, without its widgets, tables, WebGL and MathJax bundles."""
    return "\n".join(Resources(mode="inline", minified=True, components=["bokeh"], log_level="warn").js_raw)


@cache
def _packaged(name: str) -> Markup:
    return Markup(files("bitwright.report").joinpath(name).read_text(encoding="utf-8"))


def _json_in_html(value: Any) -> Markup:
    """JSON that is inert inside a script element: no `<`, `>` or `&` that a parser could read as markup."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
