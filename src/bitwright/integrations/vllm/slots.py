"""vLLM's lists of linear kernels, and ours at their heads.

`register_linear_kernel` appends, so that a kernel of vLLM's own that accepts a layer wins. So the lists themselves are
changed, which are private: they are looked for by name, and where one is missing or of another form, ours is appended
by the public function and vLLM's kernels of that slot are named in VLLM_DISABLED_KERNELS.
"""

import os
from logging import Logger
from typing import Any

from vllm.model_executor.kernels import linear as kernels
from vllm.platforms import PlatformEnum, current_platform

from bitwright.errors import KernelError
from bitwright.integrations.vllm.fp4 import BitwrightMxFp4LinearKernel, BitwrightNvFp4LinearKernel
from bitwright.integrations.vllm.fp8 import BitwrightFp8BlockLinearKernel, BitwrightFp8LinearKernel
from bitwright.integrations.vllm.int8 import BitwrightInt8LinearKernel
from bitwright.integrations.vllm.packed import BitwrightWNA16LinearKernel
from bitwright.kernels import torch_ops
from bitwright.kernels.dispatch import active_isa

# kind, as `register_linear_kernel` calls it -> the list, and our kernel
_SLOTS: dict[str, tuple[str, type]] = {
    "int8": ("_POSSIBLE_INT8_KERNELS", BitwrightInt8LinearKernel),
    "mp": ("_POSSIBLE_KERNELS", BitwrightWNA16LinearKernel),
    "fp8": ("_POSSIBLE_FP8_KERNELS", BitwrightFp8LinearKernel),
    "mxfp4": ("_POSSIBLE_MXFP4_KERNELS", BitwrightMxFp4LinearKernel),
    "nvfp4": ("_POSSIBLE_NVFP4_KERNELS", BitwrightNvFp4LinearKernel),
}

# The same for lists that the public function does not know: name, and our kernel. They are left alone where missing.
_MORE = (
    ("_POSSIBLE_FP8_BLOCK_KERNELS", BitwrightFp8BlockLinearKernel),
    ("_POSSIBLE_WFP8A16_KERNELS", BitwrightFp8LinearKernel),
)


def fill(log: Logger) -> None:
    """Put our kernels into every slot that they can take, and say so in one line."""
    if not current_platform.is_cpu():
        return
    try:
        torch_ops.load()
    except KernelError as error:
        log.warning("Bitwright's kernels stay out: %s", error)
        return
    for kind, (name, kernel) in _SLOTS.items():
        _put_first(kernel, kind, getattr(kernels, name, None))
    for name, kernel in _MORE:
        listed = getattr(kernels, name, {}).get(PlatformEnum.CPU)
        if isinstance(listed, list) and kernel not in listed:
            listed.insert(0, kernel)
    taken = [*_SLOTS, "experts"]
    try:
        from bitwright.integrations.vllm import config
    except ImportError as error:
        log.warning("Layers of experts stay with vLLM's kernels: this vLLM is not one that we know (%s)", error)
        taken.remove("experts")
    else:
        config.register()
    log.info("Bitwright's kernels (%s) come first for: %s", active_isa(), ", ".join(taken))


def _put_first(kernel: type, kind: str, table: Any) -> None:
    listed = table.setdefault(PlatformEnum.CPU, []) if isinstance(table, dict) else None
    if isinstance(listed, list):
        if kernel not in listed:
            listed.insert(0, kernel)
        return
    kernels.register_linear_kernel(kernel, PlatformEnum.CPU, kind)
    own = [name for name in ("CPUInt8ScaledMMLinearKernel", "CPUWNA16LinearKernel") if hasattr(kernels, name)]
    disabled = filter(None, [os.environ.get("VLLM_DISABLED_KERNELS"), *own])
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join(disabled)
