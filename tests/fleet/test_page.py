"""fleet.html and fleet.json: what they show, and that what a model is called stays text."""

import json
import re
from pathlib import Path

from bitwright.fleet.page import headline, line, render, write_summary
from bitwright.fleet.receipts import Outcome
from bitwright.fleet.rows import Row
from tests.fleet.conftest import MakeFleet

MET = Outcome("met", 0, "", "MiniLM is smaller.", 0.001, 0.002, 0.01, 90_000_000, 35_000_000, 75.0)
WORSE = Outcome("not met", 3, "", "It loses much.", 0.02, 0.03, 0.01, 90_000_000, 30_000_000, 60.0)
BAD = Outcome("failed", 1, "<script>alert(1)</script> & more")


def rows_in(out: Path) -> list[Row]:
    (out / "a b").mkdir(parents=True)
    (out / "a b" / "report.html").write_text("x")
    return [
        Row("search", "met", out / "a b", outcome=MET, why=("recipe", "texts"), before=WORSE),
        Row("labels", "unchanged", out / "labels", outcome=WORSE),
        Row("<b>evil</b>", "failed", out / "evil", outcome=BAD, why=("new",)),
    ]


def test_the_page_says_what_became_of_each(tmp_path: Path) -> None:
    page = render(tmp_path, rows_in(tmp_path))
    assert "1 of 3 models is inside the budget; 1 budget not met, 1 no result." in page
    assert '<a href="a%20b/report.html">search</a>' in page
    text = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL).split()).replace("\u00a0", " ")
    assert "0.1 %, at most 0.2 %" in text
    assert "90.0 MB → 35.0 MB" in text
    assert (
        "the recipe changed; the texts changed; Budget not met before; loss 2 % → 0.1 %; size 30.0 MB → 35.0 MB" in text
    )
    assert "This run worked on 2 of 3" in text


def test_names_and_errors_stay_text(tmp_path: Path) -> None:
    page = render(tmp_path, rows_in(tmp_path))
    assert "<script" not in page
    assert "<b>evil" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_the_summary_is_for_machines(make_fleet: MakeFleet, tmp_path: Path) -> None:
    fleet = make_fleet([{"name": name, "model": "org/m"} for name in ("search", "labels", "other")], out=".")
    written = write_summary(fleet, rows_in(tmp_path)[:2])
    data = json.loads((tmp_path / "fleet.json").read_text())
    assert data == written
    # A model that this run left out is shown, and does not count.
    assert (data["exit_code"], data["counts"]) == (3, {"met": 1, "not met": 1, "waiting": 1})
    assert data["models"][0]["outcome"]["loss_upper"] == 0.002
    assert data["models"][0]["changed"] == ["recipe", "texts"]
    assert (tmp_path / "fleet.html").is_file()


def test_words() -> None:
    assert headline([Row("a", "met", Path("a"), outcome=MET)]) == "1 of 1 models is inside the budget."
    waiting = line(Row("a", "waiting", Path("a"), "loading"))
    assert (waiting.loss, waiting.took, waiting.note, waiting.since) == ("–", "–", "loading", "–")
