"""The report in a real browser, at the widths of a desk and of a phone."""

import pytest

from bitwright.record import record_of
from bitwright.report import render_comparison, render_report

pytestmark = pytest.mark.browser

WIDTHS = [1280, 400]
BROKEN = "$$x$$</script><img src=http://example.invalid/x onerror=document.title='taken'><b>"


@pytest.fixture
def open_page(watched_page, tmp_path):
    """open_page(html, width) -> a loaded page, whose console and requests were watched from the start."""

    def opened(html: str, width: int):
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        return watched_page(path.as_uri(), width)

    return opened


def drawn(page, target: str):
    """Wait until the figure in `target` is drawn; the size of its canvas."""
    canvas = page.locator(f"#{target} canvas").first
    canvas.wait_for(state="attached", timeout=20_000)
    return canvas.evaluate("c => [c.width, c.height]")


@pytest.mark.parametrize(("name", "width"), [("record", 1280), ("record", 400), ("not_met", 400)])
def test_report_is_drawn_without_errors_or_requests(open_page, request, name, width):
    page = open_page(render_report(record_of(request.getfixturevalue(name))), width)
    for target in ("heat-map", "emd-loss", "loss-size", "weights", "activations", "speed-bars"):
        assert min(drawn(page, target)) > 100, target
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.problems == []
    assert all(url.startswith(("file:", "data:")) for url in page.requests)
    assert len([url for url in page.requests if url.startswith("file:")]) == 1


@pytest.mark.parametrize(("name", "width"), [("experts", 1280), ("experts", 400), ("language", 400)])
def test_layer_errors_are_drawn_and_fit(open_page, request, name, width):
    page = open_page(render_report(record_of(request.getfixturevalue(name))), width)
    assert min(drawn(page, "layer-errors")) > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.problems == []


def test_errors_sort_by_size_not_by_text(open_page, experts):
    page = open_page(render_report(record_of(experts)), 1280)
    header = page.locator("#errors th button").nth(3)
    header.click()
    values = page.locator("#errors tbody tr").evaluate_all(
        "rows => rows.map(row => Number(row.cells[3].dataset.value))"
    )
    assert values == sorted(values)
    assert len(set(values)) > 5


@pytest.mark.parametrize(
    ("name", "scheme"),
    [  # `make test` has each page once, and each scheme three times
        pytest.param(name, scheme, marks=pytest.mark.full if (i + j) % 2 else ())
        for i, name in enumerate(["record", "undecided", "not_met", "failed", "experts", "minimal"])
        for j, scheme in enumerate(["light", "dark"])
    ],
)
def test_a_screen_reader_has_nothing_to_complain_about(open_page, request, record, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    record["verify"][0]["ok"] = name != "failed"
    made = record if name == "failed" else request.getfixturevalue(name)
    page = open_page(render_report(record_of(made)), 1280)
    page.emulate_media(color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("element => element.open = true")
    found = axe.run(page)
    assert len(found.response["passes"]) > 10
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found.response["violations"]] == []


def test_the_first_screen_shows_size_speed_and_loss(open_page, record):
    kinds = [{"kind": f"kind {i}", "n": 55, "loss": 0.001, "upper": 0.002} for i in range(18)]
    record["evaluation"] |= {"kinds": kinds}
    page = open_page(render_report(record_of(record)), 1280)
    panels = page.locator("article.panel")
    assert panels.count() == 3
    for i in range(3):
        box = panels.nth(i).bounding_box()
        assert box["y"] + box["height"] <= 900
    kinds_shown = panels.nth(2).locator("tr")
    assert kinds_shown.count() == 18
    tracks = kinds_shown.nth(0).locator(".track")
    budget, bar = tracks.locator(".budget").bounding_box(), tracks.locator(".bar").bounding_box()
    assert bar["x"] + bar["width"] < budget["x"]


@pytest.mark.parametrize("width", WIDTHS)
def test_missing_steps_leave_a_clean_page(open_page, minimal, width):
    page = open_page(render_report(record_of(minimal)), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("canvas").count() == 0
    assert page.problems == []


@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_fits(open_page, record, undecided, width):
    page = open_page(render_comparison(record_of(record), record_of(undecided)), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.problems == []


def test_heat_map_fills_its_card(open_page, full_page):
    page = open_page(full_page, 400)
    drawn(page, "heat-map")
    figure, card = (page.locator(where).bounding_box() for where in ("#heat-map > *", "#heat-map"))
    assert card["width"] * 0.95 <= figure["width"] <= card["width"]


def test_tables_sort_both_ways(open_page, full_page):
    page = open_page(full_page, 1280)
    header = page.locator("#layers th", has_text="before")
    column = "rows => rows.map(row => Number(row.cells[4].dataset.value))"
    for order, descending in (("ascending", False), ("descending", True)):
        header.locator("button").click()
        values = page.locator("#layers tbody tr").evaluate_all(column)
        assert values == sorted(values, reverse=descending)
        assert header.get_attribute("aria-sort") == order


def test_choosing_a_layer_changes_its_distributions(open_page, record):
    record["distributions"][7]["activation"] = None
    name = record["distributions"][7]["name"]
    page = open_page(render_report(record_of(record)), 1280)
    drawn(page, "weights")
    left = """kind => Bokeh.documents.map(d => d.get_model_by_name(`${kind}-values`)).find(s => s).data.left.length"""
    assert page.evaluate(left, "activation") > 0
    page.select_option("#layer", label=name)
    assert page.evaluate(left, "activation") == 0
    assert page.evaluate(left, "weight") > 0
    assert page.locator("#no-activation").is_visible()


def test_hostile_names_do_not_run(open_page, record):
    record["model"]["name"] = BROKEN
    for row in (*record["plan"], *record["sensitivity"]["rows"], *record["distributions"], *record["speed"]["rows"]):
        row["name"] = row["runtime"] = BROKEN
    page = open_page(render_report(record_of(record)), 1280)
    drawn(page, "emd-loss")
    bars = page.locator("#speed-bars")
    bars.scroll_into_view_if_needed()
    drawn(page, "speed-bars")
    box = bars.bounding_box()
    tooltip = page.locator(".bk-Tooltip")
    for tenth in range(1, 9):
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] * tenth / 10)
        page.wait_for_timeout(100)
        if tooltip.count():
            break
    assert tooltip.get_by_text("onerror=").first.inner_text() == BROKEN
    assert page.title() != "taken"
    assert page.locator("img").count() == 0
    assert not [url for url in page.requests if url.startswith("http")]
