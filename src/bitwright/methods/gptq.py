"""GPTQ: every weight is rounded so as to make up for the errors of those before it (Frantar et al. 2022, 2210.17323).

With H = Σ x xᵀ over the calibration tokens, an error e = w − ŵ of one row costs e H eᵀ at the output. With the Cholesky
factor H = L Lᵀ this is a sum over columns

    e H eᵀ  =  Σ_k L_kk² · (e_k + Σ_{j>k} e_j L_jk / L_kk)²

in which column k meets only those behind it. So columns are rounded from the last to the first, each to the code
nearest to w_k + Σ_{j>k} e_j L_jk / L_kk. The paper instead inverts H, factors the inverse and updates all
columns that are left, to the same codes (Chee et al. 2023, 2307.13304, theorem 6).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.errors import NumericsError
from bitwright.methods.importance import importance_of
from bitwright.methods.slots import Notes, Rounded
from bitwright.numerics.codebooks import fit_codebook
from bitwright.numerics.grids import nearest_codes, quantize
from bitwright.numerics.qtensor import QTensor, code_values
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec

_ESCALATIONS = 3  # tenfold each


def gptq(
    w_NK: Tensor,
    stats: LayerStats | None,
    spec: QuantSpec,
    range_function: RangeFunction,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    block_size: int = 64,
) -> Rounded:
    """Choose a range, then round column after column.

    Scales and zero points are fixed beforehand, in the weight's own order ("static groups"), so neither `act_order` nor
    `block_size` shows in the result's layout. Rows do not influence each other. Inputs that were always 0 are dead: any
    weight does, and they get 0, as in the paper. They leave the ranges alone.

    Args:
        w_NK: float weight; not modified. Arithmetic is in float32, in float64 if w_NK is.
        stats: of the layer's inputs, with their Gram matrix.
        act_order: round the columns of the largest inputs first, when later columns can still make up for them.
        damping: positive; this share of the mean of H's diagonal is added to it. Where H still is not positive definite
            it is tried ten, a hundred and a thousand times as large; if that does not help the weight is rounded to
            nearest. The notes tell.
        block_size: columns per block. It changes the speed, not the result.

    Returns:
        Notes: `damping` used, `dead_inputs`; `damping_failed` if it was raised; `gave_way_to`, `reason` if all failed.

    Raises:
        NumericsError: no Gram matrix, or one of another K; NaN or infinite weights; a shape that does not fit the spec.
    """
    if damping <= 0 or block_size < 1:
        raise NumericsError(f"damping = {damping} and block_size = {block_size} must be positive")
    w_NK = w_NK.detach() if w_NK.dtype == torch.float64 else w_NK.detach().float()
    gram_KK = _gram(stats, w_NK)
    alive_K = gram_KK.diagonal() != 0
    live_NK = w_NK * alive_K  # a product, not a mask, lets the range find NaN and infinity anywhere
    importance = importance_of(stats)
    scale_NG, zero_point_NG = range_function(live_NK, spec, importance=importance)
    codebook = fit_codebook(live_NK, scale_NG, spec) if spec.grid == "kmeans" else None
    notes: Notes = {"dead_inputs": int((~alive_K).sum())}

    order_K = _order(gram_KK.diagonal(), act_order)
    lower_KK, tried = _factor(gram_KK.index_select(0, order_K).index_select(1, order_K), damping)
    if len(tried) > 1:
        notes["damping_failed"] = ", ".join(f"{share:g}" for share in tried[: None if lower_KK is None else -1])
    if lower_KK is None:
        notes |= {"gave_way_to": "rtn", "reason": "the Gram matrix has no Cholesky factor; calibrate on more tokens"}
        scale_NG, zero_point_NG = range_function(w_NK, spec, importance=importance)
        return Rounded(quantize(w_NK, scale_NG, zero_point_NG, spec), notes=notes)
    notes["damping"] = tried[-1]

    group_K = (order_K * scale_NG.shape[1] // len(order_K)).tolist()
    scale_GN = scale_NG.T.to(w_NK.dtype).contiguous().unbind()
    zero_GN = None if zero_point_NG is None else zero_point_NG.T.to(w_NK.dtype).contiguous().unbind()

    def nearest(wanted_N: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scale_N, zero_N = scale_GN[group_K[k]], None if zero_GN is None else zero_GN[group_K[k]]
        codes_N = nearest_codes(wanted_N, scale_N, zero_N, spec, codebook)
        return codes_N, code_values(codes_N, scale_N, zero_N, spec, codebook)

    codes_KN = torch.empty(live_NK.T.shape, dtype=torch.int8, device=w_NK.device)
    with _one_thread():
        codes_KN[order_K] = _round(live_NK.T[order_K], lower_KK.T, nearest, block_size)
    return Rounded(QTensor(codes_KN.T.contiguous(), scale_NG, zero_point_NG, spec, codebook), notes=notes)


def _gram(stats: LayerStats | None, w_NK: Tensor) -> Tensor:
    """Σ x xᵀ in the weight's dtype."""
    if stats is None or stats.gram_KK is None:
        raise NumericsError("gptq needs the Gram matrix of the layer's inputs; observe with gram=True, or use rtn")
    if len(stats.gram_KK) != w_NK.shape[1]:
        raise NumericsError(
            f"the weight has K = {w_NK.shape[1]}, but the statistics have K = {len(stats.gram_KK)} inputs"
        )
    return stats.gram_KK.to(w_NK)


