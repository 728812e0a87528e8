"""docs/vllm.md: which kernels vLLM chose for which checkpoint, with the plug-in and without, from what its tests saw.

make test-vllm-all                                        writes build/vllm-VERSION/kernels.jsonl
python benchmarks/vllm_kernels.py                         write the page's table from benchmarks/vllm_kernels.json
python benchmarks/vllm_kernels.py build/vllm-*/kernels.jsonl      take these into that file first
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

RECORDS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "vllm.md"
BEGIN, END = "<!-- kernels: python benchmarks/vllm_kernels.py -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """What one release of vLLM chose for a checkpoint. ours: with the plug-in; own: without. apart: mean distance of
    the log probabilities from transformers'."""

    format: str
    name: str
    release: str
    ours: dict[str, int]
    own: dict[str, int]
    apart: float


def taken(lines: Iterable[str]) -> list[Row]:
    """Rows of what the tests recorded, for the checkpoints that were seen with and without the plug-in."""
    sides: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for line in lines:
        row = json.loads(line)
        sides.setdefault((row["name"], row["release"]), {})[row["side"]] = row
    return [
        Row(seen["bitwright"]["format"], name, release, seen["bitwright"]["kernels"], seen["vllm"]["kernels"],
            seen["bitwright"]["apart"])
        for (name, release), seen in sides.items() if len(seen) == 2
    ]  # fmt: skip


def table(rows: Iterable[Row]) -> str:
    """A line for each checkpoint and choice of kernels, with the releases that made it."""
    chosen: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        chosen.setdefault((row.format, row.name, _named(row.ours), _named(row.own)), []).append(row)
    lines = ["| format | scheme | with the plug-in | without | vLLM | apart |", "|---|---|---|---|---|---:|"]
    for (format_, name, ours, own), same in sorted(chosen.items()):
        releases = ", ".join(row.release for row in same)
        apart = max(row.apart for row in same)
        lines.append(f"| {format_} | `{name}` | {ours} | {own} | {releases} | {apart:.3f} |")
    return "\n".join(lines) + "\n"


def _named(kernels: dict[str, int]) -> str:
    return ", ".join(f"`{name}` ({number})" for name, number in sorted(kernels.items())) or "refused"


def with_table(page: str, rows: Iterable[Row]) -> str:
    """The page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + table(rows) + "\n" + END + rest.partition(END)[2]


def saved_rows() -> list[Row]:
    """The rows of the file."""
    return [Row(**row) for row in json.loads(RECORDS.read_text(encoding="utf-8"))]


def main() -> None:
    """Take in what is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=Path)
    rows = saved_rows() if RECORDS.exists() else []
    for path in parser.parse_args().records:
        found = taken(path.read_text(encoding="utf-8").splitlines())
        fresh = {row.release for row in found}
        rows = sorted([row for row in rows if row.release not in fresh] + found, key=lambda row: row[:3])
    RECORDS.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
