"""Checkpoints of small floats as other tools write them, by code of our tests alone: compressed-tensors' FP8, MXFP4 and
NVFP4."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}
_FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "dynamic": False}
_TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "fp8": ("float-quantized", {**_FP8, "strategy": "channel"}, _TOKENS),
    "mxfp4": ("mxfp4-pack-quantized", {**_FP4, "strategy": "group", "group_size": 32}, None),
    "nvfp4": ("nvfp4-pack-quantized", {**_FP4, "strategy": "tensor_group", "group_size": 16}, None),
}


def _e2m1(values: Tensor) -> tuple[Tensor, Tensor]:
    """Packed codes, two in a byte, the first in its lower half; and what they stand for."""
    nearest = (values.abs().unsqueeze(-1) - _E2M1).abs().argmin(-1)
    codes = nearest.to(torch.uint8) | (values < 0).to(torch.uint8) << 3
    return codes[:, 0::2] | codes[:, 1::2] << 4, _E2M1[nearest] * torch.where(values < 0, -1.0, 1.0)


def _stored(kind: str, weight_NK: Tensor, largest: float) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors by suffix, and the weight that they stand for."""
    if kind == "fp8":
        scale = weight_NK.abs().amax(1, keepdim=True) / 448
        codes = (weight_NK / scale).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scale}, codes.float() * scale
    size = {"mxfp4": 32, "nvfp4": 16}[kind]
    most_NG = weight_NK.view(len(weight_NK), -1, size).abs().amax(-1)
    if kind == "mxfp4":
        exponent = most_NG.clamp(min=2.0**-100).log2().floor() - 2
        spread = exponent.exp2().repeat_interleave(size, 1)
        packed, steps = _e2m1((weight_NK / spread).clamp(-6, 6))
        return {"weight_packed": packed, "weight_scale": (exponent + 127).to(torch.uint8)}, steps * spread
    divisor = 448 * 6 / largest
    scale = (most_NG / 6 * divisor).to(torch.float8_e4m3fn)
    spread = (scale.float() / divisor).repeat_interleave(size, 1)
    packed, steps = _e2m1((weight_NK / spread.clamp(min=2.0**-100)).clamp(-6, 6))
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_global_scale": torch.tensor([divisor])}
    return stored, steps * spread


def write(source: Path, out: Path, kind: str) -> Path:
    """A float checkpoint of one shard in small floats, in `out`; returns beside it one with what they stand for."""
    floats = out.with_name(out.name + ".floats")
    for folder in (out, floats):
        shutil.copytree(source, folder)
    tensors = load_file(source / "model.safetensors")
    linears = [name for name in tensors if name.endswith("proj.weight")]
    largest = max(float(tensors[name].abs().max()) for name in linears)
    stored, exact = dict(tensors), dict(tensors)
    for name in linears:
        parts, exact[name] = _stored(kind, stored.pop(name).float(), largest)
        stored |= {name.removesuffix("weight") + suffix: part for suffix, part in parts.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    save_file(exact, floats / "model.safetensors", metadata={"format": "pt"})
    form, weights, inputs = KINDS[kind]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    return floats
