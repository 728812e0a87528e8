"""Decode speed for each byte of weights: MXFP4 and Q4_K beside our INT4 with groups of 32, on the engine.

    python benchmarks/four_bits.py --threads 2 --rounds 7 --json four_bits.json
    python benchmarks/four_bits.py --small                                       seconds; the figures mean nothing

Codes are random: speed does not depend on what weights say. The shape is TinyLlama's (1.1 B), whose inputs are whole
blocks of Q4_K, which those of SmolLM2-135M are not. The formats take turns in each round, each first in turn. A byte
counts as it lies in the file: 4.5 bits a weight in INT4 and Q4_K, 4.25 in MXFP4; the head is the same in all, in int8.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))
from llm_engines import open_bitwright, prompts_of, speed
from llm_random import SHAPE

SMALL = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": False}  # fmt: skip
CONTEXT, STEPS = 128, 32
BARS = {"MXFP4": 0.85, "Q4_K": 0.9}  # of INT4's speed for each byte

Shape = dict[str, Any]


def main() -> int:
    """Measure, print a table and write the rows; 1 if a bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of work in a measurement, at least")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path, help="write the rows there")
    options = parser.parse_args()
    shape = SMALL if options.small else SHAPE
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="four-bits-") as folder:
        paths = {name: write(Path(folder) / name, shape) for name, write in FORMATS.items()}
        sizes = {name: held_bytes(name, shape) for name in FORMATS}
        sessions = {}
        for name, path in paths.items():
            engine = open_bitwright(path, options.threads)
            print(f"{name}: {engine.about}; {sizes[name] / 1e6:.0f} MB for each token")
            sessions[name] = engine.settings["int8 cache"](1, CONTEXT, STEPS)
        prompts = prompts_of(1, CONTEXT, shape["vocab_size"])
        names = list(FORMATS)
        for number in range(options.rounds):
            for name in names[number % 3 :] + names[: number % 3]:
                tokens = speed(sessions[name], prompts, STEPS, options.seconds)
                rows.append({"round": number, "format": name, "tokens_s": tokens, "load": os.getloadavg()[0]})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return report(rows, sizes)


def report(rows: list[dict[str, Any]], sizes: dict[str, int]) -> int:
    """Medians, and the ratios within rounds."""
    of = {name: [row["tokens_s"] for row in rows if row["format"] == name] for name in sizes}
    missed = 0
    for name, found in of.items():
        per_byte = [a * sizes[name] / (b * sizes["INT4"]) for a, b in zip(found, of["INT4"], strict=True)]
        ratio, bar = statistics.median(per_byte), BARS.get(name)
        verdict = "" if bar is None else f"; at least {bar} is wanted: {'met' if ratio >= bar else 'NOT met'}"
        missed += bar is not None and ratio < bar
        print(
            f"{name:6} {statistics.median(found):7.1f} tokens/s ({min(found):.1f} to {max(found):.1f}), for each byte "
            f"{ratio:.3f} x INT4 ({min(per_byte):.3f} to {max(per_byte):.3f}){verdict}"
        )
    return 1 if missed else 0


def held_bytes(name: str, shape: Shape) -> int:
    """Bytes of weights that one token reads."""
    bits = {"INT4": 4.5, "Q4_K": 4.5, "MXFP4": 4.25}[name]
    head: int = shape["vocab_size"] * shape["hidden_size"]
    return round(sum(n * k for _, _, n, k in linears(shape)) * bits / 8) + head


def linears(shape: Shape) -> Iterator[tuple[str, str, int, int]]:
    """Names on disk and in GGUF, N, K."""
    width, wide, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * size, shape["num_key_value_heads"] * size
    parts = (("self_attn.q_proj", "attn_q", q, width), ("self_attn.k_proj", "attn_k", kv, width),
             ("self_attn.v_proj", "attn_v", kv, width), ("self_attn.o_proj", "attn_output", width, q),
             ("mlp.gate_proj", "ffn_gate", wide, width), ("mlp.up_proj", "ffn_up", wide, width),
             ("mlp.down_proj", "ffn_down", width, wide))  # fmt: skip
    for block in range(shape["num_hidden_layers"]):
        for name, short, n, k in parts:
            yield f"model.layers.{block}.{name}", f"blk.{block}.{short}", n, k


