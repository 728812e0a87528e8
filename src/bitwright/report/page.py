"""Record -> one HTML page that needs nothing else: no network, no server, no other file.

The page forbids itself every request and every script but its own (a Content-Security-Policy with the scripts' hashes), so
that a model name that tries to be HTML stays text even where a template or a plotting library forgets to escape it.
"""

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from bokeh.embed import json_item
from bokeh.resources import Resources
from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from bitwright.record import Record, read_record, write_text_atomically
from bitwright.report import plots, tables, verdict, wording

REPORT_FILE = "report.html"


def render_report(record: Record) -> str:
    """The report as one self-contained HTML page. A step that did not run has a section that says so."""
    sensitivity = record.get("sensitivity") or {}
    ranked = tables.ranked(sensitivity.get("rows"))
    distributions = tables.distributions_by_sensitivity(record)
    figures = _figures(record, ranked, distributions)
    shown = [{kind: plots.histogram_columns(row.get(kind)) for kind in ("weight", "activation")} for row in distributions]
    scripts = [_bokeh_source(), _packaged("page.js")] if figures else [_packaged("page.js")]
    return environment().get_template("page.html.j2").render(
        record=record,
        title=f"{wording.short_name((record.get('model') or {}).get('name'))}: quantization report",
        sentence=verdict.verdict_sentence(record),
        state=verdict.state(record),
        facts=verdict.facts(record),
        decisions=tables.decisions(record.get("plan") or []),
        layers=tables.layer_rows(record),
        ranked=ranked,
        ranked_units=tables.ranked(sensitivity.get("units")),
        ranked_groups=tables.ranked(sensitivity.get("groups")),
        distributions=distributions,
        recipe=yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True) if record.get("recipe") else "",
        figures=set(figures),
        data=_json_in_html({"figures": list(figures.values()), "distributions": shown}),
        style=_packaged("style.css"),
        scripts=[Markup(script) for script in scripts],
        policy=content_policy(scripts),
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
    named = (wording.percent, wording.size, wording.number, wording.ratio, wording.seconds, wording.words)
    env.filters |= {function.__name__: function for function in (*named, wording.short_name, wording.scheme_words)}
    env.globals["companion_meaning"] = wording.companion_meaning
    return env


def content_policy(scripts: list[str]) -> str:
    """The Content-Security-Policy of a page whose only scripts are these, given by their text."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes or chr(39) + 'none' + chr(39)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def packaged_style() -> Markup:
    """The style sheet that every page shares."""
    return _packaged("style.css")


def _figures(record: Record, ranked: list[tables.Row], distributions: list[tables.Row]) -> dict[str, Any]:
    """Target element -> Bokeh's JSON, for each figure whose data is there."""
    models: dict[str, Any] = {}
    if cells := tables.heat_cells(record.get("sensitivity") or {}):
        models["heat-map"] = plots.heat_map(cells)
    if any(wording.is_number(row.get("metric_loss")) and tables.badness(row.get("emd")) > 0 for row in ranked):
        models["emd-loss"] = plots.emd_against_loss(ranked)
    if distributions:
        models["weights"] = plots.histogram("weight", plots.histogram_columns(distributions[0]["weight"]))
        models["activations"] = plots.histogram(
            "activation", plots.histogram_columns(distributions[0].get("activation"))
        )
    steps = [s for s in record.get("steps") or [] if wording.is_number(s.get("bytes")) and wording.is_number(s.get("loss"))]
    if steps:
        models["loss-size"] = plots.loss_against_size(steps, (record.get("evaluation") or {}).get("max_loss"))
    speed = (record.get("speed") or {}).get("rows") or []
    if any(wording.is_number(row.get("ratio_to_fp32")) for row in speed):
        models["speed-bars"] = plots.speed_bars(speed)
    return {target: json_item(model, target) for target, model in models.items()}


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
