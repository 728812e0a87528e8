"""vLLM on a CPU runs quantized linears on Bitwright's kernels: `pip install bitwright[vllm]`, then plain `vllm serve`.

vLLM calls `register` in every process that it starts (entry point `vllm.general_plugins`); nothing of vLLM is imported
before. BITWRIGHT_VLLM=0 turns it off. Where this vLLM is not one that we know, or the processor not one that our
kernels run on, it stands aside with one line in the log and vLLM goes on without it.
"""

import logging
import os

_log = logging.getLogger("vllm.bitwright")  # below vLLM's logger: its level and format hold here too


def register() -> None:
    """Put our kernels before vLLM's own. May be called any number of times."""
    if os.environ.get("BITWRIGHT_VLLM") == "0":
        return
    try:
        from bitwright.integrations.vllm import slots
    except ImportError as error:
        _log.warning("Bitwright's kernels stay out: this vLLM is not one that they know (%s)", error)
        return
    slots.fill(_log)
