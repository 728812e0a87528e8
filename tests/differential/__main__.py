"""`python -m tests.differential N [--seed S] [--jobs J] [--shrink] [--plain DIMENSION …] [--json FILE]`, or one layout:
`python -m tests.differential --layout '{"family": "qwen2", "sentence.lower": true}'`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.differential.compare import RIGHT, UNLOADABLE
from tests.differential.layouts import settle
from tests.differential.run import Judged, judge_all, judge_layout, table

TOLD_EVERY = 100  # layouts
FAULTS = Path(tempfile.gettempdir()) / "differential.json"


def main() -> None:
    """Judge N layouts, print the table, write what is not right. Ctrl-C ends it with what there is."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("number", type=int, nargs="?", default=1, help="of layouts")
    parser.add_argument("--layout", type=json.loads, help="one layout, as JSON; what it does not name is plain")
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest layout of each fault")
    parser.add_argument(
        "--plain", action="append", default=[], metavar="DIMENSION", help="that stays plain; repeatable"
    )
    parser.add_argument("--json", type=Path, default=FAULTS, help=f"where the faults are written: {FAULTS}")
    asked = parser.parse_args()
    if asked.layout is not None:
        print(json.dumps(judge_layout(settle({"seed": 0} | asked.layout)).data(), indent=1, ensure_ascii=False))
        return
    begun = time.perf_counter()
    seeds = range(asked.seed, asked.seed + asked.number)
    judged: list[Judged] = []
    try:
        for one in judge_all(seeds, jobs=asked.jobs, shrinks=asked.shrink, plain=asked.plain):
            judged.append(one)
            if len(judged) % TOLD_EVERY == 0:
                print(f"{len(judged)} layouts, {time.perf_counter() - begun:.0f} s", flush=True)
    except KeyboardInterrupt:
        print(f"stopped after {len(judged)} of {asked.number}")
    print(table(judged))
    faults = [one.data() for one in judged if one.verdict.kind not in (RIGHT, UNLOADABLE)]
    asked.json.write_text(json.dumps(faults, indent=1, ensure_ascii=False))
    print(f"\n{time.perf_counter() - begun:.0f} s; {len(faults)} layouts that are not right: {asked.json}")


if __name__ == "__main__":
    main()
