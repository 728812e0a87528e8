"""Computes from input statistics, without tokens, how far a linear's outputs move when its weight is rounded.

With G = Σ x xᵀ over the tokens seen, Σ ‖M x‖² = tr(M G Mᵀ) for any matrix M.
"""

import math

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats


def squared_outputs(m_NK: Tensor, stats: LayerStats | None) -> float:
    """tr(M G Mᵀ), the sum of ‖M x‖² over all tokens; ‖M‖² without a Gram matrix.

    m_NK: floating (N, K).
    """
    m_NK = m_NK.float()
    seen_NK = m_NK if stats is None or stats.gram_KK is None else m_NK @ stats.gram_KK
    return float((seen_NK * m_NK).sum(dtype=torch.float64))


def output_errors(weight_NK: Tensor, rounded_NK: Tensor, stats: LayerStats | None) -> dict[str, float]:
    """How far a linear's outputs move over the calibration tokens: with G = Σ x xᵀ and D = W − Ŵ

        error² = tr(D G Dᵀ) / tr(W G Wᵀ),   sqnr = −20 log₁₀ error,   cosine = tr(W G Ŵᵀ) / √(tr(W G Wᵀ) tr(Ŵ G Ŵᵀ))

    Without statistics, of the weights themselves.

    Returns:
        {"error", "sqnr_db", "cosine"}.
    """
    w, v = weight_NK.float(), rounded_NK.float()
    ww, dd, vv = (squared_outputs(m, stats) for m in (w, w - v, v))
    if ww <= 0 or vv <= 0:
        return {"error": 0.0 if dd <= 0 else 1.0, "sqnr_db": math.inf if dd <= 0 else 0.0, "cosine": 1.0}
    error = math.sqrt(max(dd, 0.0) / ww)
    cosine = (ww + vv - dd) / 2 / math.sqrt(ww * vv)  # ⟨u, v⟩ from three squared lengths
    return {"error": error, "sqnr_db": math.inf if error == 0 else -20 * math.log10(error), "cosine": cosine}
