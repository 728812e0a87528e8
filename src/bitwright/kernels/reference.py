"""Every operator in a few lines of torch: the definition that the native kernels equal, bit by bit in the integers.

M tokens · N output features · K input features; in attention T tokens · H heads · D head dimensions · R distances.

One file although long: a reader who checks a kernel finds every definition here.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu as exact_gelu
from torch.nn.functional import layer_norm

from bitwright.errors import KernelError
from bitwright.numerics.levels import whole_levels
from bitwright.numerics.qtensor import QTensor, code_values, levels_of
from bitwright.numerics.spec import QuantSpec

ATTENTION_BLOCK = 64  # keys whose weights share a largest, in `attention_int8` and `attention_cached`
INT4_GROUPS = (32, 64)  # numbers of a key and of a value of an int4 cache that share a scale, at most
CACHE_PART = 1024  # keys that `attention_cached` sums before it merges
CACHE_HOT_BLOCKS = 3  # full blocks before a query's own, that it sees in 8 bits in a cache of 4
_CHUNK = 2**20  # values dequantized at a time: what is computed on the way stays in the cache


def dequantize(
    codes_NK: Tensor,
    scale_NG: Tensor,
    zero_NG: Tensor | None,
    spec: QuantSpec,
    codebook: Tensor | None,
    dtype: torch.dtype,
    minimum_NG: Tensor | None = None,
) -> Tensor:
    """The numbers that a weight's codes stand for, computed in float32, then rounded to `dtype`: (N, K)."""
    n, k = codes_NK.shape
    out_NK = torch.empty(n, k, dtype=dtype, device=codes_NK.device)
    scale_NG1 = scale_NG.expand(n, -1)[..., None]
    zero_NG1, minimum_NG1 = (None if x is None else x.expand(n, -1)[..., None] for x in (zero_NG, minimum_NG))
    rows = max(_CHUNK // k, 1)
    for begin in range(0, n, rows):
        part = slice(begin, begin + rows)
        scale = scale_NG1[part]
        zero, minimum = (None if x is None else x[part] for x in (zero_NG1, minimum_NG1))
        codes = codes_NK[part].view(*scale.shape[:2], -1)
        out_NK[part] = code_values(codes, scale, zero, spec, codebook, minimum).view(-1, k)
    return out_NK


def transform_inputs(x_MK: Tensor, shift_K: Tensor | None, multiplier_K: Tensor | None) -> Tensor:
    """(x − shift) · multiplier, two float32 operations per value; where one is absent, no such operation: (M, K)."""
    x_MK = x_MK.float()
    if shift_K is not None:
        x_MK = x_MK - shift_K
    return x_MK if multiplier_K is None else x_MK * multiplier_K


def quantize_rows(
    x_MK: Tensor,
    spec: QuantSpec,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    shift_K: Tensor | None = None,
    multiplier_K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of float rows on the grid of an input spec: x ≈ (codes − zero_point) · scale.

    With a shift or a multiplier per feature, x stands for `transform_inputs(x, …)`, here and below.

    Dynamic specs take the range of each row, widened to include zero. Asymmetric: scale = (max − min) / (2^b − 1),
    zero_point = clip(rint(code_min − min · inv)). Symmetric: scale = max|x| / half_steps, zero_point = 0. In both
    code = clip(rint(x · inv) + zero_point), with inv = 1 / scale; every step one float32 operation, rint half to even.

    A row of zeros has scale 1; a scale below the smallest normal float is raised to it. A row that holds a NaN or an
    infinity, or whose range overflows, has scale NaN: whatever is computed from it is NaN, never silently wrong.

    Args:
        x_MK: float; computed in float32.
        scale, zero_point: of a static spec, one value each; absent for dynamic ones. zero_point absent means 0.
        shift_K, multiplier_K: float32 (K,).

    Returns:
        codes int8 (M, K), scale float32 (M, 1), zero_point int32 (M, 1).

    Raises:
        KernelError: the spec has groups, or is dynamic and per tensor, or is static and has no scale.
    """
    if spec.group_size is not None or spec.dynamic == spec.per_tensor:
        raise KernelError(f"an input needs a dynamic scale per row or a static one per tensor, got {spec}")
    x = transform_inputs(x_MK, shift_K, multiplier_K)
    finite = x.isfinite().all(dim=1, keepdim=True)
    if spec.dynamic:
        scale_M1, zero_M1 = dynamic_grid(x, spec)
        finite &= scale_M1.isfinite()
    elif scale is None:
        raise KernelError("a static input spec needs a scale")
    else:
        scale_M1 = scale.float().reshape(1, 1).expand(len(x), 1)
        zero_M1 = (torch.zeros_like(scale) if zero_point is None else zero_point).reshape(1, 1).expand(len(x), 1)
    codes_MK = ((x * (1.0 / scale_M1)).round() + zero_M1).clamp(spec.code_min, spec.code_max)
    return (
        codes_MK.where(finite, 0.0).to(torch.int8),
        scale_M1.where(finite, torch.nan),
        zero_M1.where(finite, 0).to(torch.int32),
    )


def dynamic_grid(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row, whole floats (M, 1), as `quantize_rows` has them; x float32 (M, K)."""
    low = x.amin(dim=1, keepdim=True).clamp(max=0.0)
    high = x.amax(dim=1, keepdim=True).clamp(min=0.0)
    if spec.symmetric:
        scale = torch.maximum(-low, high) / spec.half_steps
    else:
        scale = (high - low) / (spec.code_max - spec.code_min)
    scale = scale.where((low != 0.0) | (high != 0.0), 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    if spec.symmetric:
        return scale, torch.zeros_like(scale)
    return scale, (spec.code_min - low * (1.0 / scale)).round().clamp(spec.code_min, spec.code_max)


def gram(x_MK: Tensor) -> Tensor:
    """Σ x xᵀ over the rows, x rounded to bf16, products summed in float32: float32 (K, K)."""
    x_MK = x_MK.bfloat16().float()
    return x_MK.T @ x_MK


def integer_sums(codes_MK: Tensor, zero_M1: Tensor, weight_NK: Tensor) -> Tensor:
    """sum_k (codes[m, k] − zero[m]) · weight[n, k], exactly: int32 (M, N). float64 holds every such sum."""
    return ((codes_MK.double() - zero_M1.double()) @ weight_NK.double().T).to(torch.int32)


def linear_w8a8(
    codes_MK: Tensor,
    scale_M1: Tensor,
    zero_M1: Tensor,
    weight_NK: Tensor,
    scale_N: Tensor,
    bias_N: Tensor | None,
    *,
    gelu: bool = False,
) -> Tensor:
    """y[m, n] = scale_m · scale_n · sum_k (codes[m, k] − zero_m) · weight[n, k] + bias_n, then GELU: float32 (M, N)."""
    y_MN = integer_sums(codes_MK, zero_M1, weight_NK).float() * (scale_M1 * scale_N)
    if bias_N is not None:
        y_MN = y_MN + bias_N
    return exact_gelu(y_MN) if gelu else y_MN


def quantize_groups(
    x_MK: Tensor, group: int, *, by_row: bool = False, shift_K: Tensor | None = None,
    multiplier_K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Codes of float rows, symmetric, with one scale for each `group` values of K: x ≈ codes · scale.

    scale = max|x| / 127, code = rint(x · inv) with inv = 1 / scale; every step one float32 operation, rint half to
    even. A group of zeros has scale 1; a scale below the smallest normal float is raised to it. A group that holds a
    NaN or an infinity has scale NaN and codes 0.

    Args:
        x_MK, shift_K, multiplier_K: as in `quantize_rows`. by_row: whether all groups of a row have its scale.

    Returns:
        codes int8 (M, K), scale float32 (M, G), the sum of each group's codes int32 (M, G).
    """
    x_MGg = transform_inputs(x_MK, shift_K, multiplier_K).reshape(len(x_MK), x_MK.shape[1] // group, group)
    alike = (1, 2) if by_row else (2,)  # axes whose values have one scale
    finite_MG1 = x_MGg.isfinite().all(dim=2, keepdim=True)
    if by_row:
        finite_MG1 = finite_MG1.all(dim=1, keepdim=True).expand(finite_MG1.shape)
    largest = x_MGg.abs().amax(dim=alike, keepdim=True).expand(finite_MG1.shape)
    scale = (largest / 127).where(largest != 0.0, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (x_MGg * (1.0 / scale)).round().where(finite_MG1, 0.0).to(torch.int8)
    sums_MG = codes.sum(dim=2, dtype=torch.int32)
    return codes.flatten(1), scale.where(finite_MG1, torch.nan)[..., 0], sums_MG


def in_whole_levels(weight: QTensor) -> QTensor:
    """A weight of a codebook as `linear_w4a8` multiplies it: codes of 8 bits, which are its `whole_levels`, and scales
    times their step. Any other weight is returned as it is.
    """
    if not weight.spec.has_codebook:
        return weight
    whole, step = whole_levels(levels_of(weight.spec, weight.codebook, like=weight.scale_NG.float()).tolist())
    return replace(
        weight,
        codes_NK=torch.tensor(whole, dtype=torch.int8)[weight.codes_NK.int()],
        scale_NG=weight.scale_NG.float() * torch.tensor(step, dtype=torch.float32),
        spec=QuantSpec(group_size=weight.spec.group_size),
        codebook=None,
    )


def linear_w4a8(
    codes_MK: Tensor,
    scale_MG: Tensor,
    weight_NK: Tensor,
    scale_NG: Tensor,
    zero_NG: Tensor | int,
    bias_N: Tensor | None,
    *,
    minimum_NG: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Σ_g scale_mg · scale_ng · Σ_k codes[m, k] · (weight[n, k] − zero_ng) + bias_n, then GELU: float32 (M, N). With
    minima each group adds scale_mg · minimum_ng · Σ_k codes[m, k].

    The sums over a group's K are exact; over the groups, in their order, it is y = fma(sum, scale_mg · scale_ng, y),
    then the same of the minimum, each step rounded to float32. Here that is a float64 operation rounded once more,
    which is the same but for a tie of those two roundings.

    Args:
        codes_MK, scale_MG: of `quantize_groups`.
        weight_NK: uint8 below 16, or int8, the codes of `in_whole_levels`. zero_NG: of the former likewise, or a number
            for all groups: the middle of the codes if they are symmetric, 0 if there are minima or levels.
        scale_NG, minimum_NG: float32. The weight may have fewer groups than the input, each as large as several of
            those.
    """
    groups = scale_MG.shape[1]
    per = groups // scale_NG.shape[1]
    zero_NG = torch.full_like(scale_NG, zero_NG) if isinstance(zero_NG, int) else zero_NG
    a_MGg, w_NGg = (codes.double().reshape(len(codes), groups, -1) for codes in (codes_MK, weight_NK))
    w_NGg = w_NGg - zero_NG.double().repeat_interleave(per, dim=1)[..., None]
    y_MN = codes_MK.new_zeros(len(codes_MK), len(weight_NK), dtype=torch.float32)
    for g in range(groups):
        sums_MN = a_MGg[:, g] @ w_NGg[:, g].T
        scale_MN = scale_MG[:, g, None] * scale_NG[:, g // per]
        y_MN = (sums_MN * scale_MN.double() + y_MN.double()).float()
        if minimum_NG is not None:
            minimum_MN = scale_MG[:, g, None] * minimum_NG[:, g // per]
            y_MN = (a_MGg[:, g].sum(dim=1, keepdim=True) * minimum_MN.double() + y_MN.double()).float()
    if bias_N is not None:
        y_MN = y_MN + bias_N
    return exact_gelu(y_MN) if gelu else y_MN


def linear_bf16(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, *, gelu: bool = False) -> Tensor:
    """y[m, n] = sum_k x[m, k] · weight[n, k] + bias_n, then GELU: float32 (M, N). x and weight are rounded to bfloat16,
    their products summed in float32.
    """
    y_MN = x_MK.bfloat16().float() @ weight_NK.bfloat16().float().T
    if bias_N is not None:
        y_MN = y_MN + bias_N
    return exact_gelu(y_MN) if gelu else y_MN


def linear_wna16(x_MK: Tensor, weight: QTensor, bias_N: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`linear_bf16` of the numbers that the codes of a weight stand for: float32 (M, N)."""
    w_NK = dequantize(
        weight.codes_NK, weight.scale_NG.float(), weight.zero_point_NG, weight.spec, weight.codebook, torch.bfloat16,
        weight.minimum_NG,
    )  # fmt: skip
    return linear_bf16(x_MK, w_NK, bias_N, gelu=gelu)


def linear_w4a16(
    x_MK: Tensor,
    weight_NK: Tensor,
    scale_NG: Tensor,
    zero_NG: Tensor | int,
    bias_N: Tensor | None,
    *,
    minimum_NG: Tensor | None = None,
    levels: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Σ_g scale_ng · Σ_k x[m, k] · (weight[n, k] − zero_ng) + bias_n, then GELU: float32 (M, N). x is rounded to
    bfloat16, the weight is not. With minima each group adds minimum_ng · Σ_k x[m, k].

    Args:
        weight_NK, zero_NG, scale_NG, minimum_NG: as in `linear_w4a8`.
        levels: bfloat16, what codes stand for before the scale, in place of code − zero.
    """
    groups = scale_NG.shape[1]
    x_MGk = x_MK.bfloat16().float().reshape(len(x_MK), groups, -1)
    w_NGk = (weight_NK.float() if levels is None else levels.float()[weight_NK.int()]).reshape(
        len(weight_NK), groups, -1
    )
    zero_NG1 = zero_NG.float()[..., None] if isinstance(zero_NG, Tensor) else zero_NG if levels is None else 0
    y_MN = torch.einsum("mgk,ngk,ng->mn", x_MGk, w_NGk - zero_NG1, scale_NG)
    if minimum_NG is not None:
        y_MN = y_MN + x_MGk.sum(dim=2) @ minimum_NG.T
    if bias_N is not None:
        y_MN = y_MN + bias_N
    return exact_gelu(y_MN) if gelu else y_MN


def attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    scale: float,
    *,
    bias_HR: Tensor | None = None,
    bias_HQK: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Per head softmax(scale · q kᵀ + bias) · v of one sequence, in the dtype of its inputs: (T, H, D).

    Args:
        bias_HR: what is added to a score by the distance of its key from its query, from −(T − 1) to T − 1.
        bias_HQK: what is added to each score.
        window: keys further than this from the query, on either side, are left out.
    """
    scores_HQK = _scores(q_THD, k_THD, scale, bias_HR, bias_HQK, window)
    return torch.einsum("hqk,khd->qhd", scores_HQK.softmax(dim=-1), v_THD)


def attention_int8(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    scale: float,
    *,
    bias_HR: Tensor | None = None,
    bias_HQK: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """`attention` with int8 q, k and v, and with weights that are bytes: (T, H, D), in the dtype of its inputs.

    q and k have a scale per token and head, v one per head and dimension; codes −127 … 127. k is taken less its mean
    over the sequence, which changes no softmax (SageAttention, 2410.02367). The weights of 64 keys at fixed places are
    bytes relative to the largest of them; the blocks are merged in floating point, and the result is divided by the sum
    of the rounded weights, so that rounding takes no weight from a long flat tail.
    """
    q_codes, q_scale_TH1 = _symmetric_codes(q_THD, dim=2)
    k_codes, k_scale_TH1 = _symmetric_codes(k_THD - k_THD.mean(dim=0), dim=2)
    v_codes, v_scale_1HD = _symmetric_codes(v_THD, dim=0)
    scores_HQK = _scores(q_codes * q_scale_TH1, k_codes * k_scale_TH1, scale, bias_HR, bias_HQK, window)
    weights_HQK = torch.zeros_like(scores_HQK)
    largest_HQ1 = scores_HQK.amax(dim=2, keepdim=True)
    for keys in torch.split(torch.arange(len(k_THD)), ATTENTION_BLOCK):
        block_HQK = scores_HQK[..., keys]
        top_HQ1 = block_HQK.amax(dim=2, keepdim=True).clamp(min=torch.finfo(block_HQK.dtype).min)
        codes = ((block_HQK - top_HQ1).exp() * 255).round()
        weights_HQK[..., keys] = codes * (top_HQ1 - largest_HQ1).exp()
    mixed_QHD = torch.einsum("hqk,khd->qhd", weights_HQK, v_codes) * v_scale_1HD
    return mixed_QHD / weights_HQK.sum(dim=2).T[..., None]


class CachedRows(NamedTuple):
    """What a cache holds of keys and of values: codes (S, G, n, g) and scales (S, G, n, 1) of S tokens, G heads, and n
    groups of g numbers, in a float dtype; of rows that were rotated (`_rotated`). near: what queries near them see
    instead (`is_near`)."""

    k_codes: Tensor
    k_scale: Tensor
    v_codes: Tensor
    v_scale: Tensor
    near: "CachedRows | None" = None


def cached_int8(k_SGD: Tensor, v_SGD: Tensor) -> CachedRows:
    """A scale for each token and head."""
    (k_codes, k_scale), (v_codes, v_scale) = (
        _symmetric_codes(_rotated(x).to(x.dtype).unsqueeze(2), dim=3) for x in (k_SGD, v_SGD)
    )
    return CachedRows(k_codes, k_scale, v_codes, v_scale)


def cached_int4(k_SGD: Tensor, v_SGD: Tensor) -> CachedRows:
    """Keys have a scale for each 32 numbers, values one and a zero for each 64, or as many as are rotated together.
    Computed in float32, one operation after the other as kernels do, so that codes are the same."""
    count = _power_in(k_SGD.shape[2])
    k_SGng, v_SGng = (
        _rotated(x).reshape(*x.shape[:2], -1, min(count, most))
        for x, most in zip((k_SGD, v_SGD), INT4_GROUPS, strict=True)
    )
    least, most = _span(k_SGng)
    k_scale = _held_scale(torch.where(most > -least, -most, -least) / 8)
    k_codes = _nibbles(k_SGng, k_scale, torch.tensor(8.0, dtype=torch.float32)) - 8
    least, most = _span(v_SGng)
    v_scale = _held_scale((most - least) * torch.tensor(1 / 15, dtype=torch.float32))
    zero = (-least / v_scale.where(v_scale > 0, 1.0)).round()
    v_codes = _nibbles(v_SGng, v_scale, zero) - zero
    k_codes, k_scale, v_codes, v_scale = (x.to(k_SGD) for x in (k_codes, k_scale, v_codes, v_scale))
    return CachedRows(k_codes, k_scale, v_codes, v_scale, near=cached_int8(k_SGD, v_SGD))


def is_near(tokens: int, keys: int) -> Tensor:
    """bool (T, S): which keys the last T tokens of S see in 8 bits, in a cache of 4: those of the first block, of their
    own, of `CACHE_HOT_BLOCKS` before it, and of later ones."""
    own_T1, of_S = torch.arange(keys - tokens, keys)[:, None] // ATTENTION_BLOCK, torch.arange(keys) // ATTENTION_BLOCK
    return (of_S == 0) | (of_S >= own_T1 - CACHE_HOT_BLOCKS)


def attention_cached(
    q_THD: Tensor,
    cached: CachedRows,
    scale: float,
    *,
    softcap: float | None = None,
    window: int | None = None,
    causal: bool = True,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Attention of the last T tokens of a sequence over a cache of all S: (T, H, D), in the dtype of q.

    H query heads share the G heads of the cache in equal groups. A query, rotated as keys are, has codes of 8 bits and
    a scale. Of each 64 keys at fixed places the weights, relative to the largest score so far, times the scales of
    their values become bytes relative to the largest of these 64, for each group of a value's numbers. The sum is that
    of the weights themselves: a sink with a value near zero has nearly all the weight, and its byte says little of it.
    The result is rotated back.

    Args:
        softcap: a score s becomes softcap · tanh(s / softcap).
        window: keys as many tokens or more from the query, on either side, are left out.
        causal: a token sees those before it and itself; else all.
        sinks_H: a score of each query head that adds to the sum alone.
    """
    tokens, kv_heads = cached.k_codes.shape[:2]
    group = q_THD.shape[1] // kv_heads
    q_codes, q_scale_TH1 = _symmetric_codes(hadamard(q_THD), dim=2)

    def scores_of(rows: CachedRows) -> Tensor:
        k_SHD = (rows.k_codes * rows.k_scale).flatten(2).repeat_interleave(group, dim=1)
        return torch.einsum("thd,shd->hts", q_codes * q_scale_TH1, k_SHD) * scale

    scores_HTS, forms = scores_of(cached), [(cached, torch.ones(len(q_THD), tokens, dtype=torch.bool))]
    if cached.near is not None:
        near_TS = is_near(len(q_THD), tokens)
        scores_HTS = torch.where(near_TS, scores_of(cached.near), scores_HTS)
        forms = [(cached, ~near_TS), (cached.near, near_TS)]
    if softcap is not None:
        scores_HTS = (scores_HTS / softcap).tanh() * softcap
    scores_HTS = scores_HTS.masked_fill(~_seen(len(q_THD), tokens, window, causal), -torch.inf)
    largest_HT1 = scores_HTS.amax(dim=2, keepdim=True)
    if sinks_H is not None:
        largest_HT1 = torch.maximum(largest_HT1, sinks_H[:, None, None].to(largest_HT1))
    sum_HT1 = torch.zeros_like(largest_HT1) if sinks_H is None else (sinks_H[:, None, None] - largest_HT1).exp()
    mixed_HTD = torch.zeros_like(q_THD.transpose(0, 1))
    for part in torch.split(torch.arange(tokens), CACHE_PART):
        for keys in torch.split(part, ATTENTION_BLOCK):
            so_far_HT1 = scores_HTS[..., part[0] : keys[-1] + 1].amax(dim=2, keepdim=True)
            so_far_HT1 = so_far_HT1.clamp(min=torch.finfo(scores_HTS.dtype).min)
            weights_HTK = (scores_HTS[..., keys] - so_far_HT1).exp()
            factor_HT1 = (so_far_HT1 - largest_HT1).exp()
            sum_HT1 = sum_HT1 + factor_HT1 * weights_HTK.sum(dim=2, keepdim=True)
            for rows, seen_TS in forms:  # all keys of a block are in one form, for each token
                mixed_HTD = mixed_HTD + factor_HT1 * _mixed(weights_HTK * seen_TS[:, keys], rows, keys, group)
    out_HTD = mixed_HTD / sum_HT1
    return hadamard(out_HTD).transpose(0, 1)


def _mixed(weights_HTK: Tensor, rows: CachedRows, keys: Tensor, group: int) -> Tensor:
    """(H, T, D): values of some keys, times weights that are bytes relative to the largest with a scale."""
    v_codes_KHng, v_scale_KHn1 = (x[keys].repeat_interleave(group, dim=1) for x in (rows.v_codes, rows.v_scale))
    scaled_HTKn = weights_HTK[..., None] * v_scale_KHn1[..., 0].transpose(0, 1)[:, None]
    step_HT1n = scaled_HTKn.amax(dim=2, keepdim=True) / 255
    codes_HTKn = (scaled_HTKn / step_HT1n.where(step_HT1n > 0, 1.0)).round()
    sums_HTng = torch.einsum("htkn,khng->htng", codes_HTKn, v_codes_KHng)
    return (step_HT1n.squeeze(2)[..., None] * sums_HTng).flatten(2)


def _rotated(x: Tensor) -> Tensor:
    """Keys or values as a cache rotates them, float32: `hadamard`, after a division by the power of two."""
    return hadamard(x.float() / _power_in(x.shape[-1]))


def hadamard(x: Tensor) -> Tensor:
    """Each stretch of the last dimension, of the largest power of two that divides its size n, times a Hadamard matrix
    of ones and minus ones: divide by the root of that power, and it is a rotation."""
    count = _power_in(x.shape[-1])
    x_Bc = x.reshape(-1, count)
    for _ in range(count.bit_length() - 1):
        a, b = x_Bc[:, : count // 2], x_Bc[:, count // 2 :]
        x_Bc = torch.stack([a + b, a - b], dim=2).flatten(1)
    return x_Bc.reshape(x.shape)


def _power_in(size: int) -> int:
    """The largest power of two that divides it."""
    return size & -size


def _span(x_SGng: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of each group of numbers and zero."""
    return x_SGng.amin(dim=3, keepdim=True).clamp(max=0), x_SGng.amax(dim=3, keepdim=True).clamp(min=0)


def _held_scale(scale: Tensor) -> Tensor:
    """As bf16 holds it; 0 where its inverse might not be finite."""
    return scale.bfloat16().float().where(scale.abs() >= 2.0**-120, 0.0)


def _nibbles(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Codes 0 … 15 around a zero."""
    inverse = (1 / scale).where(scale != 0, 0.0)
    return ((x * inverse).round() + zero).clamp(0, 15)


def _seen(rows: int, tokens: int, window: int | None, causal: bool) -> Tensor:
    """Which of all tokens each of the last `rows` sees: bool (rows, tokens)."""
    distance_TS = torch.arange(tokens) - torch.arange(tokens - rows, tokens)[:, None]
    seen_TS = torch.ones(rows, tokens, dtype=torch.bool) if not causal else distance_TS <= 0
    return seen_TS if window is None else seen_TS & (distance_TS.abs() < window)


def _scores(
    q_THD: Tensor, k_THD: Tensor, scale: float, bias_HR: Tensor | None, bias_HQK: Tensor | None, window: int | None
) -> Tensor:
    """Of each query and key, minus infinity where the key is left out: (H, T, T). Arguments as in `attention`."""
    tokens = torch.arange(len(q_THD))
    distance_QK = tokens - tokens[:, None]
    scores_HQK = torch.einsum("qhd,khd->hqk", q_THD, k_THD) * scale
    if bias_HR is not None:
        scores_HQK = scores_HQK + bias_HR[:, distance_QK + len(tokens) - 1]
    if bias_HQK is not None:
        scores_HQK = scores_HQK + bias_HQK
    if window is not None:
        scores_HQK = scores_HQK.masked_fill(distance_QK.abs() > window, -torch.inf)
    return scores_HQK


def _symmetric_codes(x: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """Codes −127 … 127 in the dtype of x, and their scale over a dimension; 1 where all is zero."""
    largest = x.abs().amax(dim=dim, keepdim=True)
    scale = (largest / 127).where(largest > 0, 1.0)
    return (x / scale).round(), scale


def norm(
    x_MN: Tensor, residual_MN: Tensor | None, weight_N: Tensor, bias_N: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """s = x + residual, and (s − mean) / √(variance + eps) · weight + bias, by rows, in the dtype of x: (M, N) each."""
    sum_MN = x_MN if residual_MN is None else x_MN + residual_MN
    return sum_MN, layer_norm(sum_MN, weight_N.shape, weight_N, bias_N, eps)


def rounded_groups(x_MK: Tensor, group: int) -> Tensor:
    """The numbers that `quantize_groups` makes codes for: x rounded by token and group of K, float32 (M, K)."""
    codes_MK, scale_MG, _ = quantize_groups(x_MK.float(), group)
    values_MGg: Tensor = codes_MK.reshape(len(x_MK), x_MK.shape[1] // group, group) * scale_MG[..., None]
    return values_MGg.flatten(1)
