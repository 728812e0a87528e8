"""Every linear of a quantized checkpoint runs on a kernel of ours, and the model says what transformers' says."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from bitwright.errors import TargetError
from tests.vllm.engines import CHECKPOINTS, LINEARS, OURS, OWN

Ask = Callable[..., dict[str, Any]]
PROMPTS = [[5, 9, 20, 33, 70, 8, 100], [12, 13, 14, 9, 8, 7, 60, 61, 62, 63, 64, 65, 66], [150, 3]]
TOKENS = 12
QUICK = ("w8a8", "w4a16_g32")  # of CI
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in CHECKPOINTS]


def logprobs_of_transformers(directory: Path) -> list[list[float]]:
    """Of the prompts' tokens, by the model with its weights unpacked."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    found = []
    for ids in PROMPTS:
        with torch.inference_mode():
            rows_TV = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append([float(rows_TV[at, token]) for at, token in enumerate(ids[1:])])
    return found


def apart(one: list[list[float]], other: list[list[float]]) -> float:
    return mean(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # of transformers and compressed-tensors, as vLLM pins them
def test_linears_run_on_our_kernels(
    name: str, checkpoint: Callable[[str], Path], worker: Ask, record: Callable[..., None]
) -> None:
    directory, row = checkpoint(name), CHECKPOINTS[name]
    opened = worker(OURS, "open_model", path=str(directory), dtype="bfloat16")
    assert opened["kernels"] == row.ours
    answer = worker(OURS, "generate", prompts=PROMPTS, tokens=TOKENS)
    calls = sum(row.ours.values()) if row.calls is None else row.calls  # in a step; the prompts are one
    assert answer["calls"] == TOKENS * calls
    # transformers alone reads neither GPTQ nor AWQ: their source has the same numbers.
    source = directory if row.to is None else directory.with_name(directory.name + ".unfinished.source")
    distance = apart(answer["logprobs"], logprobs_of_transformers(source))
    assert distance < row.apart
    kind = "auto-round" if name.startswith("auto_round") else row.to or "compressed-tensors"
    release = opened["version"]
    record(name=name, side="bitwright", format=kind, release=release, kernels=opened["kernels"], apart=distance)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name, row in CHECKPOINTS.items() if not row.only_ours])
def test_beside_the_kernels_of_vllm(
    name: str, checkpoint: Callable[[str], Path], worker: Ask, record: Callable[..., None]
) -> None:
    """The same log probabilities as with vLLM's own kernels, where it has one."""
    directory = checkpoint(name)
    own = worker(OWN, "open_model", path=str(directory), dtype="bfloat16")
    record(name=name, side="vllm", release=own["version"], kernels=own["kernels"])
    assert sum(own["kernels"].values()) == sum(CHECKPOINTS[name].ours.values())  # none of them runs in 16 bit
    assert not any(kernel.startswith("Bitwright") for kernel in own["kernels"])
    theirs = worker(OWN, "generate", prompts=PROMPTS, tokens=1)
    assert theirs["calls"] == 0
    worker(OURS, "open_model", path=str(directory), dtype="bfloat16")
    ours = worker(OURS, "generate", prompts=PROMPTS, tokens=1)
    assert apart(theirs["logprobs"], ours["logprobs"]) < CHECKPOINTS[name].apart


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name, row in CHECKPOINTS.items() if row.only_ours])
def test_vllm_alone_refuses(
    name: str, checkpoint: Callable[[str], Path], worker: Ask, record: Callable[..., None]
) -> None:
    release = worker(OWN, "release")["release"]
    with pytest.raises(TargetError):
        worker(OWN, "open_model", path=str(checkpoint(name)), dtype="bfloat16")
    record(name=name, side="vllm", release=release, kernels={})


@pytest.mark.full
@pytest.mark.parametrize("name", QUICK)
def test_compiled_gives_the_same_tokens(name: str, checkpoint: Callable[[str], Path], worker: Ask) -> None:
    """dynamo traces the model without a break: it asks for whole graphs. In bfloat16 fused steps round less often."""
    directory = str(checkpoint(name))
    worker(OURS, "open_model", path=directory, dtype="float32")
    eager = worker(OURS, "generate", prompts=PROMPTS, tokens=TOKENS)
    opened = worker(OURS, "open_model", path=directory, dtype="float32", enforce_eager=False)
    assert opened["kernels"] == dict.fromkeys(CHECKPOINTS[name].ours, LINEARS)
    compiled = worker(OURS, "generate", prompts=PROMPTS, tokens=TOKENS)
    assert compiled["tokens"] == eager["tokens"]
    assert compiled["calls"] == eager["calls"]


def test_a_float_model_is_left_alone(float_model: Path, worker: Ask) -> None:
    assert worker(OURS, "open_model", path=str(float_model), dtype="bfloat16")["kernels"] == {}
    assert worker(OURS, "generate", prompts=PROMPTS, tokens=2)["calls"] == 0
