"""vLLM's lists of linear kernels, and ours at their heads.

`register_linear_kernel` appends, so that a kernel of vLLM's own that accepts a layer wins. So the lists themselves are
changed, which are private: they are looked for by name, and where one is missing or of another form, ours is appended
by the public function and vLLM's kernels of that slot are named in VLLM_DISABLED_KERNELS.
"""

import os
from importlib import import_module
from logging import Logger
from typing import Any

from vllm.model_executor.kernels import linear as kernels
from vllm.platforms import PlatformEnum, current_platform

from bitwright.errors import KernelError
from bitwright.kernels import torch_ops
from bitwright.kernels.dispatch import active_isa

# vLLM's own for CPUs, by kind
_OWN: dict[str, tuple[str, ...]] = {
    "int8": ("ZentorchInt8ScaledMMLinearKernel", "CPUInt8ScaledMMLinearKernel"),
    "mp": ("Dynamic4bitLinearKernel", "ZentorchWNA16LinearKernel", "CPUWNA16LinearKernel"),
    "fp8": ("PerTensorTorchFP8ScaledMMLinearKernel", "ChannelWiseTorchFP8ScaledMMLinearKernel"),
    "mxfp4": (),
    "nvfp4": (),
}
# kind, as `register_linear_kernel` calls it -> vLLM's list, our file and class
_SLOTS = {
    "int8": ("_POSSIBLE_INT8_KERNELS", "int8", "BitwrightInt8LinearKernel"),
    "mp": ("_POSSIBLE_KERNELS", "packed", "BitwrightWNA16LinearKernel"),
    "fp8": ("_POSSIBLE_FP8_KERNELS", "fp8", "BitwrightFp8LinearKernel"),
    "mxfp4": ("_POSSIBLE_MXFP4_KERNELS", "fp4", "BitwrightMxFp4LinearKernel"),
    "nvfp4": ("_POSSIBLE_NVFP4_KERNELS", "fp4", "BitwrightNvFp4LinearKernel"),
}
# The same of lists that the public function does not know; they are left alone where missing.
_MORE = {
    "fp8 in blocks": ("_POSSIBLE_FP8_BLOCK_KERNELS", "fp8", "BitwrightFp8BlockLinearKernel"),
    "fp8 weights alone": ("_POSSIBLE_WFP8A16_KERNELS", "fp8", "BitwrightFp8LinearKernel"),
}


def fill(log: Logger) -> None:
    """Put our kernels into every slot that they can take, and say so in one line."""
    if not current_platform.is_cpu():
        return
    try:
        torch_ops.load()
    except KernelError as error:
        log.warning("Bitwright's kernels stay out: %s", error)
        return
    taken, left = [], []
    for kind, (name, file, kernel) in (_SLOTS | _MORE).items():
        table = getattr(kernels, name, None)
        try:
            found = getattr(_file(file), kernel)
        except (ImportError, AttributeError) as error:
            left.append(f"{kind} ({error})")
            continue
        if _put_first(found, table):
            taken.append(kind)
        elif kind in _SLOTS:
            _append(found, kind)
            taken.append(kind)
    for what, file in (("experts", "config"), ("quant_method bitwright", "own"), ("gptq and auto-round", "gptq")):
        try:
            _file(file).register()
            taken.append(what)
        except (ImportError, AttributeError) as error:
            left.append(f"{what} ({error})")
    log.info("Bitwright's kernels (%s) come first for: %s", active_isa(), ", ".join(taken))
    if left:
        log.warning("Bitwright does not know this vLLM's kernels for %s: its own run", "; ".join(left))


def _file(name: str) -> Any:
    return import_module(f"bitwright.integrations.vllm.{name}")


def _put_first(kernel: type, table: Any) -> bool:
    """False where vLLM's list is not what it is taken for."""
    listed = table.setdefault(PlatformEnum.CPU, []) if isinstance(table, dict) else None
    if not isinstance(listed, list):
        return False
    if kernel not in listed:
        listed.insert(0, kernel)
    return True


def _append(kernel: type, kind: str) -> None:
    kernels.register_linear_kernel(kernel, PlatformEnum.CPU, kind)
    disabled = filter(None, [os.environ.get("VLLM_DISABLED_KERNELS"), *_OWN[kind]])
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join(disabled)
