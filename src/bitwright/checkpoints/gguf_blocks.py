"""Quantized linears as blocks of a GGUF file: which type holds a weight, and what of it that type cannot hold."""

from typing import NamedTuple

import numpy as np

from bitwright.errors import NumericsError
from bitwright.numerics.arrays import Bf16, narrow
from bitwright.numerics.bits import check_fit
from bitwright.numerics.ggml import TYPES, BlockType
from bitwright.numerics.linear import LinearForm, QuantizedLinear
from bitwright.numerics.qtensor import QTensor

_GROUP = 32


class Blocks(NamedTuple):
    """A weight as a type holds it. raw: uint8 (N, bytes of a row). lost: what is not as it was, in words; "" for
    nothing."""

    type: BlockType
    raw: np.ndarray
    lost: str = ""


def blocks_of(linear: QuantizedLinear) -> Blocks:
    """The weight of a linear that reads inputs as they are, in the type that `type_of` says, or in Q4_0 if its zero
    points are those that Q4_0 has.

    Raises:
        NumericsError: inputs that are shifted, a scale that fp16 does not hold at all, or codes that do not fit.
    """
    weight = linear.weight
    if linear.transform is not None and linear.transform.shift_K is not None:
        raise NumericsError("its inputs are shifted, which a GGUF file has no words for")
    kind = type_of(linear.shape, linear.form)
    if kind == "BF16":
        return _decoded(linear)
    groups = weight.shape[1] // _GROUP
    codes_NGg = weight.codes_NK.reshape(-1, groups, _GROUP)
    scale_NG = _spread(weight.scale_NG, weight).astype(np.float32)
    zero_NG, minimum_NG = (None if x is None else _spread(x, weight) for x in (weight.zero_point_NG, weight.minimum_NG))
    if kind == "Q8_0":
        return _blocks("Q8_0", codes_NGg, scale_NG)
    if minimum_NG is not None:
        minimum_NG = minimum_NG.astype(np.float32)
        return _blocks("Q4_1", codes_NGg - np.int8(weight.spec.code_min), scale_NG, minimum_NG)
    if zero_NG is None or bool(((zero_NG == 0) | (zero_NG == -1)).all()):
        negative_NG = np.zeros(scale_NG.shape, bool) if zero_NG is None else zero_NG == -1
        codes_NGg = np.where(negative_NG[..., None], np.int8(-1) - codes_NGg, codes_NGg)
        return _blocks("Q4_0", codes_NGg + np.int8(8), np.where(negative_NG, -scale_NG, scale_NG))
    low = weight.spec.code_min
    minimum_NG = (np.float32(low) - zero_NG.astype(np.float32)) * scale_NG
    return _blocks("Q4_1", codes_NGg - np.int8(low), scale_NG, minimum_NG)


def table_blocks(codes_VH: np.ndarray, scale_V: np.ndarray) -> Blocks:
    """An int8 table, with a scale for each row."""
    codes_VGg = codes_VH.reshape(len(codes_VH), -1, _GROUP)
    return _blocks("Q8_0", codes_VGg, np.repeat(scale_V[:, None], codes_VGg.shape[1], axis=1))


def type_of(shape: tuple[int, int], form: LinearForm) -> str:
    """The type that holds a linear, whatever its codes are.

    Whole multiples of a scale are Q4_0, or Q8_0 where they have more than 4 bits. Those with minima or zero points are
    Q4_1. Where inputs are transformed, codes are no multiples, or 32 neighbours do not share a scale, it is BF16.
    """
    spec, k = form.weight, shape[1]
    size = spec.group_size or k
    whole = not spec.has_codebook and k % _GROUP == 0 and size % _GROUP == 0 and (spec.bits < 8 or spec.symmetric)
    if form.scales_input or form.shifts_input or not whole:
        return "BF16"
    return "Q8_0" if spec.bits == 8 else "Q4_0" if spec.symmetric else "Q4_1"


def may_lose(shape: tuple[int, int], form: LinearForm) -> str:
    """What a type may not hold of a linear, before its values are known; "" where nothing can be lost."""
    kind, spec = type_of(shape, form), form.weight
    if form.shifts_input:
        return "its inputs are shifted, which a GGUF file has no words for"
    if kind == "BF16":
        return f"no type holds {spec.bits}-bit codes of the {spec.grid} grid with N, K = {list(shape)} in such groups"
    if kind == "Q4_1":
        return "its zero points become minima in fp16, which are rounded"
    if not spec.scale_in_16_bits:
        return "its scales have 32 bits, and the type's have 16"
    return drops(form)


def drops(form: LinearForm) -> str:
    """What a file does not say of a linear beside its codes; "" for nothing."""
    return "" if form.input is None else "how its inputs are rounded is not stored"


def _spread(values_NG: np.ndarray, weight: QTensor) -> np.ndarray:
    """What belongs to groups of any size, to rows or to the tensor, for each group of 32: (N, K / 32)."""
    n, groups = weight.shape[0], weight.shape[1] // _GROUP
    return np.repeat(np.broadcast_to(values_NG, (n, values_NG.shape[1])), groups // values_NG.shape[1], axis=1)


def _blocks(
    name: str, codes_NGg: np.ndarray, scale_NG: np.ndarray, minimum_NG: np.ndarray | None = None
) -> Blocks:  # fmt: skip
    """codes_NGg: as the type stores them, those of 4 bits from 0 on."""
    floats, lost = [], []
    for what, values_NG in (("scales", scale_NG), ("minima", minimum_NG)):
        if values_NG is None:
            continue
        with np.errstate(over="ignore"):
            half_NG = values_NG.astype(np.float16)
        if not np.isfinite(half_NG).all():
            raise NumericsError(f"{what} reach {abs(values_NG).max():g}, which fp16 does not hold")
        moved = abs(half_NG.astype(np.float32) - values_NG)
        if moved.any():
            worst = float((moved / np.maximum(abs(values_NG), np.float32(1e-30))).max())
            lost.append(f"{what} are rounded to fp16, by up to {worst:.1e} of them")
        floats.append(half_NG[..., None].view(np.uint8))
    codes: np.ndarray = codes_NGg.view(np.uint8)
    if name != "Q8_0":
        check_fit(codes, 0, 15, "4 bits")
        codes = codes[..., :16] | codes[..., 16:] << 4
    raw = np.concatenate([*floats, codes], axis=2)
    return Blocks(TYPES[name], raw.reshape(len(raw), -1), "; ".join(lost))


def _decoded(linear: QuantizedLinear) -> Blocks:
    weight_NK, _ = linear.effective()
    held: Bf16 = narrow(weight_NK)
    lost = (
        ""
        if np.array_equal(held.widen(), weight_NK)
        else "no type holds its codes, so it is decoded and rounded to bf16"
    )
    return Blocks(TYPES["BF16"], np.ascontiguousarray(held.bits).view(np.uint8), lost)
