"""Levels as tensors: the fixed ones of a codebook grid (`levels.py`), and those of kmeans, which are fitted to a tensor
(Han et al. 2016, Deep Compression).
"""

from functools import cache

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.levels import fixed_levels
from bitwright.numerics.spec import QuantSpec

_BINS = 8192
_ROUNDS = 300
_CHUNK = 2**17  # values taken at a time, so that what is computed on the way stays small


@cache
def codebook_of(spec: QuantSpec) -> Tensor | None:
    """The levels of a grid whose levels are fixed: float32 (L,); None on the uniform, ternary and kmeans grids.

    On the CPU, whatever the default device. Do not write to it: every caller gets the same tensor.
    """
    levels = fixed_levels(spec)
    return None if levels is None else torch.tensor(levels, device="cpu")


def fit_codebook(w_NK: Tensor, scale_NG: Tensor, spec: QuantSpec) -> Tensor:
    """The levels that lose least of a tensor, by Lloyd's algorithm: float32 (L,), ascending.

        minimizes  Σ scale² · (w / scale − nearest level)²  =  Σ (w − ŵ)²

    over all values at once. It works on a histogram of w / scale in 8192 bins between −1 and 1 (values beyond count as
    those) with the exact mean of every bin, so a value next to the middle between two levels may be counted with the
    other. It starts where the density to the power ⅓ has equal areas, the optimum for many levels (Panter & Dite 1951),
    and stops when no bin moves, or after 300 rounds. Nothing is random. A level that gets no values stays.

    Args:
        w_NK: finite, floating (N, K). scale_NG: positive, as `scale_shape` says.

    Raises:
        NumericsError: the grid's levels are not fitted.
    """
    if spec.grid != "kmeans":
        raise NumericsError(f"the levels of the {spec.grid} grid are fixed; only those of kmeans are fitted")
    mass, moment = _histogram(w_NK, scale_NG)
    area = mass.pow(1 / 3).cumsum(0)
    n_levels, one = spec.code_max + 1, area.new_ones(1)
    start = torch.searchsorted(area, area[-1] * (torch.arange(n_levels).to(area) + 0.5) / n_levels)
    levels, ends = moment[start] / mass[start], start[:0]
    mass_below, moment_below = _prefix(mass), _prefix(moment)
    for _ in range(_ROUNDS):
        middles = (levels[1:] + levels[:-1]) / 2
        previous, ends = ends, torch.cat([-one, middles, one]).add(1).mul(_BINS / 2).round().long()
        if torch.equal(ends, previous):
            break
        level_mass, level_moment = mass_below[ends].diff(), moment_below[ends].diff()
        levels = torch.where(level_mass > 0, level_moment / level_mass, levels)
    return levels.float().sort().values  # those without values may have been overtaken by a rounding


def _histogram(w_NK: Tensor, scale_NG: Tensor) -> tuple[Tensor, Tensor]:
    """Σ scale² and Σ scale² · (w / scale) of the values in each bin: float64 (bins,)."""
    mass, moment = torch.zeros(2, _BINS, dtype=torch.float64, device=w_NK.device)
    rows = max(_CHUNK // w_NK.shape[1], 1)
    for w, scale in zip(torch.split(w_NK, rows), torch.split(scale_NG.float(), rows), strict=True):
        x = (w.reshape(*scale.shape, -1).float() / scale[..., None]).clamp_(-1, 1)
        weight = (scale / scale_NG.max()).square()[..., None].expand_as(x).flatten()
        index = ((x.flatten() + 1) * (_BINS / 2)).clamp_(max=_BINS - 1).long()
        mass += torch.bincount(index, weight, minlength=_BINS)
        moment += torch.bincount(index, weight * x.flatten(), minlength=_BINS)
    return mass, moment


def _prefix(x: Tensor) -> Tensor:
    """[0, x₀, x₀+x₁, …]"""
    return torch.cat([x.new_zeros(1), x.cumsum(0)])
