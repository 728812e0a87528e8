"""Quantization operators in `torch.ops.bitwright` under the names and with the arguments that vLLM's kernels have, for
programs that call those.

Packing a weight takes longer than multiplying by it. So a weight is packed when it is first seen, and the packed copy
is kept as long as the tensor lives and nobody writes to it. Who owns the weights should pack them once and call
`linear_*` (`torch_ops`), as the plug-in for vLLM does.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from bitwright.errors import KernelError
from bitwright.kernels import layouts, reference, torch_ops
from bitwright.kernels.dispatch import chosen
from bitwright.kernels.native import load
from bitwright.numerics.bits import unpack_words
from bitwright.numerics.spec import QuantSpec

_AWQ_ORDER = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # where column i of eight lies in a word of AutoAWQ's
_WORTH_THREADS = 1 << 24  # multiply-adds that take longer than starting threads
_EIGHT = torch.arange(0, 32, 4, dtype=torch.int32)


class _Kept(NamedTuple):
    """A packed weight. of: the tensors that it was made from, each by address and number of writes."""

    of: list[tuple[int, int]]
    packed: list[Tensor | None]


_kept: Any = WeakIdKeyDictionary()  # Tensor -> _Kept


def _packed(pack: Callable[[], list[Tensor | None]], weight: Tensor, *more: Tensor | None) -> list[Tensor | None]:
    """What `pack` makes of these tensors; it is kept as long as the first one lives."""
    of = [(tensor.data_ptr(), tensor._version) for tensor in (weight, *more) if tensor is not None]
    kept: _Kept | None = _kept.get(weight)
    if kept is None or kept.of != of:
        kept = _kept[weight] = _Kept(of, pack())
    return kept.packed


@torch.library.custom_op("bitwright::scaled_int8_quant", mutates_args=(), device_types="cpu")
def scaled_int8_quant(
    x: Tensor, scale: Tensor | None = None, azp: Tensor | None = None, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., K) float -> int8 codes of the same shape, scale float32, zero point int32 (no values where symmetric).

    With a scale (and, if not symmetric, its zero point, azp) the grid is static: codes = round(x / scale) + azp, and
    both are returned as they came. Else each row has its own: max|x| / 127, or (max − min) / 255, as
    `reference.quantize_rows` says; then scale and azp are (M, 1). x ≈ (codes − azp) · scale.
    """
    none = torch.empty(0, dtype=torch.int32)
    rows = x.reshape(-1, x.shape[-1]).float()
    if scale is not None:
        if symmetric != (azp is None):
            raise KernelError("a static scale has a zero point exactly where the grid is not symmetric")
        zero = none if azp is None else azp.clone()
        codes = (rows / scale).round() + (0 if azp is None else azp)
        return codes.clamp(-128, 127).to(torch.int8).view(x.shape), scale.clone(), zero
    made, scale_M1, zero_M1 = reference.quantize_rows(rows, QuantSpec(bits=8, dynamic=True, symmetric=symmetric))
    return made.view(x.shape), scale_M1, none if symmetric else zero_M1.int()


