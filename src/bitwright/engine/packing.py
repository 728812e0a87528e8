"""Weights as the kernels hold them (`kernels/layouts.py`), in memory that they can read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from bitwright.engine.linears import Inputs, Linear, Operator, group_of, input_group, levels, operator_of
from bitwright.engine.memory import Memory, copied
from bitwright.engine.ops.multiply import Packed, PackedBf16, PackedW4A8, PackedW8A8, PackedWna16
from bitwright.kernels import layouts
from bitwright.kernels.processors import default_threads
from bitwright.numerics.arrays import Bf16, narrow
from bitwright.numerics.bits import check_fit
from bitwright.numerics.levels import whole_levels
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor

_VALUES_AT_ONCE = 1 << 20  # of a weight: they stay in cache
Convert = Callable[[Linear], Linear]


def pack(linears: Sequence[Linear], memory: Memory, inputs: Inputs = "bf16", convert: Convert | None = None) -> Packed:
    """What the operator of linears that join takes of them, side by side.

    inputs: as in `operator_of`. convert: makes of some rows of a linear those that are packed; by default themselves.
    It may run on several threads, and never gets all rows of a large linear at once.

    Raises:
        NumericsError: codes or zero points that do not fit into the bits that the operator has for them.
    """
    made = convert or _as_it_is
    operator = operator_of(made(linears[0].rows(0, min(layouts.BLOCK, linears[0].shape[0]))), inputs)
    if operator == "linear_w4a8":
        return _pack_w4a8(linears, memory, made)
    return _PACK[operator]([made(linear) for linear in linears] if convert else linears, memory)


def _as_it_is(linear: Linear) -> Linear:
    return linear


def _pack_w8a8(linears: Sequence[Linear], memory: Memory) -> PackedW8A8:
    codes_NK = _codes(linears)
    return PackedW8A8(
        codes=layouts.pack(codes_NK, memory.copy),
        colsum=_columns(codes_NK.sum(axis=1, dtype=np.int32), memory),
        scale=_columns(_scales(linears)[:, 0], memory),
        bias=_bias(linears, memory),
    )


def _pack_bf16(linears: Sequence[Linear], memory: Memory) -> PackedBf16:
    weight_NK = _joined([_in_bf16(linear).bits for linear in linears])
    return PackedBf16(values=layouts.pack_bf16(weight_NK, memory.copy), bias=_bias(linears, memory))


def _pack_wna16(linears: Sequence[Linear], memory: Memory) -> PackedWna16:
    """Codes of less than 8 bits are held in 4, each as the index of its level."""
    codes_NK, first, given = _codes(linears), linears[0], levels(linears[0])
    zero = _zero_points(linears)
    assert isinstance(first, QuantizedLinear)
    if first.weight.spec.bits == 8:
        weight, held = layouts.pack(codes_NK, memory.copy), None
    elif given is None:
        held = memory.copy(np.arange(-8, 8, dtype=np.float32))
        weight = layouts.pack_int4((codes_NK + np.int8(8)).view(np.uint8), memory.copy)
    else:
        held = memory.copy(np.pad(given, (0, 16 - len(given))))
        weight = layouts.pack_int4(codes_NK.view(np.uint8), memory.copy)
    return PackedWna16(
        codes=weight,
        levels=held,
        scale=memory.copy(layouts.pack_groups(_scales(linears))),
        zero=None if zero is None else memory.copy(layouts.pack_groups(zero)),
        bias=_bias(linears, memory),
        group=group_of(first),
    )


def _pack_w4a8(linears: Sequence[Linear], memory: Memory, convert: Convert) -> PackedW4A8:
    """Codes are held from 0 on, in their own bits where groups allow it; scales in bf16 where that is exact."""
    first = convert(linears[0].rows(0, min(layouts.BLOCK, linears[0].shape[0])))
    assert isinstance(first, QuantizedLinear)
    group = input_group(first)
    held = _held(first, group)
    lowest = np.int8(-(1 << held.bits - 1))

    def pack_codes(codes_NK: np.ndarray, copy: layouts.Copy) -> np.ndarray:
        found: np.ndarray = (codes_NK if held.table is None else held.table[codes_NK]).view(np.uint8)
        if held.levels is None:
            found = found - lowest.view(np.uint8)  # wraps, as it must
        return layouts.pack_wna8(found, held.bits, copy)

    codes, parts = _by_rows(linears, convert, pack_codes, memory)
    scale_NG, zero_NG, minimum_NG = (
        _stacked([(part.rows, part.of_groups[i]) for part in parts]) for i in range(len(parts[0].of_groups))
    )
    floats = [x.astype(np.float32, copy=False) for x in (scale_NG, minimum_NG) if x is not None]
    if held.step != 1.0:
        floats[0] = floats[0] * np.float32(held.step)
    scale, *minima = map(memory.copy, layouts.pack_scales(*floats))
    if zero_NG is not None:
        check_fit(zero_NG, int(lowest), int(lowest) + layouts.MAX_ZERO_WNA8, "the kernels", "zero points")
    return PackedW4A8(
        codes=codes,
        bits=held.bits,
        levels=None if held.levels is None else memory.copy(held.levels),
        scale=scale,
        zero=None if zero_NG is None else memory.copy(layouts.pack_groups((zero_NG - lowest).view(np.uint8))),
        minimum=minima[0] if minima else None,
        bias=_bias(linears, memory),
        group=group,
        per=group_of(first) // group,
    )


class _Held(NamedTuple):
    """In how many bits codes are held. levels: that they are indices of, whole multiples of step times the scale, int8
    (16,). table: where those are small, they are held themselves; int8, of each code."""

    bits: int
    levels: np.ndarray | None = None
    step: float = 1.0
    table: np.ndarray | None = None


def _held(linear: QuantizedLinear, group: int) -> _Held:
    """Where codes are indices of levels that are small whole numbers, those are the codes. Binary ones stay indices if
    they are held in 1 bit, which the operator takes for −1 or 1."""
    given = levels(linear)
    if given is None:
        return _Held(layouts.bits_wna8(linear.weight.spec.bits, group))
    whole, step = whole_levels(given.tolist())
    table = np.array(whole, np.int8)
    if whole == (-1, 1) and layouts.bits_wna8(1, group) == 1:
        return _Held(1, step=step, table=np.array([-1, 0], np.int8))
    for bits in (2, 3, 4):
        if -(1 << bits - 1) <= min(whole) and max(whole) < 1 << bits - 1:
            return _Held(layouts.bits_wna8(bits, group), step=step, table=table)
    return _Held(4, np.pad(table, (0, 16 - len(table))), step)


class _Part(NamedTuple):
    """What is kept of rows whose codes are packed. of_groups: scales, zero points, minima, or None in their places."""

    rows: int
    of_groups: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def _by_rows(
    linears: Sequence[Linear], convert: Convert, pack_codes: Callable[[np.ndarray, layouts.Copy], np.ndarray],
    memory: Memory,
) -> tuple[np.ndarray, list[_Part]]:  # fmt: skip
    """The packed codes of linears side by side, and the rest of them. Some rows at a time are made, so that they stay
    in cache, and are packed in their place, on as many threads as there are."""
    pieces = _pieces(linears)
    blocks = [-(-sum(end - begin for _, begin, end in piece) // layouts.BLOCK) for piece in pieces]
    room = np.empty(0, np.uint8)

    def packed(number: int) -> tuple[np.ndarray, list[_Part]]:
        made = [convert(linear.rows(begin, end)) for linear, begin, end in pieces[number]]

        def copy(values: np.ndarray) -> np.ndarray:
            nonlocal room
            size = values.nbytes // blocks[number]  # of a block
            if not number:
                room = memory.room(size * sum(blocks))
            return copied(values, room[size * sum(blocks[:number]) :][: values.nbytes])

        weights = [linear.weight for linear in made if isinstance(linear, QuantizedLinear)]
        parts = [_Part(x.shape[0], (x.scale_NG, x.zero_point_NG, x.minimum_NG)) for x in weights]
        return pack_codes(_joined([weight.codes_NK for weight in weights]), copy), parts

    first, kept = packed(0)  # which makes the room
    if len(pieces) > 1:
        with ThreadPoolExecutor(default_threads()) as threads:
            for _, parts in threads.map(packed, range(1, len(pieces))):
                kept += parts
    return room.view(first.dtype).reshape(sum(blocks), *first.shape[1:]), kept


def _pieces(linears: Sequence[Linear]) -> list[list[tuple[Linear, int, int]]]:
    """Rows that are packed at a time: of a linear, whole blocks of them; or all, where a linear ends inside a block."""
    whole = [(linear, 0, linear.shape[0]) for linear in linears]
    if any(rows % layouts.BLOCK for _, _, rows in whole[:-1]):
        return [whole]
    step = max(1, _VALUES_AT_ONCE // (linears[0].shape[1] * layouts.BLOCK)) * layouts.BLOCK
    return [
        [(linear, begin, min(begin + step, rows))] for linear, _, rows in whole for begin in range(0, rows, step)
    ]  # fmt: skip


_PACK: dict[Operator, Callable[[Sequence[Linear], Memory], Packed]] = {
    "linear_w8a8": _pack_w8a8, "linear_bf16": _pack_bf16, "linear_wna16": _pack_wna16,
}  # fmt: skip


def pack_heads(table_PN: np.ndarray, heads: int, memory: Memory) -> np.ndarray:
    """A packed bf16 weight for each head, of its part of the columns of a float32 table: (heads, …)."""
    parts = np.split(table_PN, heads, axis=1)
    return memory.copy(np.stack([layouts.pack_bf16(narrow(part_PD).bits) for part_PD in parts]))


def _codes(linears: Sequence[Linear]) -> np.ndarray:
    return _joined([x.weight.codes_NK for x in linears if isinstance(x, QuantizedLinear)])


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of all parts; of one part, that itself."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _scales(linears: Sequence[Linear]) -> np.ndarray:
    scale_NG = _of_groups(linears, lambda weight: weight.scale_NG)
    assert scale_NG is not None
    return scale_NG


def _zero_points(linears: Sequence[Linear]) -> np.ndarray | None:
    return _of_groups(linears, lambda weight: weight.zero_point_NG)


def _of_groups(linears: Sequence[Linear], values: Callable[[QTensor], np.ndarray | None]) -> np.ndarray | None:
    """(N, G), also where a tensor has one such value; None if the linears have none."""
    weights = [x.weight for x in linears if isinstance(x, QuantizedLinear)]
    return _stacked([(weight.shape[0], values(weight)) for weight in weights])


def _stacked(parts: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    """(N, G) of parts with so many rows, also where a part has one value for all."""
    given = [np.broadcast_to(x, (rows, x.shape[1])) for rows, x in parts if x is not None]
    return np.concatenate(given) if given else None


def _in_bf16(linear: Linear) -> Bf16:
    """The weight in bf16; of codes whose groups no operator takes, what they stand for."""
    weight_NK = linear.weight_NK if isinstance(linear, FloatLinear) else linear.weight.dequantize()
    return weight_NK if isinstance(weight_NK, Bf16) else narrow(weight_NK)


def _bias(linears: Sequence[Linear], memory: Memory) -> np.ndarray:
    zeros = [np.zeros(linear.shape[0], np.float32) for linear in linears]
    return _columns(
        np.concatenate([z if x.bias_N is None else x.bias_N for x, z in zip(linears, zeros, strict=True)]), memory
    )


def _columns(values_N: np.ndarray, memory: Memory) -> np.ndarray:
    padded = np.zeros(len(values_N) + -len(values_N) % layouts.BLOCK, values_N.dtype)
    padded[: len(values_N)] = values_N
    return memory.copy(padded)
