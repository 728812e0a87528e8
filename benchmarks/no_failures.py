"""No healthy result may be told to have failed: `bitwright quantize` over families, tasks and recipes, on tiny random
models, on every instruction set that this machine has.

    python benchmarks/no_failures.py                    # every row, every instruction set
    python benchmarks/no_failures.py --isa scalar --json rows.jsonl

Random tiny models lose what they lose: a budget that is not met is no failure. The exit code is 1 if a row is FAILED.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from bitwright.errors import BitwrightError, ExitCode
from bitwright.kernels.dispatch import isa_table
from bitwright.pipeline import quantize
from bitwright.recipe import make_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.families import DECODERS, ENCODERS, write_model

PAIRS = "sequence-classification"  # of one label: a reranker


class Row(NamedTuple):
    """One run. labels: 1 for a reranker; 0 where the task has none of its own choice."""

    family: str
    task: str
    recipe: str
    labels: int = 0


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "static": {"scheme": "w8a8_static"},
    "w4": {"scheme": "w4a16"},
    "smoothquant": {"method": "smoothquant"},
}
# Encoders that compute differently; the others differ in names.
DISTINCT = ("albert", "bert", "deberta-v2", "modernbert", "mpnet")
HEADS = ("sequence-classification", "token-classification", "question-answering")
ROWS = [
    *(Row(family, "embedding", recipe) for family in DISTINCT for recipe in ("default", "static", "w4")),
    *(Row(family, "embedding", "default") for family in ENCODERS if family not in DISTINCT),
    *(Row("bert", task, recipe) for task in HEADS for recipe in ("default", "static", "w4")),
    *(Row(family, "sequence-classification", "default") for family in ("deberta-v2", "modernbert", "albert")),
    *(Row("bert", PAIRS, recipe, labels=1) for recipe in ("default", "static", "w4")),
    Row("bert", "embedding", "smoothquant"),
    *(Row(family, "text-generation", recipe) for family in ("llama", "gpt2") for recipe in ("default", "w4")),
    Row("qwen3_moe", "text-generation", "default"),
]


def main() -> int:
    """Run all, print a line for each, and say how many failed. An instruction set is chosen once in a process: each has
    one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usable = [row.name for row in isa_table() if row.supported]
    parser.add_argument("--isa", choices=usable, help="by default all that this machine has")
    parser.add_argument("--only", default="", help="rows whose text contains this")
    parser.add_argument("--json", type=Path, help="add the rows to this file, one a line")
    given = parser.parse_args()
    if given.isa is None or os.environ.get("BITWRIGHT_ISA") != given.isa:
        names = usable if given.isa is None else [given.isa]
        more = ["--only", given.only, *(["--json", str(given.json)] if given.json else [])]
        command = [sys.executable, __file__, *more, "--isa"]
        done = [subprocess.run([*command, isa], env=os.environ | {"BITWRIGHT_ISA": isa}).returncode for isa in names]
        return max(done)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="bitwright-no-failures-") as folder:
        rows = [row for row in ROWS if given.only in " ".join(map(str, row))]
        for row in rows:
            found = run(row, given.isa, Path(folder))
            failed += found["failed"]
            print(line(found), flush=True)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    print(f"{given.isa}: {len(rows)} runs, {failed} FAILED", flush=True)
    return int(failed > 0)


def run(row: Row, isa: str, folder: Path) -> dict[str, Any]:
    """Quantize one, in all steps of `bitwright quantize` but the timing; what the record says of its checks."""
    source = folder / f"{row.family}-{row.task}-{row.labels}"
    if not source.exists():
        write_model(source, row.family, row.task, prose(), **({"num_labels": row.labels} if row.labels else {}))
    data: tuple[str, ...] = ()
    if row.family in DECODERS:
        data = (str(text_file(folder, "running.txt", [" ".join(prose())])),)
    elif row.labels:
        pairs = [f"{a}\t{b}" for a, b in zip(prose()[:120], prose()[120:], strict=True)]
        data = (str(text_file(folder, "pairs.tsv", ["first\tsecond", *pairs])) + "#first,second",)
    recipe = make_recipe({**RECIPES[row.recipe], "budget": {"max_loss": 0.9}})
    began, code, checks, said = time.perf_counter(), ExitCode.DONE, [], ""
    try:
        result = quantize(
            source, out=folder / "out", recipe=recipe, data=data, samples=60, overwrite=True, sensitivity=False,
            speed=False,
        )  # fmt: skip
        code, checks = ExitCode(result.exit_code), result.record["verify"]
    except BitwrightError as error:
        code, said = ExitCode(error.exit_code), str(error)
    failed = code not in (ExitCode.DONE, ExitCode.NOT_SHOWN) or any(check["ok"] is False for check in checks)
    said = said or "; ".join(check["detail"] for check in checks if check["ok"] is False)
    return {
        "isa": isa, **row._asdict(), "exit_code": code, "failed": failed, "checks": checks,
        "seconds": round(time.perf_counter() - began, 1), "said": said,
    }  # fmt: skip


def line(found: dict[str, Any]) -> str:
    """What ran, its exit code, and how near each check came to its limit."""
    checks = [f"{check['target']} {_said(check)}" for check in found["checks"]]
    head = " reranker" if found["labels"] else ""
    what = f"{found['isa']:11s} {found['family']:12s} {found['task']}{head}, {found['recipe']}"
    ends = f"exit {found['exit_code']}{' FAILED' * found['failed']}"
    return f"{what:62s} {ends:8s} {found['seconds']:5.1f} s  {'; '.join(checks)} {found['said'][:300]}".rstrip()


def _said(check: dict[str, Any]) -> str:
    if check["ok"] is None:
        return str(check["detail"])
    values = check["checks"]
    near = [f"{values[key]:.2g}/{limit:.2g}" for name, limit in values.items() if (key := name[:-8]) in values
            and name.endswith("_allowed")]  # fmt: skip
    return f"{'ok' if check['ok'] else 'FAILED'} {' '.join(near)}"


def text_file(folder: Path, name: str, lines: list[str]) -> Path:
    """A file of these lines."""
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def prose() -> list[str]:
    """240 English sentences, from the help pages that Python carries."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    words = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    sentences = re.findall(r"(?<=[.:] )[A-Z][a-z][^.:*|]{18,298}\.(?= )", words)
    return list(dict.fromkeys(sentences))[:240]


if __name__ == "__main__":
    sys.exit(main())
