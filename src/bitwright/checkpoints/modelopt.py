"""Checkpoints of NVIDIA's ModelOpt: FP8, MXFP8, NVFP4 and MXFP4. What a linear is, its tensors say:

<m>.weight           E4M3 (N, K), or E2M1, two in a byte (N, K/2)
<m>.weight_scale     float, of the tensor or of each row or block; or E8M0 (N, K/32); or, of NVFP4, E4M3 (N, K/16)
<m>.weight_scale_2   float32 (), of NVFP4: it multiplies, where compressed-tensors' divides
<m>.input_scale      of inputs in FP8 or NVFP4, which are floats or int8 here
<m>.k_scale, v_scale of a cache in FP8, which the engine holds in its own way
"""

from bitwright.checkpoints.checkpoint import Checkpoint, Module, Opened, assemble, modules_with
from bitwright.checkpoints.small_float_codes import FP4_INPUTS, FP8_INPUTS, Fp4, open_fp4, open_fp8, open_mxfp8
from bitwright.errors import CheckpointError, brief
from bitwright.files.directory import ModelDirectory

METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed")
SUFFIXES = ("weight", "weight_scale", "weight_scale_2", "input_scale")
_NVFP4 = Fp4("NVFP4", "weight", "weight_scale", "weight_scale_2")
_MXFP4 = Fp4("MXFP4", "weight", "weight_scale")
_BLOCKS = (128, 128)
_CACHE = ("k_scale", "v_scale")
_ALGORITHMS = (
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "FP8_PB_REAL",
    "MXFP8",
    "NVFP4",
    "NVFP4_AWQ",
    "W4A16_NVFP4",
    "W4A8_NVFP4_FP8",
    "MXFP4",
    "W4A8_MXFP4_FP8",
    "MIXED_PRECISION",
)


def read_modelopt(directory: ModelDirectory) -> Checkpoint:
    """Open a ModelOpt checkpoint.

    Raises:
        ModelError: there are no weights. CheckpointError: its parts contradict one another, or an algorithm that this
        release lacks.
    """
    assert directory.quantization is not None
    where, said = directory.quantization
    said = said.get("quantization", said)  # hf_quant_config.json has it one level down
    algorithm = said.get("quant_algo") if isinstance(said, dict) else said
    if not isinstance(algorithm, str) or algorithm.upper() not in _ALGORITHMS:
        raise CheckpointError(f"{where}: quant_algo {brief(algorithm)}; this release reads {', '.join(_ALGORITHMS)}")
    modules = {name: Module(directory, name) for name in modules_with(directory, "weight_scale")}
    opened: dict[str, Opened] = {name: _open(module) for name, module in modules.items()}
    cache = frozenset(name for name in directory.tensors if name.endswith(_CACHE))
    rounded = [module for module in modules.values() if "input_scale" in module]
    notes = sorted({FP4_INPUTS if _is_fp4(module) else FP8_INPUTS for module in rounded})
    notes += ["keys and values are not held in the file's FP8"] if cache else []
    return assemble(directory, opened, SUFFIXES, notes=tuple(notes), ignored=cache)


def _is_fp4(module: Module) -> bool:
    return module.dtype("weight") == "U8"


def _open(module: Module) -> Opened:
    if _is_fp4(module):
        return open_fp4(module, _NVFP4 if "weight_scale_2" in module else _MXFP4)
    powers = module.dtype("weight_scale") in ("U8", "F8_E8M0")
    return open_mxfp8(module) if powers else open_fp8(module, "weight_scale", _BLOCKS)
