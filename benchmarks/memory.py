"""The memory that quantizing a language model takes, whatever its size: peak RSS of RTN and of GPTQ.

    python benchmarks/memory.py [--model DIR] [--blocks N] [--samples N] [--method rtn] [--method gptq]

Without --model a random Llama of 1.1 B parameters in bf16 (2.2 GB on disk) is written to a temporary directory, tensor
by tensor. Every method runs in a process of its own, which prints one line of JSON: seconds, and the peak in MiB once
the model was opened, after each block, and at the end. The bars: RTN 1 GB, GPTQ 3 GB.

With --blocks N the model is cut after N blocks before it is quantized: what a block takes is the same in each, so the
peak of a few blocks is that of all but for what grows with the number of blocks, which the rows of several runs show.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "dtype": "bfloat16",
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
}  # fmt: skip
BARS_MIB = {"rtn": 1000, "gptq": 3000}
RECIPES: dict[str, dict[str, Any]] = {
    "rtn": {"scheme": "w4a16_g128", "method": "rtn"},
    "gptq": {"scheme": "w4a16_g128", "method": "gptq"},
}


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a Llama, block by block."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    queries = config["num_attention_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for block in range(config["num_hidden_layers"]):
        stem = f"model.layers.{block}"
        yield from ((f"{stem}.{norm}.weight", (hidden,)) for norm in ("input_layernorm", "post_attention_layernorm"))
        yield f"{stem}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{stem}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{stem}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{stem}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{stem}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{stem}.mlp.up_proj.weight", (inner, hidden)
        yield f"{stem}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A random Llama in bf16 with a tokenizer of bytes; one tensor is in memory at a time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from bitwright.files.safetensors_writer import PendingTensor, write_safetensors

    generator = torch.Generator().manual_seed(0)

    def make(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: PendingTensor(torch.bfloat16, shape, partial(make, shape)) for name, shape in shapes(config)}
    write_safetensors(folder / "model.safetensors", tensors)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=2048).save_pretrained(folder)


def cut(model: Path, folder: Path, blocks: int) -> Path:
    """The same model with its first `blocks` blocks only: the files are linked, what config.json does not name is kept
    float and copied."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": blocks}))
    return folder


def measure(model: Path, out: Path, method: str, samples: int, tokens: int) -> dict[str, Any]:
    """Quantize in this process; its peak RSS in MiB at each step."""
    from bitwright.pipeline import quantize
    from bitwright.progress import Quiet
    from bitwright.recipe import make_recipe
    from bitwright.runtime.resident import peak_rss_mib

    class Peaks(Quiet):
        """Notes the peak whenever the pipeline says something."""

        def __init__(self) -> None:
            self.rows: list[tuple[str, int, float]] = []

        def say(self, text: str) -> None:
            self.rows.append((text, round(peak_rss_mib()), round(time.perf_counter() - begun, 1)))
            print(*self.rows[-1], file=sys.stderr, flush=True)

    begun, peaks = time.perf_counter(), Peaks()
    calibration = {"samples": samples, "max_tokens": tokens, "batch_size": 16}
    recipe = make_recipe(RECIPES[method] | {"calibration": calibration, "targets": ["bitwright"]})
    result = quantize(model, out=out, recipe=recipe, samples=8, judged=False, progress=peaks)
    return {
        "method": method, "samples": samples, "tokens": tokens, "seconds": round(time.perf_counter() - begun, 1),
        "timings_s": result.record["timings_s"], "peak_mib": round(peak_rss_mib()), "bar_mib": BARS_MIB[method],
        "steps": peaks.rows,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model directory; without it a random Llama is made")
    parser.add_argument("--blocks", type=int, help="only the first so many blocks")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--method", action="append", choices=list(RECIPES))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # MODEL OUT: measure in this process
    options = parser.parse_args(arguments)
    methods = options.method or list(RECIPES)
    if options.worker:
        model, out = map(Path, options.worker)
        print(json.dumps(measure(model, out, methods[0], options.samples, options.tokens)))
        return 0
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            model = Path(folder) / "llama"
            write_model(model, CONFIG)
        if options.blocks is not None:
            model = cut(model, Path(folder) / "cut", options.blocks)
        for method in methods:
            command = [sys.executable, __file__, "--worker", str(model), f"{folder}/{method}", "--method", method]
            command += ["--samples", str(options.samples), "--tokens", str(options.tokens)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            failed |= found["peak_mib"] > found["bar_mib"]
            print(json.dumps(found | {"threads": os.environ.get("OMP_NUM_THREADS")}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
