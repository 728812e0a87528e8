"""What an error in a weight costs, from the inputs that it meets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bitwright.errors import NumericsError


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """The second moments of a linear's inputs. A factor common to all (the number of tokens) makes no difference.

    mean_square_K: floating (K,), E[x²] of each input feature: the cost of a weight's squared error, taken alone.
    gram_KK: floating (K, K), E[x xᵀ], or None: with it, Δw G Δwᵀ is what an error Δw costs at the output.
    """

    mean_square_K: Tensor
    gram_KK: Tensor | None = None

    def __post_init__(self) -> None:
        mean_square, gram = self.mean_square_K, self.gram_KK
        if mean_square.ndim != 1 or not mean_square.is_floating_point():
            raise NumericsError(f"importance is floating (K,), got {mean_square.dtype} {tuple(mean_square.shape)}")
        if not bool(torch.isfinite(mean_square).all()) or bool((mean_square < 0).any()):
            raise NumericsError("importance must be finite and not negative; check the calibration data for NaN")
        if gram is not None and tuple(gram.shape) != (len(mean_square), len(mean_square)):
            raise NumericsError(f"K = {len(mean_square)} but the Gram matrix has shape {tuple(gram.shape)}")
