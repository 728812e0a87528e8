"""Records for the report's tests, as the JSON that a run on a six-block MiniLM would write."""

import copy
import math
from typing import Any

import numpy as np
import pytest

from bitwright.record import record_of
from bitwright.report import render_report

Record = dict[str, Any]

BLOCKS = 6
LINEARS = (  # path in the block, role, unit, shape [N, K]
    ("attention.self.query", "qkv", "attention.self.qkv", (384, 384)),
    ("attention.self.key", "qkv", "attention.self.qkv", (384, 384)),
    ("attention.self.value", "qkv", "attention.self.qkv", (384, 384)),
    ("attention.output.dense", "attention_output", "attention.output.dense", (384, 384)),
    ("intermediate.dense", "ffn", "intermediate.dense", (1536, 384)),
    ("output.dense", "ffn", "output.dense", (384, 1536)),
)
KEPT = "encoder.layer.0.output.dense"


def minilm_record() -> Record:
    """A full record: 36 linears, one unit put back to 16 bit, budget met."""
    rng = np.random.default_rng(0)
    plan, rows, units, distributions = [], [], {}, []
    for block in range(BLOCKS):
        for path, role, unit, (n, k) in LINEARS:
            name, unit_name = f"encoder.layer.{block}.{path}", f"encoder.layer.{block}.{unit}"
            kept = name == KEPT
            plan.append(
                {
                    "name": name,
                    "block": block,
                    "role": role,
                    "unit": unit_name,
                    "shape": [n, k],
                    "scheme": "16bit" if kept else "w8a8",
                    "method": "cast" if kept else "rtn",
                    "bytes_before": 4 * n * k,
                    "bytes_after": 2 * n * k if kept else n * k + 4 * n,
                    "reason": "fallback: among the most sensitive by EMD" if kept else "scheme of the recipe",
                }
            )
            emd = float(np.exp(rng.normal(-6.4, 0.5))) * (3.0 if path == "output.dense" else 1.0) / (1 + block / 4)
            row = _sensitivity(name, block, role, unit_name, emd, rng)
            rows.append(row)
            rows.append({**row, "mode": "all but one", "emd": 0.016 - 0.4 * emd})
            units.setdefault(unit_name, _sensitivity(unit_name, block, role, unit_name, 0.0, rng))["emd"] += emd
            distributions.append(_distribution(name, role, rng))
    groups = []
    for role in ("qkv", "attention_output", "ffn"):
        blocks = [sum(u["emd"] for u in units.values() if (u["block"], u["role"]) == (b, role)) for b in range(BLOCKS)]
        groups.append(_sensitivity(role, None, role, None, sum(blocks), rng))
        groups += [_sensitivity(role, block, role, None, 0.9 * emd, rng) for block, emd in enumerate(blocks)]
    plan.append(
        {
            "name": "embeddings.word_embeddings",
            "block": None,
            "role": "embedding",
            "unit": "embeddings.word_embeddings",
            "shape": [30522, 384],
            "scheme": "16bit",
            "method": "cast",
            "bytes_before": 4 * 30522 * 384,
            "bytes_after": 2 * 30522 * 384,
            "reason": "portable: loads anywhere",
        }
    )
    return {
        "record_version": 1,
        "bitwright_version": "0.1.0",
        "created": "2025-03-04T10:20:30Z",
        "command": "bitwright quantize sentence-transformers/all-MiniLM-L6-v2 --max-loss 1% --seed 0 --out minilm-int8",
        "exit_code": 0,
        "model": {
            "name": "sentence-transformers/all-MiniLM-L6-v2",
            "model_type": "bert",
            "architectures": ["BertModel"],
            "task": "embedding",
            "n_parameters": 22_713_216,
            "n_blocks": BLOCKS,
            "license": "apache-2.0",
            "source_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "dtype": "float32",
        },
        "recipe": {"rules": [{"match": "*", "scheme": "w8a8", "method": "rtn"}], "calibration": {"seed": 0}},
        "plan": plan,
        "evaluation": {
            "metric": {
                "name": "Spearman of cosine",
                "kind": "similarity",
                "label_free": False,
                "higher_is_better": True,
            },
            "n_tuning": 500,
            "n_held_out": 1379,
            "float_score": 0.8203,
            "quantized_score": 0.81964,
            "loss": 0.0008,
            "loss_lower": -0.0005,
            "loss_upper": 0.0021,
            "confidence": 0.95,
            "max_loss": 0.01,
            "verdict": "met",
            "needed_samples": None,
            "companions": {
                "cosine_mean": 0.99871,
                "cosine_min": 0.99214,
                "spearman": 0.99934,
                "kendall": 0.9772,
                "rank_flips": 0.0114,
                "top1_neighbour_agreement": 0.964,
                "emd": 0.0141,
                "sqnr_db": 25.8,
            },
            "seed": 0,
        },
        "steps": [
            _step(0, None, 0.0031, 0.0104, 34_400_000),
            _step(1, KEPT, 0.0012, 0.0052, 34_980_000),
        ],
        "sensitivity": {
            "n_samples": 200,
            "spearman_with_metric_loss": 0.81,
            "metric": "Spearman of cosine",
            "rows": rows,
            "units": list(units.values()),
            "groups": groups,
        },
        "distributions": distributions,
        "size": {
            "source_bytes": 90_868_376,
            "checkpoint_bytes": 23_300_000,
            "weights_before": 90_852_864,
            "weights_after": 22_900_000,
        },
        "speed": {
            "threads": 2,
            "rows": _speed_rows(),
            "peak_rss_mib": {"torch fp32": 612.0, "bitwright": 148.0},
            "skipped": [{"runtime": "openvino int8", "reason": "nncf is not installed"}],
        },
        "verify": [
            _check("bitwright", True, "equal outputs", min_cosine=1.0, max_abs_diff=0.0, integer_kernel_calls=35),
            _check("transformers", True, "cosine ≥ 0.999", min_cosine=0.99994),
            _check("sentence-transformers", True, "cosine ≥ 0.999", min_cosine=0.99994),
            _check("vllm", None, "not checked: vllm not installed"),
        ],
        "warnings": ["calibration: 3 of 128 texts are longer than 256 tokens and were cut"],
        "environment": {
            "cpu": "Intel(R) Xeon(R) Platinum 8481C",
            "cores": 2,
            "isa": "avx512vnni",
            "os": "Linux 6.1",
            "python": "3.11.9",
            "torch": "2.13.0",
            "transformers": "5.1.0",
            "bitwright": "0.1.0",
            "threads": 2,
        },
        "timings_s": {"calibrate": 8.2, "quantize": 3.1, "evaluate": 41.0, "sensitivity": 95.4, "verify": 22.7},
    }