@scaled_int8_quant.register_fake
def _(
    x: Tensor, scale: Tensor | None = None, azp: Tensor | None = None, symmetric: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    m = x.numel() // x.shape[-1]
    zero = x.new_empty(0 if symmetric else (m, 1), dtype=torch.int32)
    made = x.new_empty((m, 1), dtype=torch.float32) if scale is None else torch.empty_like(scale)
    return torch.empty_like(x, dtype=torch.int8), made, zero if azp is None else torch.empty_like(azp)


@torch.library.custom_op("bitwright::scaled_mm", mutates_args=(), device_types="cpu")
def scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """(a · scale_a) @ (b · scale_b) + bias: a int8 (M, K), b int8 (K, N), scales of one value or one for each row of a
    and each column of b. Sums are exact in int32.
    """
    return _scaled_mm(a, b, scale_a, scale_b, out_dtype, None, bias)


@torch.library.custom_op("bitwright::scaled_mm_azp", mutates_args=(), device_types="cpu")
def scaled_mm_azp(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype, azp_adj: Tensor,
    azp: Tensor | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The same of codes of a that have zero points. azp int32, (M, 1) or one value, is taken off each row, with azp_adj
    int32 (N) the sums of b's columns; without azp, azp_adj is already their product with the one zero point.
    """
    y = _scaled_mm(a, b, scale_a, scale_b, torch.float32, azp, None)
    if azp is None:
        y = y - azp_adj.float().view(1, -1) * scale_a.view(-1, 1) * scale_b.view(1, -1)
    return (y if bias is None else y + bias).to(out_dtype)


@scaled_mm.register_fake
@scaled_mm_azp.register_fake
def _(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype, *more: Tensor | None) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)


def _scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype, azp: Tensor | None,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    (m, k), n = a.shape, b.shape[1]
    if b.shape[0] != k or a.dtype != torch.int8 or b.dtype != torch.int8:
        raise KernelError(f"int8 (M, K) and (K, N), got {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    if k > layouts.MAX_K:
        raise KernelError(f"K = {k}: int8 sums are exact in int32 only for K up to {layouts.MAX_K}")

    def pack() -> list[Tensor | None]:
        b_NK = b.T.contiguous()
        return [layouts.pack(b_NK), layouts.column_sums(b_NK)]

    weight, colsum = _packed(pack, b)
    assert weight is not None
    assert colsum is not None
    module, k_padded = load(), -(-k // layouts.PAD_K) * layouts.PAD_K
    codes = torch.zeros(m + -m % layouts.BLOCK, k_padded, dtype=torch.uint8)
    codes[:m, :k] = a.view(torch.uint8) ^ 128  # + 128
    scale_m, scale_n = scale_a.float().reshape(-1).expand(m).contiguous(), scale_b.float().reshape(-1).expand(n)
    zero_m = torch.zeros(m, dtype=torch.int32) if azp is None else azp.int().reshape(-1).expand(m).contiguous()
    columns, shift = layouts.pad_columns(scale_n), torch.zeros(n, dtype=torch.float32) if bias is None else bias.float()
    padded, y = layouts.pad_columns(shift), torch.empty(m, n, dtype=torch.float32)
    variant = chosen("linear_w8a8")
    assert variant is not None
    op = module.LinearW8A8(
        codes=codes.data_ptr(), code_stride=k_padded, scale_m=scale_m.data_ptr(), zero_m=zero_m.data_ptr(),
        weight=weight.data_ptr(), colsum=colsum.data_ptr(), scale_n=columns.data_ptr(), bias=padded.data_ptr(),
        y=y.data_ptr(), out_stride=n, n=n, k_padded=k_padded, activation=module.Activation.none,
        output=module.Output.f32, grid=None,
    )  # fmt: skip
    blocks = -(-n // layouts.BLOCK)
    threads = min(torch.get_num_threads(), blocks) if m * n * k > _WORTH_THREADS else 1
    cuts = [blocks * i // threads for i in range(threads + 1)]
    if m and threads == 1:
        module.linear_w8a8(variant, op, 0, m, 0, blocks)
    elif m:
        with ThreadPoolExecutor(threads) as pool:  # the operator lets go of the GIL
            list(pool.map(lambda i: module.linear_w8a8(variant, op, 0, m, cuts[i], cuts[i + 1]), range(threads)))
    return y.to(out_dtype)


@torch.library.custom_op("bitwright::awq_dequantize", mutates_args=(), device_types="cpu")
def awq_dequantize(
    qweight: Tensor, scales: Tensor, zeros: Tensor, split_k_iters: int = 0, thx: int = 0, thy: int = 0
) -> Tensor:
    """AutoAWQ's words int32 (K, N/8), zeros (G, N/8), scales (G, N) -> (K, N) of the scales' dtype. The last three
    arguments are a GPU's, and ignored.
    """
    codes_KN, zeros_GN = _awq_codes(qweight), _awq_codes(zeros)
    group = codes_KN.shape[0] // scales.shape[0]
    weight = (codes_KN.float() - zeros_GN.float().repeat_interleave(group, 0)) * scales.float().repeat_interleave(
        group, 0
    )
    return weight.to(scales.dtype)


@awq_dequantize.register_fake
def _(qweight: Tensor, scales: Tensor, *more: object) -> Tensor:
    return scales.new_empty((qweight.shape[0], scales.shape[1]))


@torch.library.custom_op("bitwright::awq_gemm", mutates_args=(), device_types="cpu")
def awq_gemm(x: Tensor, qweight: Tensor, scales: Tensor, qzeros: Tensor, split_k_iters: int = 0) -> Tensor:
    """x (M, K) @ `awq_dequantize` of the rest: (M, N) of x's dtype."""

    def pack() -> list[Tensor | None]:
        return _grouped(_awq_codes(qweight).T, 4, scales.T, _awq_codes(qzeros).T)

    return _multiply(x, _packed(pack, qweight, scales, qzeros), scales.shape[1], 4, qweight.shape[0] // scales.shape[0])


@awq_gemm.register_fake
def _(x: Tensor, qweight: Tensor, scales: Tensor, *more: object) -> Tensor:
    return x.new_empty((x.shape[0], scales.shape[1]))


@torch.library.custom_op("bitwright::gptq_shuffle", mutates_args=("q_weight",), device_types="cpu")
def gptq_shuffle(q_weight: Tensor, q_perm: Tensor, bit: int) -> None:
    """Bring the rows of GPTQ's words, int32 (K · bit / 32, N), into the order q_perm, int (K), in place; nothing if
    that is empty. `gptq_gemm` then takes q_perm as g_idx.
    """
    if q_perm.numel():
        k = q_weight.shape[0] * 32 // bit
        codes_KN = _fields(q_weight, bit, k)[q_perm.long()]
        shifts = torch.arange(0, 32, bit, dtype=torch.int32)[:, None]
        q_weight.copy_((codes_KN.int().view(-1, 32 // bit, q_weight.shape[1]) << shifts).sum(1, dtype=torch.int32))


@torch.library.custom_op("bitwright::gptq_gemm", mutates_args=(), device_types="cpu")
def gptq_gemm(
    a: Tensor, b_q_weight: Tensor, b_gptq_qzeros: Tensor, b_gptq_scales: Tensor, b_g_idx: Tensor, use_exllama: bool,
    use_v2_format: bool, bit: int,
) -> Tensor:  # fmt: skip
    """a (M, K) @ GPTQ's weight: (M, N) of a's dtype.

    Args:
        b_q_weight: int32 (K · bit / 32, N). b_gptq_qzeros: int32 (G, N · bit / 32), less one unless use_v2_format.
        b_gptq_scales: (G, N). b_g_idx: none, or, with use_exllama, the order in which `gptq_shuffle` brought the rows;
            without it the group of each row.
        bit: 4, or 8 by unpacking the weight.
    """
    k, (groups, n) = a.shape[1], b_gptq_scales.shape

    def pack() -> list[Tensor | None]:
        codes_KN = _fields(b_q_weight, bit, k)
        if b_g_idx.numel() and not use_exllama:
            codes_KN = codes_KN[b_g_idx.long().argsort(stable=True)]
        zeros_GN = _fields(b_gptq_qzeros.T.contiguous(), bit, n).T + (0 if use_v2_format else 1)
        if bit == 4:
            return _grouped(codes_KN.T, 4, b_gptq_scales.T, zeros_GN.T)
        spread = k // groups
        steps_KN = codes_KN.float() - zeros_GN.float().repeat_interleave(spread, 0)
        return [(steps_KN * b_gptq_scales.float().repeat_interleave(spread, 0)).T.contiguous()]

    if b_g_idx.numel():
        order = b_g_idx.long() if use_exllama else b_g_idx.long().argsort(stable=True)
        a = a[:, order]
    packed = _packed(pack, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx)
    if bit == 4:
        return _multiply(a, packed, n, 4, k // groups)
    assert packed[0] is not None
    return torch.nn.functional.linear(a, packed[0].to(a.dtype))


@gptq_gemm.register_fake
def _(a: Tensor, b_q_weight: Tensor, *more: object) -> Tensor:
    return a.new_empty((a.shape[0], b_q_weight.shape[1]))


@torch.library.custom_op("bitwright::wna16_gemm", mutates_args=(), device_types="cpu")
def wna16_gemm(x: Tensor, weight_packed: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """x (M, K) @ compressed-tensors' pack-quantized weight: int32 (N, K · bits / 32), scale (N, G), zero_point int32
    (N · bits / 32, G) or None; bits = 2, 3 or 4. (M, N) of x's dtype.
    """
    (n, groups), k = scale.shape, x.shape[1]

    def pack() -> list[Tensor | None]:
        middle = 1 << bits - 1
        codes_NK = unpack_words(weight_packed, bits, k) + middle
        zero_NG = None if zero_point is None else unpack_words(zero_point, bits, n, dim=0) + middle
        return _grouped(codes_NK, bits, scale, zero_NG)

    return _multiply(x, _packed(pack, weight_packed, scale, zero_point), n, bits, k // groups)


@wna16_gemm.register_fake
def _(x: Tensor, weight_packed: Tensor, *more: object) -> Tensor:
    return x.new_empty((x.shape[0], weight_packed.shape[0]))


def _fields(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes from 0 on, of words along the first axis: uint8 (count, N)."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)[None, :, None]
    codes = (words[:, None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(0, 1)[:count].to(torch.uint8)


def _awq_codes(words: Tensor) -> Tensor:
    """AutoAWQ's words (R, N/8) -> uint8 (R, N)."""
    fields = (words[..., None] >> _EIGHT) & 15
    return fields[..., _AWQ_ORDER].flatten(1).to(torch.uint8)


def _grouped(codes_NK: Tensor, bits: int, scale_NG: Tensor, zero_NG: Tensor | None) -> list[Tensor | None]:
    """What `linear_wna16` takes of codes from 0 on: codes, scale, zero, minimum, levels."""
    group = codes_NK.shape[1] // scale_NG.shape[1]
    inputs = layouts.input_group_w4a8(group)
    if codes_NK.shape[1] % scale_NG.shape[1] or inputs is None:
        raise KernelError(f"K = {codes_NK.shape[1]} in {scale_NG.shape[1]} groups: a group is a multiple of 8")
    held = layouts.bits_wna8(bits, inputs)
    more = (1 << held - 1) - (1 << bits - 1)  # codes without zero points stand for their distance from the middle
    codes = (codes_NK + (more if zero_NG is None else 0)).to(torch.uint8).contiguous()
    zero = None if zero_NG is None else layouts.pack_groups(zero_NG.to(torch.uint8).contiguous())
    return [layouts.pack_wna8(codes, held), layouts.pack_scales(scale_NG.float().contiguous())[0], zero, None, None]


def _multiply(x: Tensor, packed: list[Tensor | None], n: int, bits: int, group: int) -> Tensor:
    torch_ops.load()
    inputs = layouts.input_group_w4a8(group)
    assert inputs is not None
    rows = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
    bias = layouts.pad_columns(torch.zeros(n, dtype=torch.float32))
    held = layouts.bits_wna8(bits, inputs)
    y: Tensor = torch.ops.bitwright.linear_wna16(rows, *packed, bias, n, held, inputs, group // inputs)
    return y.to(x.dtype)
