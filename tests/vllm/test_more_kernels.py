"""What vLLM has no kernel for on CPUs, or a slow one: FP8, MXFP4, NVFP4, and layers of experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright.kernels.dispatch import active_isa
from tests.vllm.engines import LINEARS, OURS, Checkpoint, write_checkpoint
from tests.vllm.test_linears import PROMPTS, Ask, apart, logprobs_of_transformers

KERNELS = {"fp8": "Fp8", "mxfp4": "MxFp4", "nvfp4": "NvFp4"}


@pytest.mark.full
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_small_floats_run_on_our_kernels(kind: str, float_model: Path, worker: Ask, tmp_path: Path) -> None:
    from tests.vllm.small_floats import write

    floats = write(float_model, tmp_path / kind, kind)
    opened = worker(OURS, "open_model", path=str(tmp_path / kind), dtype="bfloat16")
    own = kind == "fp8" and active_isa() == "amx"  # vLLM's is used there, which rounds inputs, too
    ours = f"Bitwright{KERNELS[kind]}LinearKernel"
    assert opened["kernels"] == {"ChannelWiseTorchFP8ScaledMMLinearKernel" if own else ours: LINEARS}
    answer = worker(OURS, "generate", prompts=PROMPTS, tokens=2)
    assert apart(answer["logprobs"], logprobs_of_transformers(floats)) < (0.15 if own else 0.05)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of transformers and compressed-tensors
def test_experts_run_on_our_kernels(tiny_model: Callable[..., Path], worker: Ask, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "intermediate_size": 64,
    }  # fmt: skip
    source, out = tiny_model("qwen3_moe", **sizes), tmp_path / "out"  # its first layer has no experts
    write_checkpoint(source, out, Checkpoint({"scheme": "w4a16_g32"}, {}))
    opened = worker(OURS, "open_model", path=str(out), dtype="bfloat16")
    assert opened["kernels"] == {"BitwrightGroupedExpertsMethod": 1, "BitwrightWNA16LinearKernel": 6}
    answer = worker(OURS, "generate", prompts=PROMPTS, tokens=2)
    assert apart(answer["logprobs"], logprobs_of_transformers(out)) < 0.07


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["nf4_g32", "log4_g32", "ternary_g32", "mixed"])
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_our_own_format_runs(scheme: str, float_model: Path, worker: Ask, tmp_path: Path) -> None:
    """Beside the engine's generic path, which dequantizes; every part of a joined linear by itself."""
    import torch

    import bitwright

    rules = [{"match": "*.o_proj", "scheme": "log4_g64"}, {"match": "*.down_proj", "scheme": "w8a8"}]
    recipe = {"scheme": "nf4_g32", "rules": rules} if scheme == "mixed" else {"scheme": scheme}
    out = tmp_path / "out"
    write_checkpoint(float_model, out, Checkpoint(recipe, {}))
    opened = worker(OURS, "open_model", path=str(out), dtype="bfloat16")
    answer = worker(OURS, "generate", prompts=PROMPTS, tokens=2)
    model: Any = bitwright.load(out, compute="float32").hf
    found = []
    for ids in PROMPTS:
        with torch.inference_mode():
            rows_TV = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found.append([float(rows_TV[at, token]) for at, token in enumerate(ids[1:])])
    assert apart(answer["logprobs"], found) < 0.06
    assert answer["calls"] > 0
    assert opened["kernels"] == {"BitwrightLinearMethod": LINEARS}
    if scheme == "mixed":
        worker(OURS, "open_model", path=str(out), dtype="bfloat16", enforce_eager=False)
        compiled = worker(OURS, "generate", prompts=PROMPTS, tokens=2)
        assert apart(compiled["logprobs"], answer["logprobs"]) < 0.06
        assert compiled["calls"] == answer["calls"]