def language_record(*, n_experts: int = 0) -> Record:
    """A language model of two blocks, with `n_experts` in each, quantized by GPTQ and judged by perplexity."""
    plan, layers = [], []
    linears = [("self_attn.q_proj", "qkv"), ("self_attn.o_proj", "attention_output")]
    places = ("gate_proj", "up_proj", "down_proj")
    if n_experts:
        linears += [(f"mlp.experts.{i}.{place}", "expert") for i in range(n_experts) for place in places]
    else:
        linears += [(f"mlp.{place}", "ffn") for place in places]
    for block in range(2):
        for path, role in linears:
            row = {"name": f"model.layers.{block}.{path}", "block": block, "role": role, "unit": f"{block}.{role}",
                   "scheme": "w4a16_g64", "method": "gptq"}  # fmt: skip
            plan.append(row | {"shape": [64, 64], "bytes_before": 16384, "bytes_after": 2320, "reason": "default"})
            layers.append(row | _account(block, path, len(layers)))
    return minilm_record() | {
        "model": {"name": "org/tiny-llama", "model_type": "llama", "task": "text-generation", "n_blocks": 2},
        "recipe": {"scheme": "w4a16", "method": "gptq", "targets": ["bitwright", "transformers"]},
        "plan": plan, "layers": layers, "sensitivity": None, "distributions": None, "speed": None,
        "evaluation": {
            "metric": {"name": "perplexity", "kind": "language model", "task": "wiki", "unit": "windows",
                       "label_free": False, "higher_is_better": False,
                       "protocol": "wiki.test.raw, first 40 non-overlapping windows of 1024 tokens, no BOS"},
            "n_tuning": 20, "n_held_out": 20, "float_score": 24.1, "quantized_score": 24.823, "loss": 0.03,
            "loss_lower": 0.02, "loss_upper": 0.04, "confidence": 0.95, "max_loss": 0.05, "verdict": "met",
            "needed_samples": None, "companions": {"next_token_agreement": 0.91, "mean_nll_difference": 0.0296},
        },
        "steps": [_step(0, None, 0.031, 0.042, 34_400_000) | {"units": [], "chosen": True}],
        "verify": [_check("bitwright", True, "same bits"), _check("transformers", True, "cosine")],
    }  # fmt: skip


