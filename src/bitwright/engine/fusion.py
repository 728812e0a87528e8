"""Fuses operators once all operators of a program are known."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitwright.engine.ops import MultiplyW8A8, Op, Quantize
from bitwright.engine.ops.buffers import Buffer, moved, reads, writes


def fuse_codes(
    ops: Sequence[Op], buffers: Sequence[Buffer], output: Buffer
) -> tuple[tuple[Op, ...], tuple[Buffer, ...], Buffer]:
    """Let an int8 linear write codes directly if only its codes on a static grid are read.

    Codes on a dynamic grid need a whole row first. Codes cannot tell of a NaN: a bf16 linear writes none, for its input
    has no scale that would, and neither does a linear with a bias that is not finite.

    Args:
        output: what the program returns; it stays as it is.

    Returns:
        The operators, their buffers numbered anew, and the output among them.
    """
    users: dict[Buffer, list[Op]] = defaultdict(list)
    for op in ops:
        for buffer in {*reads(op), *writes(op)}:
            users[buffer].append(op)
    instead: dict[Op, Op | None] = {}  # of operators that change or, None, go
    gone: set[Buffer] = set()
    for op in ops:
        if not isinstance(op, Quantize) or op.source == output or op.grid is None or op.grid.mode != "static":
            continue
        maker, *others = (user for user in users[op.source] if user is not op)
        if not others and isinstance(maker, MultiplyW8A8) and np.isfinite(maker.weight.bias).all():
            instead[maker] = replace(maker, out=op.out, grid=op.grid, transform=op.transform)
            instead[op] = None
            gone.add(op.source)
    kept = [left for op in ops if (left := instead.get(op, op)) is not None]
    new = {buffer: buffer._replace(number=i) for i, buffer in enumerate(b for b in buffers if b not in gone)}
    return tuple(moved(op, new) for op in kept), tuple(new.values()), new[output]
