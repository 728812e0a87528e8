"""The worker of `vllm_speed.py` and `vllm_agreement.py`: vLLM with one model, as its environment says.

    python benchmarks/vllm_engine.py PATH --threads N

It says one line of JSON when the model is loaded, with the kernels of its linears, then answers each line of JSON with
one: the time of prompts and new tokens, or the most likely next token at each position of some windows of text.
"""

import argparse
import ctypes
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # last: -P keeps what lies here from standing for libraries

from llm_engines import answer_requests, prompts_of, vllm_engine

PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that this process gets when its parent is gone
MODEL_TOKENS = 1024
BATCH_TOKENS = 2048  # what `vllm serve` takes on a CPU

Ids = Sequence[int]


def kernels_of(model: Any) -> dict[str, int]:
    """Class names of the kernels in a model's linears, with the number of linears that have each."""
    found: Counter[str] = Counter()
    for module in model.modules():
        for holder in (getattr(module, "scheme", None), getattr(module, "quant_method", None)):
            inner = getattr(getattr(holder, "scheme", None), "linear_method", holder)  # AutoRound's is wrapped twice
            kernel = getattr(inner, "kernel", None) or getattr(holder, "fp8_linear", None)
            if kernel is not None:
                found[type(kernel).__name__] += 1
            elif type(holder).__name__.startswith("Bitwright"):
                found[type(holder).__name__] += 1
    return dict(found)


class Requests:
    """An engine, and the number of its last request."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.number = engine, 0

    def add(self, ids: Ids, **sampling: Any) -> str:
        """A greedy request."""
        import vllm

        self.number += 1
        asked = vllm.SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **sampling)
        self.engine.add_request(str(self.number), {"prompt_token_ids": list(ids)}, asked)
        return str(self.number)


def timed(requests: Requests, prompts: Sequence[Ids], new: int) -> dict[str, float]:
    """New tokens per second: of the whole, prompts included; and from where every sequence has its first one."""
    engine, made = requests.engine, dict[str, int]()
    begun = time.perf_counter()
    for ids in prompts:
        requests.add(ids, max_tokens=new)
    started = None
    while engine.has_unfinished_requests():
        made |= {output.request_id: len(output.outputs[0].token_ids) for output in engine.step()}
        if started is None and len(made) == len(prompts):
            started = time.perf_counter(), sum(made.values())
    ended, total = time.perf_counter(), len(prompts) * new
    assert started is not None
    assert sum(made.values()) == total
    return {"per_s": total / (ended - begun), "decode_per_s": (total - started[1]) / (ended - started[0])}


def choices(requests: Requests, windows: Sequence[Ids]) -> dict[str, Any]:
    """The most likely token after each of a window's but its last, and the log probability of the one that follows."""
    engine, found = requests.engine, dict[str, Any]()
    order = [requests.add(ids, max_tokens=1, prompt_logprobs=1) for ids in windows]
    while engine.has_unfinished_requests():
        found |= {output.request_id: output.prompt_logprobs for output in engine.step() if output.prompt_logprobs}
    likeliest, logprobs = [], []
    for name, ids in zip(order, windows, strict=True):
        rows = found[name][1:]
        likeliest.append([next(token for token, one in row.items() if one.rank == 1) for row in rows])
        logprobs.append([row[token].logprob for token, row in zip(ids[1:], rows, strict=True)])
    return {"likeliest": likeliest, "logprobs": logprobs}


def answered(requests: Requests, asked: dict[str, Any]) -> dict[str, Any]:
    """Of windows their choices, of a cell its time."""
    if "windows" in asked:
        return choices(requests, asked["windows"])
    return timed(requests, prompts_of(asked["sequences"], asked["prompt"], asked["vocabulary"]), asked["new"])


def main() -> None:
    """Load and warm up, then answer until the input ends; a stopped process does not see that it did."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model-tokens", type=int, default=MODEL_TOKENS, help="of a sequence, at most")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()

    def begin() -> Requests:
        requests = Requests(vllm_engine(
            options.path, options.threads, max_model_len=options.model_tokens, max_num_batched_tokens=BATCH_TOKENS,
            enforce_eager=options.eager, dtype=options.dtype,
        ))  # fmt: skip
        timed(requests, [[1] * 16], 4)
        return requests

    def about(requests: Requests) -> dict[str, Any]:
        import vllm

        return {"about": f"vllm {vllm.__version__}", "kernels": requests.engine.apply_model(kernels_of)[0]}

    answer_requests(begin, about, answered)


if __name__ == "__main__":
    main()