def _account(block: int, path: str, number: int) -> Record:
    """How one linear was quantized. Every odd expert starves; of its linears the last has no statistics at all."""
    expert = int(path.split(".")[2]) if "experts" in path else 0
    starved = expert % 2 == 1
    n_tokens = 4 + expert if starved else 1000 + expert
    told = {"n_tokens": n_tokens, "fewest": 32, "policy": "rtn" if path.endswith("down_proj") else "lent"}
    trouble = {"starved": told} if starved else {}
    error = 0.02 + 0.001 * number
    return {
        "n_tokens": n_tokens, "error_rtn": 1.5 * error, "error": error, "sqnr_db": -20 * math.log10(error),
        "cosine": 1 - error**2 / 2, "block_emd": 0.003 * (block + 1), "fallback": False, "damping": 0.01,
        "dead_inputs": 0, "transform": "folded", "transform_alpha": 0.5,
    } | trouble  # fmt: skip


@pytest.fixture
def evidence() -> Record:
    """What `method: auto` was decided on, of five units."""
    numbers = {"n_weights": 4096, "k": 64, "n_tokens": 2048, "tail": 3.5, "kurtosis": 4.1, "channel_ratio": 2.2,
               "error_int4": 0.1, "error_int8": 0.006}  # fmt: skip
    units = [
        {"unit": f"{i}.ffn", "role": "ffn", "block": i, "scheme": "w4a16_g64", **numbers, "foldable": True,
         "expected": {"rtn": 0.1, "gptq": 0.05}, "linears": [f"{i}.up"], "method": "gptq", "reason": "least error"}
        for i in range(5)
    ]  # fmt: skip
    return {
        "reason": "sensitive weights", "rtn_loss": math.inf, "tolerable_error": None, "overruled": 2, "units": units,
        "rejected": [{"method": "awq", "why": "no better"}, {"method": "rtn", "why": "worse"}],
        "cost": {"n_tokens": 65536, "seconds": 90.0}, "resources": {"memory_bytes": 2e9},
    }  # fmt: skip


def _step(n_fallback: int, unit: str | None, loss: float, upper: float, n_bytes: int) -> Record:
    return {
        "n_fallback": n_fallback,
        "unit": unit,
        "loss": loss,
        "loss_upper": upper,
        "bytes": n_bytes,
        "decided_on": "tuning",
    }


def _check(target: str, ok: bool | None, detail: str, **checks: float) -> Record:
    return {"target": target, "ok": ok, "checks": checks, "detail": detail}