def _order(diagonal_K: Tensor, act_order: bool) -> Tensor:
    """Where column k of the work is in the weight: the last is rounded first. Of equals the weight's first is."""
    if act_order:
        return torch.argsort(diagonal_K, descending=True, stable=True).flip(0)
    return torch.arange(len(diagonal_K), device=diagonal_K.device).flip(0)


def _factor(gram_KK: Tensor, damping: float) -> tuple[Tensor | None, list[float]]:
    """L with every column divided by its diagonal entry, or None if there is none; and the dampings tried."""
    mean = gram_KK.diagonal().mean()
    tried: list[float] = []
    for escalation in range(_ESCALATIONS + 1):
        tried.append(damping * 10**escalation)
        damped_KK = gram_KK.clone()
        damped_KK.diagonal().add_(tried[-1] * mean)
        lower_KK, info = torch.linalg.cholesky_ex(damped_KK)
        diagonal_K = lower_KK.diagonal().clone()
        if not bool(info) and bool(torch.isfinite(diagonal_K).all()):  # NaN anywhere in a row reaches its diagonal
            return lower_KK.div_(diagonal_K), tried
    return None, tried


def _round(
    w_KN: Tensor, share_KK: Tensor, nearest: Callable[[Tensor, int], tuple[Tensor, Tensor]], block_size: int
) -> Tensor:
    """The codes, int8 (K, N), from the last row of w_KN to the first.

    share_KK: L_jk / L_kk in row k, column j > k: how much of error j weight k has to make up for.
    nearest: from the values wanted in row k to their codes, and to what those stand for.

    A block takes from all errors behind it in one product, a row in it from those in the block.
    """
    codes_KN = torch.empty(w_KN.shape, dtype=torch.int8, device=w_KN.device)
    error_KN = torch.empty_like(w_KN)
    for end in range(len(w_KN), 0, -block_size):
        begin = max(end - block_size, 0)
        wanted_BN = torch.addmm(w_KN[begin:end], share_KK[begin:end, end:], error_KN[end:])
        for k in range(end - 1, begin - 1, -1):
            wanted_1N = wanted_BN[k - begin : k - begin + 1]
            wanted_1N.addmm_(share_KK[k : k + 1, k + 1 : end], error_KN[k + 1 : end])
            codes_KN[k], values_N = nearest(wanted_1N[0], k)
            torch.sub(w_KN[k], values_N, out=error_KN[k])
    return codes_KN


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread. Products of one row gain little from a second, and where other programs share the cores each
    would wait for it: at every column, which took twenty times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
