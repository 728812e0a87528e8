"""What training gets back: python benchmarks/training.py MODEL DATA --scheme w4a8_channel --steps 1000

For an embedding model: each method's loss at equal bits, and what is left of it after training, on STS-Benchmark and
Cranfield, which no training sees. DATA holds `stsb/stsb-en-test.tsv` and `cranfield/`, and texts to train on may be
named with --texts. What is finished is kept in --json, and is not measured again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from bitwright import quantize
from bitwright.pipeline import TrainingAsked
from bitwright.pipeline.evaluation import evaluate
from bitwright.recipe import make_recipe

METHODS = ("rtn_mse", "imatrix", "gptq", "awq_gptq", "smoothquant_gptq")


def losses(model: Path, data: Path, result: Path) -> dict[str, float]:
    """The loss on each set, relative to the float model."""
    sets = {"stsb": data / "stsb" / "stsb-en-test.tsv", "cranfield": data / "cranfield"}
    return {name: evaluate(result, reference=model, evaluation=path)["loss"] for name, path in sets.items()}


def measure(model: Path, data: Path, scheme: str, method: str, training: TrainingAsked | None) -> dict[str, Any]:
    """The losses of one result, and the curve of its training."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe({"scheme": scheme, "method": method, "attention": "float"})
        made = quantize(
            model, out=Path(folder) / "out", recipe=recipe, judged=training is not None, speed=False, training=training
        )
        told = made.measured.training
        found: dict[str, Any] = dict(losses(model, data, made.directory))
        if told is not None:
            found |= {"seconds": told.seconds, "before": told.before, "after": told.after}
            found["curve"] = [[look.step, look.loss] for look in told.curve]
        return found


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scheme", default="w4a8_channel")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--start", default="gptq", help="the method that training begins with")
    parser.add_argument("--texts", action="append", default=[])
    parser.add_argument("--json", type=Path, default=Path("training.json"))
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    training = TrainingAsked(steps=asked.steps, rate=asked.rate, texts=tuple(asked.texts))
    runs = [(method, None) for method in METHODS] + [(asked.start, training)]
    for method, how in runs:
        key = f"{asked.scheme} {method}" + ("" if how is None else f" trained {asked.steps} {asked.rate} {asked.texts}")
        if key not in kept:
            kept[key] = measure(asked.model, asked.data, asked.scheme, method, how)
            asked.json.write_text(json.dumps(kept, indent=1))
        print(f"{key:40} STS-B {kept[key]['stsb']:7.2%}   Cranfield {kept[key]['cranfield']:7.2%}", flush=True)


if __name__ == "__main__":
    main()
