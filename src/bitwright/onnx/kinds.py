"""How a linear is written into an ONNX graph, by its form alone; no onnx is needed to know it."""

from typing import Literal

from bitwright.errors import TargetError
from bitwright.numerics.linear import LinearForm

Kind = Literal["static", "dynamic", "weights"]

_BLOCKS = (256, 128, 64, 32, 16)  # that MatMulNBits takes


def kind_of(name: str, form: LinearForm, k: int) -> Kind:
    """How a linear of K = k inputs is written.

    Raises:
        TargetError: ONNX has no operators for it.
    """
    weight, given = form.weight, form.input
    whole = weight.grid == "uniform"
    if whole and weight.bits == 8 and weight.group_size is None and given is not None:
        return "dynamic" if given.dynamic else "static"
    if whole and weight.bits in (4, 8) and not weight.per_tensor and (given is None or given.dynamic):
        block_size(name, k, weight.group_size)
        return "weights"
    raise TargetError(
        f"{name}: ONNX Runtime has no integer kernel for {weight.bits} bits on the {weight.grid} grid. It takes "
        "w8a8, w8a8_static, w8a16 and w4a16; use one of them, or keep the linear in 16bit"
    )


def block_size(name: str, k: int, group_size: int | None) -> int:
    """The values along K that get a scale of their own in the graph: a group, or what divides it.

    Raises:
        TargetError: nothing that ONNX Runtime takes divides it.
    """
    group = group_size or k
    for block in _BLOCKS:
        if group % block == 0:
            return block
    raise TargetError(
        f"{name}: groups of {group} values are no multiple of 16, and ONNX Runtime takes blocks of 16, 32, 64, 128 or "
        "256; use another group size, or keep the linear in 16bit"
    )
