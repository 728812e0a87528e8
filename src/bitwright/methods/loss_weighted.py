"""Loss-weighted rounding: an error counts by how steeply the model's loss depends on that output at that token.

With y = W x and the gradients δ = ∂loss/∂y of every token, an error E in the rows of one group of outputs costs, to
second order and with the outputs of the group taken as equals,

    tr(E H Eᵀ),    H = Σ s x xᵀ,    s = mean of δ² over the group's outputs

in place of Σ x xᵀ for all rows (GuidedQuant: Kim et al. 2025, 2505.07004). H is the Gram matrix of √s · x, so a group
is described by the statistics of its weighted inputs, and any rounding can be given them.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from bitwright.calibration.observers import LayerStats, merge, observe
from bitwright.methods.rows import stacked
from bitwright.methods.slots import Rounded, Rounding
from bitwright.numerics.grids import check_finite
from bitwright.numerics.ranges import RangeFunction
from bitwright.numerics.spec import QuantSpec


def squared_gradients(gradient_MN: Tensor, groups: int) -> Tensor:
    """s: the mean of δ² over the outputs of each group, float32 (M, groups). Groups are as `torch.tensor_split` cuts.

    gradient_MN: floating, of the loss with respect to a linear's outputs.
    """
    parts = gradient_MN.float().square().tensor_split(groups, dim=-1)
    return torch.stack([part.mean(-1) for part in parts], dim=-1)


def observe_weighted(
    stats: tuple[LayerStats, ...] | None, x_MK: Tensor, weight_MG: Tensor, *, fast: bool = False
) -> tuple[LayerStats, ...]:
    """Add one batch to the statistics of the weighted inputs, a group each.

    Args:
        x_MK: floating inputs. weight_MG: s of the same tokens, not negative.
        fast: as `observe` takes it.

    Raises:
        NumericsError: as `observe`; NaN or infinity among the weights.
    """
    check_finite(weight_MG, "the squared gradients")
    before = (None,) * weight_MG.shape[1] if stats is None else stats
    root_MG = weight_MG.float().sqrt()
    return tuple(
        observe(seen, x_MK * root_MG[:, g : g + 1], gram=True, histogram=False, fast=fast)
        for g, seen in enumerate(before)
    )


def with_loss_weights(rounding: Rounding, groups: Sequence[LayerStats]) -> Rounding:
    """A rounding whose rows are cut into groups, each rounded by the statistics of its own weighted inputs.

    A group that the loss does not depend on takes those of the unweighted inputs. Where all rows share a scale or
    levels, the groups are added up.
    """

    def weighted(w_NK: Tensor, stats: LayerStats | None, spec: QuantSpec, range_function: RangeFunction) -> Rounded:
        if spec.per_tensor or spec.grid == "kmeans":
            return rounding(w_NK, _known(reduce(merge, groups), stats), spec, range_function)
        parts = w_NK.tensor_split(len(groups))
        return stacked(
            [rounding(w, _known(g, stats), spec, range_function) for w, g in zip(parts, groups, strict=True) if len(w)]
        )

    return weighted


def _known(group: LayerStats, stats: LayerStats | None) -> LayerStats | None:
    return group if bool(group.sum_sq_K.any()) else stats
