"""vLLM's engine in a process of its own, told over pipes what to run: python tests/vllm/worker.py

Each line of JSON that it reads gets one with the answer. The requests are the functions of `REQUESTS`, with their
arguments. The engine runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0 is asked of the caller): the second model
takes a second, and what is in its linears can be looked at.
"""

import gc
import json
import logging
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from vllm_engine import kernels_of

Ids = list[int]


class Held:
    """The one engine that is open."""

    llm: Any = None


def open_model(path: str, **settings: Any) -> dict[str, Any]:
    """Load a model in place of the one before. Answers with the kernels that its linears chose, and how often."""
    import vllm

    close_model()
    asked = {"max_model_len": 64, "max_num_seqs": 8, "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
    Held.llm = vllm.LLM(path, enable_prefix_caching=False, disable_log_stats=True, **asked | settings)
    return {"version": vllm.__version__, "kernels": Held.llm.apply_model(kernels_of)[0]}


def release() -> dict[str, Any]:
    """vLLM's."""
    import vllm

    return {"release": vllm.__version__}


def close_model() -> dict[str, Any]:
    """Forget it."""
    from vllm.distributed import cleanup_dist_env_and_memory

    Held.llm = None
    cleanup_dist_env_and_memory()
    return {}


def generate(prompts: list[Ids], tokens: int) -> dict[str, Any]:
    """Greedy tokens, and log probabilities of the prompts' tokens. calls: of our native kernels meanwhile."""
    import vllm

    from bitwright.kernels.dispatch import kernel_calls

    before = kernel_calls()
    greedy = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, prompt_logprobs=0)
    outputs = Held.llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False)
    logprobs = []
    for output in outputs:
        rows = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
        logprobs.append([row[token].logprob for token, row in rows])
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": logprobs,
        "calls": kernel_calls() - before,
    }


def register_without(name: str) -> dict[str, Any]:
    """The plug-in in a vLLM that lacks a name among its linear kernels. Answers with what was said.

    The name is missing only for us: vLLM's own functions go on. `forget` undoes it.
    """
    from vllm.model_executor import kernels
    from vllm.model_executor.kernels import linear

    from bitwright.integrations import vllm as plugin

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda line: said.append(line.getMessage())  # type: ignore[method-assign]
    lacking = types.ModuleType(linear.__name__)
    lacking.__dict__.update({key: value for key, value in vars(linear).items() if key != name})
    for loaded in [module for module in sys.modules if module.startswith(plugin.__name__ + ".")]:
        del sys.modules[loaded]
        vars(plugin).pop(loaded.rpartition(".")[2], None)
    logging.getLogger("vllm.bitwright").addHandler(handler)
    os.environ["BITWRIGHT_VLLM"] = "1"
    try:
        sys.modules[linear.__name__] = kernels.linear = lacking
        plugin.register()
    finally:
        sys.modules[linear.__name__] = kernels.linear = linear
        os.environ["BITWRIGHT_VLLM"] = "0"
        logging.getLogger("vllm.bitwright").removeHandler(handler)
    return {"said": said, "disabled": os.environ.get("VLLM_DISABLED_KERNELS", "")}


def another_plugin(takes: bool) -> dict[str, Any]:
    """Another plug-in puts its kernel first in the list for int8, and calls ours again after it. takes: whether its
    kernel implements anything."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    from bitwright.integrations.vllm import register

    class AnotherKernel(linear.CPUInt8ScaledMMLinearKernel):  # type: ignore[misc, name-defined]
        """Not ours."""

        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, str | None]:
            """All or nothing."""
            return takes, "nothing"

    linear._POSSIBLE_INT8_KERNELS[PlatformEnum.CPU].insert(0, AnotherKernel)
    register()
    return {}


def forget() -> dict[str, Any]:
    """Lists, configs and environment as without plug-ins."""
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.layers import quantization
    from vllm.platforms import PlatformEnum

    os.environ.pop("VLLM_DISABLED_KERNELS", None)
    quantization._CUSTOMIZED_METHOD_TO_QUANT_CONFIG.clear()
    if "bitwright" in quantization.QUANTIZATION_METHODS:
        quantization.QUANTIZATION_METHODS.remove("bitwright")
    for name, table in vars(linear).items():
        if name.startswith("_POSSIBLE_") and PlatformEnum.CPU in table:
            table[PlatformEnum.CPU][:] = [kernel for kernel in table[PlatformEnum.CPU] if "vllm.model" in str(kernel)]
    return {}


REQUESTS = {
    function.__name__: function
    for function in (open_model, close_model, release, generate, register_without, another_plugin, forget)
}


def main() -> None:
    """Answer until the input ends. What goes wrong is an answer too."""
    gc.collect = lambda generation=2: 0  # vLLM asks for nine between two models, half a second each
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = REQUESTS[asked.pop("do")](**asked)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
