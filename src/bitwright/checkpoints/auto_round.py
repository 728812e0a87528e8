"""Checkpoints of AutoRound and Intel Neural Compressor in their own format: codes packed as GPTQ or AutoAWQ packs them.

packing_format    auto_round:auto_gptq              zero points less one (GPTQ v1)
                  auto_round, …:gptqmodel           zero points as they are (GPTQ v2)
                  auto_round:auto_awq               AutoAWQ's
extra_config      settings of single modules, by name or by pattern, which may match anywhere in a name
"""

from collections.abc import Mapping
from typing import Any

from bitwright.checkpoints.awq import read_interleaved
from bitwright.checkpoints.checkpoint import Checkpoint, own_settings
from bitwright.checkpoints.gptq import read_packed
from bitwright.errors import CheckpointError, brief
from bitwright.files.directory import ModelDirectory

METHODS = ("auto-round", "intel/auto-round", "inc")
# How codes are packed as GPTQ packs them -> whether zero points are stored less one.
LESS_ONE = {"auto_round:auto_gptq": True, "auto_round": False, "auto_round:gptqmodel": False}
_AWQ = "auto_round:auto_awq"


def read_auto_round(directory: ModelDirectory) -> Checkpoint:
    """Open an AutoRound checkpoint of integer codes.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another, or a layout that this
        release lacks.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    packing, extra = said.get("packing_format", "auto_round:auto_gptq"), said.get("extra_config") or {}
    if packing not in (*LESS_ONE, _AWQ):
        known = ", ".join((*LESS_ONE, _AWQ))
        raise CheckpointError(f"{where}: packing_format {brief(packing)}; this release reads {known}")
    if not isinstance(extra, dict) or not all(isinstance(own, dict) for own in extra.values()):
        raise CheckpointError(f"{where}: extra_config must map modules to settings, but is {brief(extra)}")
    for own in (said, *extra.values()):
        kind, inputs = own.get("data_type", "int"), own.get("act_bits")
        if kind not in ("int", "fp", None) or (kind != "int" and own is said) or (inputs or 16) not in (16, 32):
            raise CheckpointError(
                f"{where}: data_type {brief(kind)}, act_bits {brief(inputs)}; this release reads weights of integers, "
                "with float inputs"
            )
    # As AutoRound has it: what is no name of a module is a pattern, which may match anywhere in one; {} says nothing.
    names = {name.rpartition(".")[0] for name in directory.tensors}
    patterns = {key: own for key, own in extra.items() if own and key not in names}
    find = own_settings(patterns, f"{where}: extra_config", anywhere=True)

    def settings(module: str) -> Mapping[str, Any]:
        return {**said, **(extra.get(module) or find(module) or {})}

    if packing == _AWQ:
        return read_interleaved(directory, settings)
    return read_packed(directory, settings, less_one=LESS_ONE[packing])
