"""Quantize a language model with another toolkit, in that toolkit's own environment, and measure what it costs.

    python benchmarks/llm_rival.py MODEL JOB.json     with JOB: {"recipe", "calibration": [[ids]], "windows": [[ids]],
                                                       "threads", "dtype"}

Imports nothing of Bitwright; `benchmarks/llm.py` starts it, with the same windows that Bitwright gets. Prints one line
of JSON: seconds of quantizing alone, by the clock and of CPU, peak RSS in MiB (of this process until then), and the
perplexity of the quantized model on the windows, in float32.
"""

import json
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def _scheme(bits: int, group: int | None, *, symmetric: bool = True, int8_inputs: bool = False) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, **strategy}
    return {"targets": ["Linear"], "weights": weights, "input_activations": inputs if int8_inputs else None}


def _llmcompressor_recipe(name: str) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    group = None if "row" in name else 64
    bits = 3 if "w3" in name else 8 if "w8a8" in name else 4
    scheme = _scheme(bits, None if bits == 8 else group, int8_inputs=bits == 8, symmetric="asym" not in name)
    groups = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    modifiers: list[Any] = [SmoothQuantModifier(smoothing_strength=0.8)] if "sq" in name else []
    rounding = QuantizationModifier if name.startswith("rtn") else GPTQModifier
    return [*modifiers, rounding(**groups)]


def _llmcompressor(model: Any, tokenizer: Any, job: dict[str, Any]) -> Any:
    from datasets import Dataset
    from llmcompressor import oneshot

    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["calibration"]]
    needs_data = not job["recipe"].startswith("rtn_w4")
    oneshot(
        model=model, tokenizer=tokenizer, recipe=_llmcompressor_recipe(job["recipe"]),
        dataset=Dataset.from_list(rows) if needs_data else None,
        num_calibration_samples=len(rows), max_seq_length=len(rows[0]["input_ids"]),
    )  # fmt: skip
    return model


def _autoround(model: Any, tokenizer: Any, job: dict[str, Any]) -> Any:
    from auto_round import AutoRound

    options = dict(job.get("options") or {})
    group = -1 if "row" in job["recipe"] else 64
    data = [torch.tensor([ids]) for ids in job["calibration"]]
    rounder = AutoRound(
        model, tokenizer, bits=4, group_size=group, sym=True, dataset=data, seqlen=len(job["calibration"][0]),
        nsamples=len(data), device_map="cpu", **options,
    )  # fmt: skip
    rounder.quantize()
    return rounder.model


@torch.inference_mode()
def perplexity(model: Any, windows: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood per predicted token, in float32."""
    model = model.float().eval()
    total = count = 0.0
    for window in windows:
        ids = torch.tensor([window])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(window) - 1
    return math.exp(total / count)


def main() -> None:
    """Do the job that the second argument describes with the model of the first."""
    logging.disable(logging.INFO)
    path, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, job["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tool = _autoround if job["recipe"].startswith("autoround") else _llmcompressor
    begun, worked = time.perf_counter(), time.process_time()
    if job["recipe"] != "float":
        model = tool(model, tokenizer, job)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024  # getrusage would begin from the parent's
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_rss_mib": peak,
        "perplexity": perplexity(model, job["windows"]),
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # some toolkits leave threads behind that keep the interpreter alive


if __name__ == "__main__":
    main()
