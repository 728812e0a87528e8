"""vLLM's engine in processes of its own, and the small checkpoints that it is given. Whatever imports this is skipped
where vLLM is not installed."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

if find_spec("vllm") is None:
    pytest.skip("vLLM has an environment of its own: make test-vllm", allow_module_level=True)

import torch
from safetensors.torch import load_file, save_file

from bitwright.numerics.bits import add_words
from bitwright.runtime.bench_process import Worker

ROOT = Path(__file__).parents[2]
OURS, OWN = "1", "0"  # BITWRIGHT_VLLM
TIMEOUT_S = 280.0  # the machine may be busy, and vLLM's first import is long

# Heads of 32, the least that vLLM's attention on CPUs takes; groups of 32, and of 64 and 128 where K allows.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128,
}  # fmt: skip
ENCODER_SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
LINEARS = 8  # of two blocks, as vLLM joins them: qkv, output, gate and up, down


class Checkpoint(NamedTuple):
    """A small llama as `quantize` writes it, or `convert` after it, and `edit` after that. ours: its kernels of ours,
    each with its linears; a linear that is not counted there runs on vLLM's own. apart: how far its log probabilities
    may be from those of transformers, which rounds no inputs: in bfloat16 beside float32; a wrong grid is 0.3 and more
    apart. only_ours: vLLM refuses it. calls: of our kernels in a step, where it is not one for each linear.
    """

    recipe: dict[str, Any]
    ours: dict[str, int]
    to: str | None = None
    apart: float = 0.07
    edit: Callable[[Path], None] | None = None
    only_ours: bool = False
    calls: int | None = None


def _as_auto_round(out: Path) -> None:
    """A checkpoint of GPTQ as AutoRound writes it: other words in config.json, no g_idx, and zero points less one,
    except in 3 bits."""
    said, tensors = _opened(out)
    _decode(out)
    three = said["bits"] == 3
    if said["checkpoint_format"] == "gptq_v2" and not three:
        for name in [name for name in tensors if name.endswith("qzeros")]:
            tensors[name] = torch.from_numpy(add_words(tensors[name].numpy(), -1, said["bits"]))
    _save(out, {key: said[key] for key in ("bits", "group_size", "sym")} | {
        "quant_method": "auto-round", "packing_format": "auto_round" if three else "auto_round:auto_gptq",
        "data_type": "int", "block_name_to_quantize": "model.layers", "autoround_version": "0.9.0",
    }, {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")})  # fmt: skip


def _in_another_order(out: Path) -> None:
    """Which group a column is of is shuffled, for each linear by itself, as act-order leaves it: another model."""
    said, tensors = _opened(out)
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        tensors[name] = tensors[name][torch.randperm(tensors[name].numel(), generator=random)]
    _save(out, said | {"desc_act": True}, tensors)
    _decode(out)


def _decode(out: Path) -> None:
    """The numbers of a GPTQ checkpoint into its source, read by nobody's reader: w = (q − z) · s."""
    said, tensors = _opened(out)
    floats = load_file(_source_of(out) / "model.safetensors")
    less = said["checkpoint_format"] == "gptq"
    for name in [name.removesuffix(".g_idx") for name in tensors if name.endswith(".g_idx")]:
        words, zeros, scales, index = (tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))
        bits = 32 * len(words) // len(index)
        zero_GN = (_codes(zeros, bits) + less) % (1 << bits)
        weight_NK = (_codes(words.T, bits) - zero_GN.T[:, index.long()]) * scales.float().T[:, index.long()]
        floats = {key: value for key, value in floats.items() if not key.startswith(f"{name}.weight")}
        floats[f"{name}.weight"] = weight_NK
    _save(_source_of(out), None, floats)


