"""Linears that transformers hides: fused experts and Conv1D, replaced in place by plain `nn.Linear` modules.

Transformers keeps the experts of a block as two parameters, gate_up_proj (E, 2·I, K) and down_proj (E, K, I), where the
published files have three matrices per expert; and GPT-2's linears as Conv1D with weights (K, N). Once they are
`nn.Linear`, statistics, rounding, swapping and storing treat them like any other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import ModelError
from bitwright.families import Architecture
from bitwright.models.sites import find_blocks


class Expert(nn.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, gate_proj: nn.Linear, up_proj: nn.Linear, down_proj: nn.Linear, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj
        self.act_fn = act_fn

    def forward(self, x_MK: Tensor) -> Tensor:
        hidden: Tensor = self.act_fn(self.gate_proj(x_MK)) * self.up_proj(x_MK)
        output: Tensor = self.down_proj(hidden)
        return output


class Experts(nn.ModuleList):
    """The experts of a block, under the names that the files have: "0.gate_proj", "0.up_proj", "0.down_proj", …"""

    def forward(self, x_MK: Tensor, chosen_MS: Tensor, weights_MS: Tensor) -> Tensor:
        """Σ over each token's S chosen experts of weight · expert(x): (M, K), in the dtype of x.

        An expert runs once, on its tokens, and not at all if it has none. They add up in the order of experts.

        chosen_MS: int64, distinct in a row.
        """
        total_MK = torch.zeros_like(x_MK)
        for index in torch.unique(chosen_MS).tolist():
            rows, slots = torch.where(chosen_MS == index)
            output = self[index](x_MK[rows]) * weights_MS[rows, slots, None]
            total_MK.index_add_(0, rows, output.to(total_MK.dtype))
        return total_MK


def linearize(model: nn.Module, architecture: Architecture) -> None:
    """Replace, in `model`, fused experts by `Experts` and Conv1D by `nn.Linear`. The outputs stay the same.

    Weights are copied layer by layer; a model on the meta device allocates nothing. What is linear already stays.

    Raises:
        ModelError: experts that are not two fused parameters.
    """
    modules = dict(model.named_modules())
    stems = dict.fromkeys(path.partition(".*.")[0] for path in architecture.roles if ".*." in path)
    for block, _ in find_blocks(model, architecture):
        for stem in stems:
            fused = modules.get(f"{block}.{stem}")
            if fused is not None and not isinstance(fused, nn.ModuleList):
                model.set_submodule(f"{block}.{stem}", _split(f"{block}.{stem}", fused))
        for path in architecture.files.transposed:
            conv = modules.get(f"{block}.{path}")
            if conv is not None and not isinstance(conv, nn.Linear):
                weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
                model.set_submodule(f"{block}.{path}", _linear(weight.T, bias).train(conv.training))


def _split(name: str, fused: nn.Module) -> Experts:
    gate_up = getattr(fused, "gate_up_proj", None)
    down = getattr(fused, "down_proj", None)
    act_fn: Any = getattr(fused, "act_fn", None)
    if not isinstance(gate_up, Tensor) or not isinstance(down, Tensor) or act_fn is None or gate_up.ndim != 3:
        raise ModelError(
            f"{name}: this {type(fused).__name__} has no gate_up_proj (E, 2·I, K), down_proj (E, K, I) and act_fn. "
            "This version of transformers stores experts in another way; install another version"
        )
    experts = Experts()
    for gate_up_NK, down_NK in zip(gate_up, down, strict=True):
        gate_NK, up_NK = gate_up_NK.chunk(2)
        experts.append(Expert(_linear(gate_NK), _linear(up_NK), _linear(down_NK), act_fn))
    return experts.train(fused.training)


def _linear(weight_NK: Tensor, bias_N: Tensor | None = None) -> nn.Linear:
    """A linear with a copy of this weight: a view would keep the whole fused tensor in memory."""
    n, k = weight_NK.shape
    linear = nn.Linear(k, n, bias=bias_N is not None, device="meta")
    trained = weight_NK.requires_grad
    linear.weight = nn.Parameter(weight_NK.detach().clone(memory_format=torch.contiguous_format), trained)
    if bias_N is not None:
        linear.bias = nn.Parameter(bias_N.detach().clone(), trained)
    return linear
