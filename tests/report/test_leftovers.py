"""What the result does not hold, in a line for the terminal and a table for the pages."""

from bitwright.record import LeftOut, record_of
from bitwright.report import render_model_card, render_report
from bitwright.report.card import MAX_FILES_LISTED
from bitwright.report.leftovers import REASONS, left_out_line, left_out_rows

HEADS = [LeftOut(f"head{i}.pt", 1000, "weights") for i in range(5)]
CODE = LeftOut("handler.py", 10, "code")
COPIES = [LeftOut(name, 10**6, "copy") for name in ("onnx/a.onnx", "onnx/b.onnx", "tf_model.h5")]


def test_heads_come_first_and_copies_are_one_row():
    rows = left_out_rows([*COPIES, CODE, *HEADS])
    assert [row.name for row in rows] == [*(head.name for head in HEADS), "handler.py", "onnx/, tf_model.h5"]
    assert rows[-1].bytes == 3 * 10**6
    assert [row.why for row in rows[4:6]] == [REASONS["weights"], REASONS["code"]]


def test_the_line_is_short():
    assert left_out_line([]) == ""
    assert left_out_line([*COPIES, CODE, *HEADS]) == (
        "head0.pt, head1.pt, head2.pt and 3 more; and the same model in another format"
    )
    assert left_out_line(COPIES) == "the same model in another format (onnx/, tf_model.h5)"
    assert left_out_line([CODE]) == "handler.py"
    assert left_out_line([LeftOut("x", 1, "a reason of a later release")]) == "x"


def test_report_and_card_list_what_is_left_out(record):
    assert "What is not in it" not in render_report(record_of(record)) + render_model_card(record_of(record), None)
    files = [{"name": f"<b>{i}.pt", "bytes": 1234, "reason": "weights"} for i in range(MAX_FILES_LISTED + 5)]
    found = record_of(record | {"left_out": files})
    page, card = render_report(found).replace(".<wbr>", "."), render_model_card(found, None)
    assert all(f"{i}.pt" in page for i in range(len(files)))
    assert "<b>0" not in page
    assert "- `<b>0.pt`, 1.23\u00a0kB: other weights" in card
    assert "and 5 more files" in card
