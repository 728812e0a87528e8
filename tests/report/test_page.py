"""The page: complete, self-contained, and safe whatever the record holds."""

import json
import re
from html.parser import HTMLParser

import pytest

from bitwright.errors import CheckpointError
from bitwright.record import record_of, write_record
from bitwright.report import REPORT_FILE, render_report, write_report
from bitwright.report import page as page_module
from bitwright.report.page import MAX_LAYERS_DRAWN

SECTIONS = [
    "decisions",
    "accuracy",
    "accuracy-size",
    "sensitivity",
    "distributions",
    "speed",
    "verification",
    "layers",
    "not-run",
    "reproduce",
]
FIGURES = {"heat-map", "emd-loss", "loss-size", "weights", "activations", "speed-bars"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"


class Page(HTMLParser):
    """The elements of a page, the text outside scripts and styles, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.raw, self._open = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.raw.append(data)
        else:
            self.text += data.replace("\u00a0", " ")

    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements}


def test_sections_in_order_and_figures(record, full_page):
    page = Page(full_page)
    assert [a["id"] for tag, a in page.elements if tag == "section"] == SECTIONS
    assert page.ids() >= FIGURES
    for said in ("Budget met", "The budget of 1 % is met", "int8 weights", "8 and then 16", "0.81", "Kendall"):
        assert said in page.text
    for said in (record["command"], "avx512vnni", "nncf is not installed", "not checked"):
        assert said in page.text


@pytest.mark.parametrize("verdict", ["record", "undecided", "not_met"])
def test_every_verdict_has_its_badge(verdict, request):
    heading = {"record": "Budget met", "undecided": "Undecided", "not_met": "Budget not met"}[verdict]
    assert heading in Page(render_report(record_of(request.getfixturevalue(verdict)))).text


def test_minimal_record_says_what_did_not_run(minimal):
    page = Page(render_report(record_of(minimal)))
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [
        "decisions",
        "accuracy",
        "not-run",
        "reproduce",
    ]
    for said in ("Not evaluated", "search for layers", "layer errors", "sensitivity", "timing", "verification"):
        assert said in page.text
    assert not page.ids() & FIGURES


def test_language_models_have_their_protocol_and_the_error_of_every_layer(language):
    page = Page(render_report(record_of(language)))
    sections = [a["id"] for tag, a in page.elements if tag == "section"]
    assert sections == [
        "decisions",
        "accuracy",
        "accuracy-size",
        "errors",
        "verification",
        "layers",
        "not-run",
        "reproduce",
    ]
    assert "layer-errors" in page.ids()
    assert not {"heat-map", "loss-size"} & page.ids()  # nothing was ranked, and one step is no curve
    for said in (language["evaluation"]["metric"]["protocol"], "20 held-out windows", "same next token",
                 "24.10", "24.82",
                 "int4 weights in groups of 64", "weights below 8 bits", "α = 0.5"):  # fmt: skip
        assert said in page.text, said


def test_experts_are_told_block_by_block(experts):
    page = Page(render_report(record_of(experts)))
    assert "experts" in [a["id"] for tag, a in page.elements if tag == "section"]
    assert "8 × uses what all experts of the block saw" in page.text
    assert "model.layers.1.mlp.experts.*.down_proj" in page.text
    many = page.text.count("mlp.experts.")
    experts["layers"] += [
        {**row, "name": row["name"].replace("experts.", "experts.1")} for row in experts["layers"] * 4
        if row["role"] == "expert"
    ]  # fmt: skip
    assert Page(render_report(record_of(experts))).text.count("mlp.experts.") == many + 2 * 8


def test_unjudged_results_are_not_green(unjudged):
    text = render_report(record_of(unjudged))
    page = Page(text)
    assert "Not evaluated" in page.text
    assert "Budget met" not in page.text
    assert not any("met" in (attributes.get("class") or "").split() for _, attributes in page.elements)
    assert "errors" in [a["id"] for tag, a in page.elements if tag == "section"]


def test_evidence_is_shown(language, evidence):
    language["decision"] = evidence
    page = Page(render_report(record_of(language)))
    assert [a["id"] for tag, a in page.elements if tag == "section"][1] == "evidence"
    for said in ("sensitive weights", "4.ffn", "rtn 10 %, gptq 5 %", "no better", "∞"):
        assert said in page.text


def test_steps_name_few_units_and_count_many(record):
    names = [f"encoder.layer.{i}.output.dense" for i in range(6)]
    for step, units in zip(record["steps"], (names[:2], names), strict=True):
        step |= {"units": units, "chosen": units == names[:2]}
    page = Page(render_report(record_of(record)))
    assert "chosen – " + ", ".join(names[:2]) in page.text
    assert "6 sets of layers" in page.text


def test_any_step_may_be_missing(record, monkeypatch):
    monkeypatch.setattr(
        page_module, "json_item", lambda model, target: {}
    )  # serializing the figures takes most of the time
    record["distributions"] = record["distributions"][:1]
    for key, value in record.items():
        without = {name: kept for name, kept in record.items() if name != key}
        partial = [without, without | {key: None}] + [without | {key: {}}] * isinstance(value, dict)
        for data in partial:
            assert "<h1>" in render_report(record_of(data))


def test_nothing_is_loaded_from_elsewhere(full_page):
    page = Page(full_page)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    styles = "".join(re.findall("<style>(.*?)</style>", full_page, re.DOTALL))
    assert not re.search(r"@import|url\(", styles)
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_page_is_small(record, full_page):
    assert len(full_page.encode()) < 3_000_000
    row = record["distributions"][0]
    record["distributions"] = [{**row, "name": f"encoder.layer.{i}"} for i in range(400)]
    page = render_report(record_of(record))
    assert len(page.encode()) < 3_000_000
    assert f"the {MAX_LAYERS_DRAWN} most sensitive of 400 layers" in Page(page).text


def poisoned(value, path=()):
    """A copy in which every text is hostile; but verdicts, roles and modes, which steer the page."""
    if isinstance(value, dict):
        keep = ("verdict", "role", "mode")
        return {k: v if k in keep else poisoned(v, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(item, path) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_hostile_text_stays_text(record, full_page, experts, evidence):
    record |= {"layers": experts["layers"], "decision": evidence}
    clean, page = Page(full_page), Page(render_report(record_of(poisoned(record))))
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == ["script"] * 3
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "{{7*7}}" in page.text
    assert len(page.raw) == len(clean.raw)
    data = next(raw for raw in page.raw if raw.startswith('{"figures"'))
    assert not set("<>&") & set(data)
    assert HOSTILE in json.dumps(json.loads(data), ensure_ascii=False).replace('\\"', '"')


def test_write_report(record, tmp_path):
    write_record(record_of(record), tmp_path / "record.json")
    path = write_report(tmp_path)
    assert path == tmp_path / REPORT_FILE
    assert "inside the" in path.read_text(encoding="utf-8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["record.json", REPORT_FILE]


def test_report_without_a_record(tmp_path):
    with pytest.raises(CheckpointError, match="no record here"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
