"""Mismatch correction: codes that make up for what the rounding of earlier layers did to a linear's inputs.

The inputs x of a linear differ from those of the float model, x₀, once layers before it are rounded. Rounding that aims
at W x keeps that error; aiming at W x₀ takes back what a linear map of x can. With H = Σ x xᵀ and D = Σ (x₀ − x) xᵀ,

    Σ ‖W x₀ − Q x‖² + λ ‖W − Q‖²  =  tr((V − Q)(H + λ)(V − Q)ᵀ) + const,    V = W + W D (H + λ)⁻¹

so that any rounding that makes tr((V − Q) H (V − Q)ᵀ) small does it when it is given V. Where x = x₀, D = 0 and V = W.
V is computed with every token divided by ‖x‖, which leaves the optimum where tokens agree: a few tokens of a language
model have inputs so large that the sums would be theirs, and the correction would repair them and spoil all others.
The asymmetric target is that of GPTAQ (Li et al. 2025, 2504.02692) and Qronos (Zhang et al. 2025, 2505.11695), which
weave it into the rounding of the columns; once a square is completed, it is a change of the weight alone.
"""

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats
from bitwright.methods.slots import Notes, Rounded, Rounding
from bitwright.numerics.grids import check_finite
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec


def towards_float(w_NK: Tensor, stats: LayerStats, *, share: float = 1.0, damping: float = 0.01) -> Tensor | None:
    """V, or what lies `share` of the way to it: in the weight's dtype, float32 at least. None if H + λ has no Cholesky
    factor.

    Args:
        w_NK: float weight; not modified.
        stats: with a mismatch.
        damping: λ relative to the mean of H's diagonal: where x is small, little is corrected.

    Raises:
        NumericsError: NaN or infinity in the mismatch.
    """
    assert stats.even_KK is not None
    assert stats.mismatch_KK is not None
    check_finite(stats.mismatch_KK, "the mismatch to the float model's inputs")
    w_NK = w_NK.detach() if w_NK.dtype == torch.float64 else w_NK.detach().float()
    damped_KK = stats.even_KK.to(w_NK, copy=True)
    damped_KK.diagonal().add_(damping * damped_KK.diagonal().mean())
    lower_KK, failed = torch.linalg.cholesky_ex(damped_KK)
    if bool(failed):
        return None
    moved_NK = w_NK @ stats.mismatch_KK.to(w_NK)
    return w_NK + share * torch.cholesky_solve(moved_NK.T, lower_KK).T


def with_mismatch_correction(rounding: Rounding, *, share: float, damping: float = 0.01) -> Rounding:
    """A rounding that is given the corrected weight. Inputs that have no mismatch leave it as it is.

    share: of the way to the full correction, from 0 to 1; see `towards_float`.
    """

    def corrected(w_NK: Tensor, stats: LayerStats | None, spec: QuantSpec, range_function: RangeFunction) -> Rounded:
        if stats is None or stats.mismatch_KK is None:
            return rounding(w_NK, stats, spec, range_function)
        wanted_NK = towards_float(w_NK, stats, share=share, damping=damping)
        if wanted_NK is None:
            rounded = rounding(w_NK, stats, spec, range_function)
            return Rounded(rounded.qtensor, rounded.bias_N, rounded.notes | {"mismatch_failed": "no Cholesky factor"})
        moved = float((wanted_NK - w_NK).norm() / w_NK.norm()) if bool(w_NK.any()) else 0.0
        rounded = rounding(wanted_NK, stats, spec, range_function)
        notes: Notes = {"mismatch_moved": moved}
        return Rounded(rounded.qtensor, rounded.bias_N, rounded.notes | notes)

    return corrected
