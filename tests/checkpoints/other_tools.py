"""Checkpoints as other tools write them, by the formulas of their formats: one value at a time, in Python's integers,
without a line of the readers. Each encoder gives the tensors of one linear, and the numbers that they stand for.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

Tensors = dict[str, torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def words(values: list[int], bits: int) -> list[int]:
    """Values side by side, the first in the lowest bits, as int32 words."""
    stream = sum(value << bits * i for i, value in enumerate(values))
    count = -(-len(values) * bits // 32)
    return np.frombuffer(stream.to_bytes(4 * count, "little"), "<i4").tolist()


def random_codes(n: int, k: int, bits: int, groups: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Codes (N, K) and zero points (N, G) from 0, and scales (N, G) that 16 bits hold."""
    random = np.random.default_rng(seed)
    scale = random.uniform(0.01, 0.1, (n, groups)).astype(np.float16).astype(np.float32)
    return random.integers(0, 1 << bits, (n, k)), random.integers(1, 1 << bits, (n, groups)), scale


def numbers(codes: Any, zeros: Any, scale: Any, group_of: Any) -> np.ndarray:
    """(q − z) · s, rounded once."""
    return ((codes - zeros[:, group_of]).astype(np.float32) * scale[:, group_of]).astype(np.float32)


def gptq(
    n: int, k: int, *, bits: int = 4, group: int = 32, sym: bool = True, less_one: bool = True, order: bool = False,
    index: bool = True, seed: int = 0,
) -> tuple[Tensors, np.ndarray]:  # fmt: skip
    groups = k // group
    codes, zeros, scale = random_codes(n, k, bits, groups, seed)
    zeros = np.full_like(zeros, 1 << bits - 1) if sym else zeros
    group_of = np.arange(k) // group
    if order:
        group_of = np.random.default_rng(seed + 1).permutation(group_of)
    columns = [words([int(q) for q in codes[row]], bits) for row in range(n)]
    rows = [words([int(z) - less_one for z in zeros[:, g]], bits) for g in range(groups)]
    tensors = {
        "qweight": torch.tensor(columns, dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor(rows, dtype=torch.int32),
        "scales": torch.tensor(scale.T.copy()).half(),
    }
    if index:
        tensors["g_idx"] = torch.tensor(group_of, dtype=torch.int32)
    return tensors, numbers(codes, zeros, scale, group_of)


def awq(n: int, k: int, *, group: int = 32, seed: int = 0) -> tuple[Tensors, np.ndarray]:
    groups = k // group
    codes, zeros, scale = random_codes(n, k, 4, groups, seed)

    def packed(rows: Any) -> torch.Tensor:
        made = [[words([int(row[8 * c + place]) for place in AWQ_ORDER], 4)[0] for c in range(n // 8)] for row in rows]
        return torch.tensor(made, dtype=torch.int32)

    tensors = {"qweight": packed(codes.T), "qzeros": packed(zeros.T), "scales": torch.tensor(scale.T.copy()).half()}
    return tensors, numbers(codes, zeros, scale, np.arange(k) // group)


def mlx(n: int, k: int, *, bits: int = 4, group: int = 32, seed: int = 0) -> tuple[Tensors, np.ndarray]:
    """Scales of both signs, and one of 0."""
    groups = k // group
    codes, _, scale = random_codes(n, k, bits, groups, seed)
    scale[::2] *= -1
    scale[0, 0] = 0
    bias = np.random.default_rng(seed + 1).normal(size=(n, groups)).astype(np.float16).astype(np.float32)
    rows = [words([int(q) for q in codes[row]], bits) for row in range(n)]
    group_of = np.arange(k) // group
    tensors = {
        "weight": torch.tensor(rows, dtype=torch.int32).view(torch.uint32),
        "scales": torch.tensor(scale).half(),
        "biases": torch.tensor(bias).half(),
    }
    return tensors, codes * scale.astype(np.float64)[:, group_of] + bias[:, group_of]


def fp8(n: int, k: int, shape: tuple[int, ...], blocks: tuple[int, int] | None = None) -> tuple[Tensors, np.ndarray]:
    """weight and weight_scale of any shape; blocks: rows and columns that share one."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, k, generator=generator).mul(8).to(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=generator) + 0.01
    wide = scale.reshape(-1, 1) if scale.numel() == n else scale
    if blocks is not None:
        wide = scale.repeat_interleave(blocks[0], 0)[:n].repeat_interleave(blocks[1], 1)[:, :k]
    return {"weight": weight, "weight_scale": scale}, (weight.float() * wide).bfloat16().float().numpy()


def fp4(n: int, k: int, group: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Bytes (N, K/2), the numbers of the codes (N, K), and raw bytes of scales (N, G), one of them 0."""
    random = np.random.default_rng(seed)
    codes, scale = random.integers(0, 16, (n, k)), random.integers(100, 125, (n, k // group)).astype(np.uint8)
    values = np.array([[(-1 if q & 8 else 1) * E2M1[q & 7] for q in row] for row in codes])
    rows = [[int(row[i]) | int(row[i + 1]) << 4 for i in range(0, k, 2)] for row in codes]
    return torch.tensor(rows, dtype=torch.uint8), values, scale


def save(folder: Path, config: dict[str, Any], modules: dict[str, Tensors], **others: torch.Tensor) -> Path:
    """A checkpoint directory of these modules, and of other tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.{suffix}": tensor for name, part in modules.items() for suffix, tensor in part.items()}
    save_file(tensors | others, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


def fp8_blocks(n: int, k: int, seed: int) -> tuple[Tensors, np.ndarray]:
    tensors, expected = fp8(n, k, (-(-n // 32), -(-k // 32)), (32, 32))
    return {"weight": tensors["weight"], "weight_scale_inv": tensors["weight_scale"] / 50}, expected / 50


def nvfp4(n: int, k: int, seed: int) -> tuple[Tensors, np.ndarray]:
    codes, values, raw = fp4(n, k, 16, seed)
    scale = torch.tensor(raw % 40).view(torch.float8_e4m3fn)
    part = {"weight": codes, "weight_scale": scale, "weight_scale_2": torch.tensor(0.25)}
    return part, values * np.repeat(scale.float().numpy(), 16, axis=1) / 4


MXFP4 = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
MXFP4_GROUP = {"targets": ["Linear"], "weights": MXFP4, "input_activations": MXFP4}


def mxfp4(n: int, k: int, seed: int) -> tuple[Tensors, np.ndarray]:
    codes, values, raw = fp4(n, k, 32, seed)
    raw = raw % 4 + 120
    part = {"weight_packed": codes, "weight_scale": torch.tensor(raw)}
    return part, values * np.repeat(2.0 ** (raw.astype(int) - 127), 32, axis=1)


# Name -> what config.json says, and the tensors of a linear with the numbers that they stand for.
FORMATS: dict[str, tuple[dict[str, Any], Callable[[int, int, int], tuple[Tensors, np.ndarray]]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True},
        lambda n, k, s: gptq(n, k, seed=s),
    ),
    "gptq, act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
        lambda n, k, s: gptq(n, k, sym=False, order=True, seed=s),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, lambda n, k, s: awq(n, k, seed=s)),
    "auto-round": (
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32,
         "sym": False, "data_type": "int", "extra_config": {"lm_head": {"bits": 16}}},
        lambda n, k, s: awq(n, k, seed=s),
    ),
    "mlx": ({"bits": 4, "group_size": 32}, lambda n, k, s: mlx(n, k, seed=s)),
    "mlx, tied": ({"bits": 4, "group_size": 32}, lambda n, k, s: mlx(n, k, seed=s)),
    "mlx, 6 bits": ({"bits": 6, "group_size": 32}, lambda n, k, s: mlx(n, k, bits=6, seed=s)),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, fp8_blocks),
    "mxfp4": (
        {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {"g": MXFP4_GROUP}},
        mxfp4,
    ),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4),
}  # fmt: skip


def write_model(source: Path, out: Path, name: str) -> Any:
    """The model with other linears, as a tool writes it; and the float model of the same numbers."""
    said, encode = FORMATS[name]
    shutil.copytree(source, out)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tensors = load_file(source / "model.safetensors")
    mlx = name.startswith("mlx")
    modules = [n.removesuffix(".weight") for n, t in tensors.items() if ".layers." in n and t.ndim == 2]
    for seed, module in enumerate([*modules, *(["model.embed_tokens"] if mlx else [])]):
        n, k = tensors.pop(f"{module}.weight").shape
        part, numbers = encode(n, k, seed)
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in part.items()}
        with torch.no_grad():
            model.get_submodule(module).weight.copy_(torch.tensor(numbers))
    save_file(tensors, out / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization" if mlx else "quantization_config": said}))
    return model
