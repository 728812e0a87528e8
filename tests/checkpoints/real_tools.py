"""Writes a tiny Llama with another tool, and the weights that the tool's own reader makes of it. It runs in an
environment that the tool has for itself, and imports nothing of ours:

    build/tools/llmcompressor/bin/python tests/checkpoints/real_tools.py llmcompressor W4A16 SOURCE OUT

A linear's weight is what comes out for the identity matrix, so it does not matter how the tool holds it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

REFERENCE = "reference.safetensors"  # beside the checkpoint, not in it
IDS = [[2, 9, 40, 77, 5, 120, 33, 8, 64, 3, 17, 90, 11, 60, 71, 12]]

Weights = dict[str, torch.Tensor]


def llmcompressor(source: Path, out: Path, scheme: str) -> Weights:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = opened(source)
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    model.save_pretrained(out, save_compressed=True)
    back = opened(out)
    with suppress(RuntimeError):  # of some schemes it makes bf16, which it cannot multiply with the rest
        back(input_ids=torch.tensor(IDS))  # decompresses
    torch.nn.Module.float(back)
    for module in back.modules():
        module.quantization_enabled = False  # of inputs
    return weights_of(back)


def auto_round(source: Path, out: Path, form: str) -> Weights:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    name, sym, bits = form.split(",")
    how = {"bits": int(bits), "group_size": 32, "sym": sym == "sym", "iters": 0, "disable_opt_rtn": True}
    made = AutoRound(opened(source), AutoTokenizer.from_pretrained(source), device_map="cpu", **how)
    made.quantize_and_save(str(out), format=name)
    folder = next(out.rglob("config.json")).parent
    return weights_of(opened(folder))


def gptqmodel(source: Path, out: Path, form: str) -> Weights:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    sym, act, bits = form.split(",")
    how = QuantizeConfig(bits=int(bits), group_size=32, sym=sym == "sym", desc_act=act == "order")
    model = GPTQModel.load(str(source), how, device="cpu")
    texts = torch.randint(5, 190, (8, 64), generator=torch.Generator().manual_seed(0)).tolist()
    model.quantize([{"input_ids": row, "attention_mask": [1] * 64} for row in texts], batch_size=1)
    model.save(str(out))
    return weights_of(GPTQModel.load(str(out), device="cpu", backend=BACKEND.TORCH, dtype=torch.float32).model)


def modelopt(source: Path, out: Path, config: str) -> Weights:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    model = opened(source)
    mtq.quantize(model, getattr(mtq, config), lambda m: m(input_ids=torch.tensor(IDS)))
    found = {
        name: module.weight_quantizer(module.weight.detach()).float()
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight_quantizer", None), "is_enabled", False)
    }
    export_hf_checkpoint(model, export_dir=str(out))
    return found


def mlx(source: Path, out: Path, form: str) -> Weights:
    import mlx.core as mx
    import mlx_lm
    import numpy as np

    bits, group = map(int, form.split(","))
    mlx_lm.convert(str(source), str(out), quantize=True, q_bits=bits, q_group_size=group)
    stored: Any = mx.load(str(out / "model.safetensors"))
    found = {}
    for name in [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]:
        part = (stored[f"{name}.{key}"] for key in ("weight", "scales", "biases"))
        numbers = mx.dequantize(*part, group_size=group, bits=bits).astype(mx.float32)
        found[name] = torch.from_numpy(np.array(numbers))
    return found


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def weights_of(model: Any) -> Weights:
    """Of the linears in blocks."""
    found = {}
    with torch.inference_mode():
        for name, module in linears(model):
            k = getattr(module, "in_features", None) or module.infeatures
            wide = module(torch.eye(k)).float().T
            bias = getattr(module, "bias", None)
            found[name] = (wide if bias is None else wide - bias.float()[:, None]).contiguous()
    return found


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if ".layers." in name and name.endswith("_proj"):
            yield name, module


TOOLS: dict[str, Callable[[Path, Path, str], Weights]] = {
    "llmcompressor": llmcompressor, "auto_round": auto_round, "gptqmodel": gptqmodel, "modelopt": modelopt, "mlx": mlx
}  # fmt: skip

if __name__ == "__main__":
    tool, form, source, out = sys.argv[1:]
    torch.set_num_threads(1)
    save_file(TOOLS[tool](Path(source), Path(out), form), Path(out).with_name(REFERENCE))
