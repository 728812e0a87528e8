"""How `quantization_config` says what a linear is: the arguments of its weight and of its input, and the format.

    int-quantized    8-bit codes with quantized inputs, one code a byte
    pack-quantized   any other codes of the uniform grid, packed into 32-bit words
    grid-quantized   codes of the other grids, packed into bytes; ours alone
    float-quantized, nvfp4-pack-quantized, and mx…   floats of 8 to 4 bits, which are read, not written
A checkpoint with several of them is "mixed-precision", and its groups say which.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from bitwright.errors import CheckpointError, NumericsError, brief
from bitwright.numerics.spec import QuantSpec

Format = Literal["int-quantized", "pack-quantized", "grid-quantized"]
WIDER = (5, 6, 7)  # bits of codes that are held in 8, without a change of any number
FloatFormat = Literal[
    "float-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized"
]
MIXED = "mixed-precision"
# By size and bits of the floats.
_FLOATS: dict[tuple[int, int | None], FloatFormat] = {
    (4, 16): "nvfp4-pack-quantized",
    (4, 32): "mxfp4-pack-quantized",
    (6, 32): "mxfp6-pack-quantized",
    (8, 32): "mxfp8-quantized",
    (8, None): "float-quantized",
}


def format_of(weight: QuantSpec, input_spec: QuantSpec | None) -> Format:
    """The format in which a linear of this scheme is written."""
    if weight.grid != "uniform":
        return "grid-quantized"
    return "int-quantized" if weight.bits == 8 and input_spec is not None else "pack-quantized"


def weight_args(name: str, spec: QuantSpec) -> dict[str, Any]:
    """The "weights" of a config group.

    Raises:
        CheckpointError: a scheme that the vocabulary cannot say.
    """
    if spec.dynamic:
        raise CheckpointError(f"{name}: {spec} cannot be dynamic, because a weight's scale is stored")
    args: dict[str, Any] = {"num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric}
    if spec.group_size is None:
        args["strategy"] = "tensor" if spec.per_tensor else "channel"
    else:
        args |= {"strategy": "group", "group_size": spec.group_size}
    return args | {"dynamic": False} | ({} if spec.grid == "uniform" else {"grid": spec.grid})


def input_args(name: str, spec: QuantSpec | None) -> dict[str, Any] | None:
    """The "input_activations" of a config group.

    Raises:
        CheckpointError: a scheme that the vocabulary cannot say.
    """
    if spec is None:
        return None
    if spec.bits != 8 or spec.group_size is not None or (not spec.dynamic and not spec.per_tensor):
        raise CheckpointError(
            f"{name}: inputs with {spec} cannot be stored; they must be 8-bit, dynamic per token or per tensor, or "
            "static per tensor"
        )
    strategy = "tensor" if spec.per_tensor else "token"
    return {
        "num_bits": 8,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": strategy,
        "dynamic": spec.dynamic,
    }


def parse_float(args: Mapping[str, Any], where: str) -> tuple[FloatFormat, tuple[int, int] | None]:
    """The format of a group whose "weights" are floats, and the sides of the blocks that share a scale, if they do.

    Raises:
        CheckpointError: keys of the wrong type, or a scheme that this release lacks.
    """
    bits, size, strategy = args.get("num_bits", 8), args.get("group_size"), args.get("strategy")
    known = (
        _FLOATS.get((bits, None if strategy in ("tensor", "channel", "block") else size)) if _ints(bits, size) else None
    )
    if known is None or args.get("symmetric", True) is not True:
        raise CheckpointError(
            f"{where}: {bits!s:.80}-bit floats per {strategy!s:.80}, group_size {brief(size)}; this release reads FP8 "
            "per tensor, channel or block, NVFP4 in groups of 16 and MXFP4, MXFP6 and MXFP8 in groups of 32, symmetric"
        )
    blocks = args.get("block_structure") if strategy == "block" else None
    if strategy == "block" and not (
        isinstance(blocks, list) and len(blocks) == 2 and all(type(side) is int and side > 0 for side in blocks)
    ):
        raise CheckpointError(f"{where}: block_structure must be two sizes such as [128, 128], but is {brief(blocks)}")
    return known, None if blocks is None else (blocks[0], blocks[1])


def _ints(*values: object) -> bool:
    return all(value is None or type(value) is int for value in values)


def parse_weight(args: Any, where: str) -> QuantSpec:
    """The spec that "weights" of a config group say; absent keys have compressed-tensors' defaults.

    Raises:
        CheckpointError: keys of the wrong type, or a scheme that this release lacks.
    """
    args = _checked(args, where, ("channel", "tensor", "group"))
    if args["dynamic"]:
        raise CheckpointError(f"{where}: weights cannot be dynamic in a checkpoint")
    try:
        return QuantSpec(
            bits=8 if args["num_bits"] in WIDER else args["num_bits"],
            symmetric=args["symmetric"],
            group_size=args["group_size"],
            per_tensor=args["strategy"] == "tensor",
            grid=args.get("grid", "uniform"),
        )
    except (NumericsError, TypeError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def parse_input(args: Any, where: str) -> QuantSpec | None:
    """The spec that "input_activations" of a config group say: None for float inputs.

    Raises:
        CheckpointError: keys of the wrong type, or a scheme that this release lacks.
    """
    if args is None:
        return None
    args = _checked(args, where, ("token", "tensor"))
    if args["num_bits"] != 8 or "grid" in args:
        raise CheckpointError(
            f"{where}: the inputs have {args['num_bits']} bits, but this release reads only 8-bit integers"
        )
    if args["strategy"] == "token" and not args["dynamic"]:
        raise CheckpointError(f"{where}: static scales per token cannot be stored")
    return QuantSpec(symmetric=args["symmetric"], per_tensor=args["strategy"] == "tensor", dynamic=args["dynamic"])


def parse_format(value: Any, where: str) -> Format:
    """The format of a group.

    Raises:
        CheckpointError: none that this release reads.
    """
    for known in get_args(Format):
        if value == known:
            return known  # type: ignore[no-any-return]  # get_args gives the literal's own members
    raise CheckpointError(f"{where}: the format {value!r} is unknown; this release reads {', '.join(get_args(Format))}")


def _checked(args: Any, where: str, strategies: tuple[str, ...]) -> dict[str, Any]:
    """`args` with every key that decides, of the right type."""
    if not isinstance(args, dict):
        raise CheckpointError(f"{where}: expected an object, got {str(args)[:80]!r}")
    bits, kind, size = args.get("num_bits", 8), args.get("type", "int"), args.get("group_size")
    symmetric, dynamic = args.get("symmetric", True), args.get("dynamic", False)
    size = None if size == -1 else size
    inferred = "channel" if args.get("group_size") == -1 else "tensor" if size is None else "group"
    strategy = args.get("strategy") or inferred
    if kind != "int" or strategy not in strategies or type(bits) is not int or (size is None) == (strategy == "group"):
        raise CheckpointError(
            f"{where}: {bits!s:.80}-bit {kind!s:.80} per {strategy!s:.80}, group_size "
            f"{brief(args.get('group_size'))}; this release reads integers per {' or per '.join(strategies)}"
        )
    if not isinstance(symmetric, bool) or not isinstance(dynamic, bool):
        raise CheckpointError(f"{where}: symmetric = {symmetric!r}, dynamic = {dynamic!r}; both must be true or false")
    if size is not None and type(size) is not int:
        raise CheckpointError(f"{where}: group_size = {size!r}, but it must be a number")
    return args | {
        "num_bits": bits,
        "symmetric": symmetric,
        "dynamic": dynamic,
        "strategy": strategy,
        "group_size": size,
    }
