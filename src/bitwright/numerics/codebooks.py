"""The levels that the codes of a codebook grid stand for: ascending, between −1 and 1, times the scale of the group.

    binary   −1, 1
    nf4      quantiles of a normal distribution, with an exact 0          (Dettmers et al. 2023, QLoRA, appendix E)
    pot      0 and ±2^−k                                                  (Miyashita et al. 2016; Zhou et al. 2017, INQ)
    apot     0 and ± sums of powers of two, over their maximum            (Li et al. 2020, Additive Powers-of-Two)
    kmeans   fitted to the tensor                                         (Han et al. 2016, Deep Compression)

A power of two and its negative share the level 0, so signed grids of b bits have 2^b − 1 levels, not 2^b.
"""

from functools import cache
from itertools import product

import torch
from torch import Tensor

from bitwright.errors import NumericsError
from bitwright.numerics.spec import QuantSpec

# The exponents of the terms that an additive level may take, one from each set or none, by bits of the magnitude.
_APOT_TERMS: dict[int, tuple[tuple[int, ...], ...]] = {2: ((1, 2, 3),), 3: ((1, 2, 4), (3,))}
_BINS = 8192
_ROUNDS = 300
_CHUNK = 2**17  # values taken at a time, so that what is computed on the way stays small


@cache
def codebook_of(spec: QuantSpec) -> Tensor | None:
    """The levels of a grid whose levels are fixed: float32 (L,); None on the uniform, ternary and kmeans grids.

    On the CPU, whatever the default device. Do not write to it: every caller gets the same tensor.
    """
    match spec.grid:
        case "binary":
            levels = _tensor([-1.0, 1.0])
        case "nf4":
            levels = _normal_quantiles()
        case "pot":
            levels = _tensor(_signed([2.0**-k for k in range(2 ** (spec.bits - 1) - 1)]))
        case "apot":
            levels = _tensor(_signed(_sums(_APOT_TERMS[spec.bits - 1])))
        case _:
            return None
    return levels.float()


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


def _normal_quantiles() -> Tensor:
    """The 16 levels of NF4, float64: normal quantiles, 9 from 0 up and 8 from 0 down, over the largest.

    Each side is evenly spaced in probability; the outermost, as QLoRA's, is the mean of 1 − 1/32 and 1 − 1/30.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    up, down = (torch.linspace(0.5, outermost, n, dtype=torch.float64, device="cpu") for n in (9, 8))
    levels = torch.cat([-torch.special.ndtri(down).flip(0)[:-1], torch.special.ndtri(up)])
    return levels / levels.max()


def _sums(terms: tuple[tuple[int, ...], ...]) -> list[float]:
    """Every sum of at most one 2^−k from each set of exponents k, over the largest sum."""
    sums = [sum(choice) for choice in product(*([0.0, *(2.0**-k for k in exponents)] for exponents in terms))]
    return [value / max(sums) for value in sums]


def _signed(magnitudes: list[float]) -> list[float]:
    """The magnitudes, their negatives and 0, once each, ascending."""
    return sorted({sign * value for value in [0.0, *magnitudes] for sign in (1, -1)})


def _tensor(levels: list[float]) -> Tensor:
    return torch.tensor(levels, dtype=torch.float64, device="cpu")