def floats(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Names on disk and in GGUF, and shapes, of what is not quantized."""
    width, words = shape["hidden_size"], (shape["vocab_size"], shape["hidden_size"])
    yield from (("model.embed_tokens", "token_embd", words), ("lm_head", "output", words))
    yield "model.norm", "output_norm", (width,)
    for block in range(shape["num_hidden_layers"]):
        for name, short in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            yield f"model.layers.{block}.{name}", f"blk.{block}.{short}", (width,)


def _random(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def write_int4(out: Path, shape: Shape) -> Path:
    """compressed-tensors, symmetric, a bf16 scale for 32 weights."""
    import torch

    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}

    def part(n: int, k: int, seed: int) -> dict[str, Any]:
        codes = torch.from_numpy(_random(n * k // 2, seed).view(np.int32).reshape(n, k // 8))
        scale = torch.full((n, k // 32), 0.0078125, dtype=torch.bfloat16)
        return {"weight_packed": codes, "weight_scale": scale, "weight_shape": torch.tensor([n, k])}

    return _directory(out, shape, "pack-quantized", weights, part)


def write_mxfp4(out: Path, shape: Shape) -> Path:
    """compressed-tensors, two codes of E2M1 to a byte, a power of two for 32 weights."""
    import torch

    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}

    def part(n: int, k: int, seed: int) -> dict[str, Any]:
        codes = torch.from_numpy(_random(n * k // 2, seed).reshape(n, k // 2))
        return {"weight_packed": codes, "weight_scale": torch.full((n, k // 32), 120, dtype=torch.uint8)}

    return _directory(out, shape, "mxfp4-pack-quantized", weights, part)


def _directory(
    out: Path, shape: Shape, form: str, weights: dict[str, Any], part: Callable[[int, int, int], dict[str, Any]]
) -> Path:
    import torch
    from safetensors.torch import save_file

    out.mkdir()
    tensors = {f"{name}.weight": torch.full(size, 0.01, dtype=torch.bfloat16) for name, _, size in floats(shape)}
    for seed, (name, _, n, k) in enumerate(linears(shape)):
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in part(n, k, seed).items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    said = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048,
              "rms_norm_eps": 1e-5, "hidden_act": "silu", "quantization_config": said}  # fmt: skip
    (out / "config.json").write_text(json.dumps(config | shape))
    return out


def write_q4_k(out: Path, shape: Shape) -> Path:
    """GGUF: 256 weights in 144 bytes; d and dmin (fp16), scales and minima in 6 bits, codes."""
    from tests.gguf_files import Tensor, encoded

    tensors = []
    for _, short, size in floats(shape):
        values = np.full(size, 0x3C24, np.uint16) if len(size) == 2 else np.full(size, 0.01, np.float32)
        tensors.append(Tensor(f"{short}.weight", 30 if len(size) == 2 else 0, size[::-1], values.tobytes()))
    for seed, (_, short, n, k) in enumerate(linears(shape)):
        blocks = _random(n * k // 256 * 144, seed).reshape(-1, 144)
        blocks[:, :4] = np.array([0.0005, 0.0005], np.float16).view(np.uint8)
        tensors.append(Tensor(f"{short}.weight", 12, (k, n), blocks.tobytes()))
    metadata = {
        "general.architecture": "llama", "llama.context_length": 2048, "llama.embedding_length": shape["hidden_size"],
        "llama.block_count": shape["num_hidden_layers"], "llama.feed_forward_length": shape["intermediate_size"],
        "llama.attention.head_count": shape["num_attention_heads"],
        "llama.attention.head_count_kv": shape["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    file = out.with_suffix(".gguf")
    file.write_bytes(encoded(metadata, tensors))
    return file


FORMATS: dict[str, Callable[[Path, Shape], Path]] = {"INT4": write_int4, "MXFP4": write_mxfp4, "Q4_K": write_q4_k}

if __name__ == "__main__":
    sys.exit(main())
