"""From a Record to something a colleague can read: the HTML report, a comparison of two runs, the model card."""

from bitwright.report.card import render_model_card
from bitwright.report.compare import ComparisonRow, compare_records, render_comparison
from bitwright.report.page import REPORT_FILE, render_report, write_report
from bitwright.report.verdict import verdict_sentence

__all__ = [
    "REPORT_FILE",
    "ComparisonRow",
    "compare_records",
    "render_comparison",
    "render_model_card",
    "render_report",
    "verdict_sentence",
    "write_report",
]
