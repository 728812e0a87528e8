"""What is done to operators once all of a program are known."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bitwright.engine.program import Buffer, Op

_STATIC = 2  # mode of a grid


def fuse_codes(
    ops: Sequence[Op], buffers: Sequence[Buffer], output: Buffer
) -> tuple[tuple[Op, ...], tuple[Buffer, ...], Buffer]:
    """An int8 linear of which nothing but its codes on a static grid is read writes those itself.

    Codes on a dynamic grid need a whole row first. Codes cannot tell of a NaN: a bf16 linear writes none, for its input
    has no scale that would, and neither does a linear with a bias that is not finite.

    Args:
        output: what the program returns; it stays as it is.

    Returns:
        The operators, their buffers numbered anew, and the output among them.
    """
    users: dict[int, list[Op]] = defaultdict(list)
    for op in ops:
        for buffer in {buffer for buffer in (*op.reads, *op.writes) if buffer is not None}:
            users[buffer.index].append(op)
    gone: list[Op | Buffer] = []
    for op in ops:
        source = op.reads[0] if op.kind == "quantize" else None
        if source is None or source is output or op.settings["grid"].mode != _STATIC:
            continue
        maker, *others = (user for user in users[source.index] if user is not op)
        bias = maker.weights.get("bias")
        if not others and "colsum" in maker.weights and bias is not None and np.isfinite(bias).all():
            maker.writes, maker.settings["grid"] = op.writes, op.settings["grid"]
            gone += [op, source]
    kept = tuple(op for op in ops if op not in gone)
    new = {buffer: replace(buffer, index=i) for i, buffer in enumerate(b for b in buffers if b not in gone)}
    for op in kept:
        op.reads, op.writes = (tuple(b and new[b] for b in side) for side in (op.reads, op.writes))
    return kept, tuple(new.values()), new[output]
