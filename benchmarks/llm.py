"""Language models: what quantizing costs in perplexity, time and memory, beside other toolkits on the same windows.

    python benchmarks/llm.py MODEL --calibration wiki.utf8 --text wiki.test.raw --rival-python /path/to/venv/bin/python
                             [--ours gptq,awq_gptq …] [--rivals rtn_w4g64,gptq_w4g64 …] [--json out.json]

Every toolkit gets the same calibration windows (128 × 512 tokens by default) and is judged on the first 40
non-overlapping windows of 1024 tokens, no BOS, in float32. Each run is a process of its own, ours and theirs in turn;
times are of quantizing alone (ours: reading, quantizing and writing the checkpoint), by the clock and in seconds of CPU
(all threads; what counts where cores are shared), peak memory of the process.
Ours is judged on the checkpoint as `bitwright.load` runs it: for W8A8 that is integer arithmetic, not a simulation.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "rtn_w4g64": {"scheme": "w4a16_g64"},
    "gptq_w4g64": {"scheme": "w4a16_g64", "method": "gptq"},
    "awq_w4g64": {"scheme": "w4a16_g64", "method": "awq"},
    "awq_gptq_w4g64": {"scheme": "w4a16_g64", "method": "awq_gptq"},
    "awq_gptq_w4g64_asym": {"scheme": "w4a16_g64_asym", "method": "awq_gptq"},
    "awq_gptq_w4g32_asym": {"scheme": "w4a16_g32_asym", "method": "awq_gptq"},
    "rtn_w4row": {"scheme": "w4a16_channel"},
    "gptq_w4row": {"scheme": "w4a16_channel", "method": "gptq"},
    "rtn_w3g64": {"scheme": "w3a16_g64"},
    "gptq_w3g64": {"scheme": "w3a16_g64", "method": "gptq"},
    "awq_gptq_w3g64": {"scheme": "w3a16_g64", "method": "awq_gptq"},
    "rtn_w8a8": {"scheme": "w8a8"},
    "smoothquant_w8a8": {"scheme": "w8a8", "method": "smoothquant"},
    "smoothquant_gptq_w8a8": {"scheme": "w8a8", "method": "smoothquant_gptq"},
    "smoothquant_gptq_w8a8_static": {"scheme": "w8a8_static", "method": "smoothquant_gptq"},
}
CALIBRATION = {"samples": 128, "max_tokens": 512, "batch_size": 16}


def ours(model: str, name: str, calibration: str, text: str, out: str, extra: str) -> dict[str, Any]:
    """Quantize and judge one recipe. Runs in a process of its own."""
    import bitwright
    from bitwright.pipeline.evaluation import evaluate
    from bitwright.recipe import make_recipe
    from bitwright.runtime.resident import peak_rss_mib

    recipe = make_recipe({"calibration": CALIBRATION, "targets": ["bitwright"], **RECIPES[name], **json.loads(extra)})
    begun, worked = time.perf_counter(), time.process_time()
    result = bitwright.quantize(model, out=out, recipe=recipe, data=calibration, evaluation=text, judged=False)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    peak = peak_rss_mib()
    score = evaluate(out, evaluation=text, windows=40)
    size = result.record["size"]["checkpoint_bytes"]
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_rss_mib": peak, "checkpoint_bytes": size, "evaluation": score}


def rival_job(model: str, name: str, calibration: str, text: str, threads: int, folder: Path) -> Path:
    """The job file of a rival: the very windows that ours calibrates and is judged on.

    name: of a recipe, then perhaps a dtype to calibrate in: "gptq_w4g64:bfloat16".
    """
    from transformers import AutoTokenizer

    from bitwright.calibration.columns import Source
    from bitwright.calibration.windows import mix_windows, running_text, token_windows

    tokenizer = AutoTokenizer.from_pretrained(model)
    recipe, _, dtype = name.partition(":")
    n, length = CALIBRATION["samples"], CALIBRATION["max_tokens"]
    job = {
        "recipe": recipe,
        "calibration": mix_windows(tokenizer, [Source(calibration)], n, length),
        "windows": token_windows(tokenizer, running_text(Source(text)), 1024, text)[:40],
        "threads": threads,
        "dtype": dtype or "float32",
    }
    path = folder / "rival.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def _run(command: list[str]) -> dict[str, Any]:
    found = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("{")]
    if found.returncode or not lines:
        return {"failed": (found.stderr.strip().splitlines() or ["no output"])[-1]}
    return dict(json.loads(lines[-1]))


def main() -> None:
    """Run what the options name, in turn, and print one line of JSON for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--ours", default="")
    parser.add_argument("--rivals", default="")
    parser.add_argument("--rival-python", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--extra", default="{}", help="JSON merged into our recipes")
    parser.add_argument("--child", default="")
    options = parser.parse_args()
    if options.child:
        import torch

        torch.set_num_threads(options.threads)
        name, out = options.child.split(",", 1)
        print(json.dumps(ours(options.model, name, options.calibration, options.text, out, options.extra)))
        return
    mine, theirs = ([name for name in text.split(",") if name] for text in (options.ours, options.rivals))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(max(len(mine), len(theirs))):
            if index < len(mine):
                out = str(Path(folder) / "out")
                result = _run([sys.executable, *sys.argv, "--child", f"{mine[index]},{out}"])
                shutil.rmtree(out, ignore_errors=True)
                results.append({"tool": "bitwright", "recipe": mine[index], **result})
                print(json.dumps(results[-1]), flush=True)
            if index < len(theirs):
                job = rival_job(
                    options.model, theirs[index], options.calibration, options.text, options.threads, Path(folder)
                )
                script = str(Path(__file__).with_name("llm_rival.py"))
                result = _run([options.rival_python, script, options.model, str(job)])
                results.append({"tool": "rival", "recipe": theirs[index], **result})
                print(json.dumps(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