def _sensitivity(
    name: str, block: int | None, role: str, unit: str | None, emd: float, rng: np.random.Generator
) -> Record:
    return {
        "name": name,
        "block": block,
        "role": role,
        "unit": unit,
        "mode": "one",
        "emd": emd,
        "sqnr_db": float(rng.uniform(28, 46)),
        "cosine": 1 - float(rng.uniform(1e-5, 8e-4)),
        "rank_flips": float(rng.uniform(1e-3, 2e-2)),
        "metric_loss": 0.3 * emd * float(rng.uniform(0.4, 1.6)) - 2e-4,
    }


def _distribution(name: str, role: str, rng: np.random.Generator) -> Record:
    def histogram(values: np.ndarray, step: float) -> Record:
        edges = np.linspace(values.min(), values.max(), 65)
        before, after = (np.histogram(v, edges)[0] / v.size for v in (values, np.round(values / step) * step))
        return {"edges": edges.tolist(), "before": before.tolist(), "after": after.tolist()}

    weight, activation = rng.standard_t(5, 4000) * 0.04, rng.standard_t(3, 4000) * 0.4
    return {
        "name": name,
        "role": role,
        "weight": histogram(weight, float(np.abs(weight).max()) / 127),
        "activation": histogram(activation, float(np.ptp(activation)) / 255),
    }


def _speed_rows() -> list[Record]:
    rows = []
    for batch, tokens, fp32 in ((1, 16, 3.1), (1, 128, 10.4), (8, 128, 78.0), (32, 256, 690.0)):
        factors = {"torch fp32": 1.0, "torch bf16": 1.3, "bitwright": 2.6 - batch / 60, "onnxruntime int8": 1.7}
        for runtime, factor in factors.items():
            median = fp32 / factor
            rows.append(
                {
                    "runtime": runtime,
                    "batch": batch,
                    "tokens": tokens,
                    "median_ms": median,
                    "min_ms": 0.94 * median,
                    "per_second": 1000 * batch / median,
                    "ratio_to_fp32": factor,
                }
            )
    return rows


@pytest.fixture(scope="session")
def _full_record() -> Record:
    return minilm_record()


@pytest.fixture(scope="session")
def full_page(_full_record: Record) -> str:
    """The report of the full record."""
    return render_report(record_of(_full_record))


@pytest.fixture
def record(_full_record: Record) -> Record:
    """A full record whose budget is met."""
    return copy.deepcopy(_full_record)


@pytest.fixture
def undecided(record: Record) -> Record:
    """Too few samples to decide."""
    record["evaluation"] |= {
        "verdict": "undecided",
        "n_held_out": 120,
        "loss": 0.006,
        "loss_lower": -0.004,
        "loss_upper": 0.016,
        "needed_samples": 620,
    }
    return record


@pytest.fixture
def not_met(record: Record) -> Record:
    """Over the budget, with one layer that breaks the model and a slower runtime."""
    record["evaluation"] |= {"verdict": "not met", "loss": 0.031, "loss_lower": 0.022, "loss_upper": 0.04}
    sensitivity = record["sensitivity"]
    for row in (sensitivity["rows"][0], sensitivity["units"][0], sensitivity["groups"][0], sensitivity["groups"][1]):
        row |= {"emd": math.inf, "sqnr_db": -math.inf, "cosine": math.nan, "metric_loss": math.inf}
    for row in record["speed"]["rows"]:
        if row["runtime"] == "bitwright":
            row["ratio_to_fp32"] = 0.5
    return record


@pytest.fixture
def language() -> Record:
    """A record of a dense language model whose budget is met."""
    return language_record()


@pytest.fixture
def experts() -> Record:
    """A record of a mixture of eight experts a block, every other one starved."""
    return language_record(n_experts=8)


@pytest.fixture
def unjudged(language: Record) -> Record:
    """What `quantize(judged=False)` leaves."""
    return {
        key: value for key, value in language.items() if key not in ("evaluation", "verify", "speed", "distributions")
    }


@pytest.fixture
def minimal() -> Record:
    """What a run leaves that stopped at the start."""
    return {"record_version": 1}
