"""Checkpoints of FP8 weights as model vendors publish them (`quant_method: fp8`; DeepSeek, Qwen):

<m>.weight             E4M3 (N, K)
<m>.weight_scale_inv   float (⌈N/128⌉, ⌈K/128⌉)   multiplies, whatever its name; a scale of each block
<m>.weight_scale       float (1,)                 without blocks: of the tensor
"""

from bitwright.checkpoints.checkpoint import Checkpoint, Module, assemble, modules_with
from bitwright.checkpoints.small_float_codes import FP8_INPUTS, open_fp8
from bitwright.errors import CheckpointError, brief
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.linear import PendingFloat

SUFFIXES = ("weight", "weight_scale_inv", "weight_scale", "input_scale")


def read_fp8(directory: ModelDirectory) -> Checkpoint:
    """Open such a checkpoint.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    blocks = parse_blocks(said.get("weight_block_size"), f"{where}: weight_block_size")
    if said.get("fmt", "e4m3") != "e4m3":
        raise CheckpointError(f"{where}: fmt {brief(said['fmt'])}; this release reads 'e4m3'")

    def opened(name: str) -> PendingFloat:
        module = Module(directory, name)
        return open_fp8(module, "weight_scale_inv" if "weight_scale_inv" in module else "weight_scale", blocks)

    modules = modules_with(directory, "weight_scale_inv", "weight_scale")
    return assemble(directory, {name: opened(name) for name in modules}, SUFFIXES, notes=(FP8_INPUTS,))


def parse_blocks(value: object, where: str) -> tuple[int, int] | None:
    """Rows and columns of a block, or None.

    Raises:
        CheckpointError: no two sizes.
    """
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or any(type(size) is not int or size < 1 for size in value):
        raise CheckpointError(f"{where} must be two sizes such as [128, 128], but is {brief(value)}")
    return value[0], value[1]