def _codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of int32 words as rows of codes from 0, the lowest bits first."""
    each = np.unpackbits(np.ascontiguousarray(words.numpy()).view(np.uint8), axis=1, bitorder="little")
    rows, length = each.shape[0], each.shape[1] // bits
    return torch.from_numpy(each[:, : length * bits].reshape(rows, length, bits) @ (1 << np.arange(bits))).float()


def _source_of(out: Path) -> Path:
    return out.with_name(out.name + ".source")


def _opened(out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = json.loads((out / "config.json").read_text())
    return config["quantization_config"], load_file(out / "model.safetensors")


def _save(out: Path, said: dict[str, Any] | None, tensors: dict[str, torch.Tensor]) -> None:
    config = json.loads((out / "config.json").read_text())
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(config | ({"quantization_config": said} if said else {})))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")


_INT8, _PACKED = "BitwrightInt8LinearKernel", "BitwrightWNA16LinearKernel"
_GPTQ = {"BitwrightGptqLinearMethod": LINEARS}
_MIXED = [{"match": "*.down_proj", "scheme": "w4a16_g32"}, {"match": "*.layers.0.self_attn.*", "scheme": "16bit"}]
CHECKPOINTS: dict[str, Checkpoint] = {
    "w8a8": Checkpoint({"scheme": "w8a8"}, {_INT8: LINEARS}),
    "w8a8_symmetric": Checkpoint({"scheme": "w8a8_symmetric"}, {_INT8: LINEARS}),
    "w8a8_static": Checkpoint({"scheme": "w8a8_static"}, {_INT8: LINEARS}, apart=0.15),
    "w8a8_static_symmetric": Checkpoint({"scheme": "w8a8_static_symmetric"}, {_INT8: LINEARS}, apart=0.15),
    "w4a16_g32": Checkpoint({"scheme": "w4a16_g32"}, {_PACKED: LINEARS}),
    "w4a16_g64": Checkpoint({"scheme": "w4a16_g64"}, {_PACKED: LINEARS}),
    "w4a16_g32_asym": Checkpoint({"scheme": "w4a16_g32_asym"}, {_PACKED: LINEARS}),
    "w4a16_channel": Checkpoint({"scheme": "w4a16_channel"}, {_PACKED: LINEARS}),
    "gptq": Checkpoint({"scheme": "w4a16_g32"}, {_PACKED: LINEARS}, "gptq"),
    "gptq_asym": Checkpoint({"scheme": "w4a16_g32_asym"}, _GPTQ, "gptq", only_ours=True),
    "gptq_w3": Checkpoint({"scheme": "w3a16_g32"}, _GPTQ, "gptq", edit=_decode, only_ours=True),
    "gptq_w2_mixed": Checkpoint(
        {"scheme": "w2a16_g32", "rules": [{"match": "*.o_proj", "scheme": "w4a16_g64"}]},
        {"BitwrightGptqLinearMethod": 6, _PACKED: 2},
        "gptq",
        only_ours=True,
    ),
    "gptq_act_order": Checkpoint(
        {"scheme": "w4a16_g32"}, _GPTQ, "gptq", edit=_in_another_order, only_ours=True, calls=14
    ),
    "auto_round": Checkpoint({"scheme": "w4a16_g32"}, {_PACKED: LINEARS}, "gptq", edit=_as_auto_round),
    "auto_round_w3": Checkpoint({"scheme": "w3a16_g32_asym"}, _GPTQ, "gptq", edit=_as_auto_round, only_ours=True),
    "auto_round_asym": Checkpoint({"scheme": "w4a16_g32_asym"}, _GPTQ, "gptq", edit=_as_auto_round, only_ours=True),
    "awq": Checkpoint({"scheme": "w4a16_g32_asym"}, {_PACKED: LINEARS}, "awq"),
    "mixed": Checkpoint({"scheme": "w8a8", "rules": _MIXED}, {_INT8: 4, _PACKED: 2}),
}


def write_checkpoint(source: Path, out: Path, checkpoint: Checkpoint) -> None:
    """Quantize a float model, and convert the result if that is asked for."""
    from bitwright.checkpoints.convert import convert
    from bitwright.files.directory import ModelDirectory
    from bitwright.pipeline import quantize
    from bitwright.recipe import make_recipe

    recipe = make_recipe({"method": "rtn", "targets": ["bitwright"], **checkpoint.recipe})
    first = out if checkpoint.to is None else _source_of(out)
    quantize(source, out=first, recipe=recipe, samples=20, judged=False)
    if checkpoint.to is not None:
        convert(ModelDirectory(first), checkpoint.to, out, allow_loss=True)
    if checkpoint.edit is not None:
        checkpoint.edit(out)


def environment(plugin: str = OURS, **more: str) -> dict[str, str]:
    """Of a process with vLLM: no network, no statistics of use, one thread, and graphs as eager code where a model is
    compiled (VLLM_CPU_CI_ENV)."""
    return os.environ | {
        "BITWRIGHT_VLLM": plugin,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CACHE_ROOT": str(Path(sys.prefix) / "cache"),
        "VLLM_CPU_CI_ENV": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        **more,
    }


def start_worker(plugin: str, log: Path) -> Worker:
    """tests/vllm/worker.py. `log` gets what vLLM prints."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
    return Worker("vllm", command, environment(plugin, VLLM_ENABLE_V1_MULTIPROCESSING="0"), log)


@contextmanager
def serving(directory: Path, log: Path, *arguments: str) -> Iterator[str]:
    """vLLM's server, and the address that it answers on. `vllm serve` of the package vllm-cpu 0.32 asks for the version
    of a package that is called vllm, and ends; the module behind it does not.

    Raises:
        AssertionError: it ended, or did not answer in time. The message has its last lines.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--enforce-eager"]
    command += ["--dtype", "bfloat16", "--max-num-seqs", "8", *arguments]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment(VLLM_CPU_KVCACHE_SPACE="1"))
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()  # it ends its engine
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    lines = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise AssertionError(f"vLLM's server, exit code {server.poll()}:\n{lines}")
