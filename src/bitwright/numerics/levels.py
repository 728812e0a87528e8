"""The fixed levels that the codes of a codebook grid stand for: ascending, between −1 and 1 but for
fp4, times the group's scale.

    binary   −1, 1
    nf4      quantiles of a normal distribution, with an exact 0          (Dettmers et al. 2023, QLoRA, appendix E)
    fp4      −6 … 6: what a sign, 2 bits of exponent and 1 of mantissa stand for (OCP Microscaling formats, 2023, E2M1)
    pot      0 and ±2^−k                                                  (Miyashita et al. 2016; Zhou et al. 2017, INQ)
    apot     0 and ± sums of powers of two, over their maximum            (Li et al. 2020, Additive Powers-of-Two)

A power of two and its negative share the level 0, so signed grids of b bits have 2^b − 1 levels, not 2^b; but fp4
keeps −0, the eighth level, beside 0, so that files come back as they were. Those of
kmeans are fitted to a tensor (`codebooks.py`). Plain numbers: neither numpy nor torch is needed for them.

Integer kernels multiply `whole_levels`.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from struct import pack, unpack

from bitwright.numerics.spec import QuantSpec

# The exponents of the terms that an additive level may take, one from each set or none, by bits of the magnitude.
_APOT_TERMS: dict[int, tuple[tuple[int, ...], ...]] = {2: ((1, 2, 3),), 3: ((1, 2, 4), (3,))}


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@cache
def fixed_levels(spec: QuantSpec) -> tuple[float, ...] | None:
    """The levels of a grid whose levels are fixed, as float32 holds them; None on the uniform, ternary and kmeans
    grids.
    """
    match spec.grid:
        case "binary":
            levels = [-1.0, 1.0]
        case "nf4":
            levels = _normal_quantiles()
        case "fp4":
            levels = [sign * value for sign, row in ((-1.0, reversed(_E2M1)), (1.0, _E2M1)) for value in row]
        case "pot":
            levels = _signed([2.0**-k for k in range(2 ** (spec.bits - 1) - 1)])
        case "apot":
            levels = _signed(_sums(_APOT_TERMS[spec.bits - 1]))
        case _:
            return None
    return unpack(f"{len(levels)}f", pack(f"{len(levels)}f", *levels))


def whole_levels(levels: Sequence[float]) -> tuple[tuple[int, ...], float]:
    """Levels as whole numbers n from −127 to 127 and a step, level ≈ n · step: what integer kernels multiply.

    fp4, pot, apot and binary are whole multiples of a step, so n · step is the level. Other levels, of nf4 and kmeans,
    lose up to half a step: n = round(127 · level / max|level|), step = max|level| / 127.
    """
    largest = max(map(abs, levels))
    if largest == 0.0:
        return (0,) * len(levels), 1.0
    for most in range(1, 128):
        steps = [level * most / largest for level in levels]
        whole = [round(step) for step in steps]
        if most == 127 or max(abs(step - n) for step, n in zip(steps, whole, strict=True)) < most * 2.0**-22:
            break
    return tuple(whole), largest / most


def _normal_quantiles() -> list[float]:
    """The 16 levels of NF4: normal quantiles, 9 from 0 up and 8 from 0 down, over the largest.

    Each side is evenly spaced in probability; the outermost, as QLoRA's, is the mean of 1 − 1/32 and 1 − 1/30.
    """
    from statistics import NormalDist  # and what it imports: 20 ms that int8 models need not wait

    outermost = 1 - (1 / 32 + 1 / 30) / 2
    up, down = (
        [NormalDist().inv_cdf(0.5 + (outermost - 0.5) * i / (count - 1)) for i in range(count)] for count in (9, 8)
    )
    levels = [-value for value in reversed(down[1:])] + up
    return [value / levels[-1] for value in levels]


def _sums(terms: tuple[tuple[int, ...], ...]) -> list[float]:
    """Every sum of at most one 2^−k from each set of exponents k, over the largest sum."""
    sums = [sum(choice) for choice in product(*([0.0, *(2.0**-k for k in exponents)] for exponents in terms))]
    return [value / max(sums) for value in sums]


def _signed(magnitudes: list[float]) -> list[float]:
    """The magnitudes, their negatives and 0, once each, ascending."""
    return sorted({sign * value for value in [0.0, *magnitudes] for sign in (1, -1)})
