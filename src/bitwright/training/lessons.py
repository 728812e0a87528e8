"""What a polished student learns: its losses against the float model's outputs, item by item."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitwright.calibration.precision import fast_forward
from bitwright.training.teacher import TopLogits, top_kl


@dataclass(frozen=True, slots=True)
class Lesson:
    """loss_of: the loss of one item, a scalar with a gradient. items: that are trained on, the first ones; held_out:
    how many after them are not.
    """

    loss_of: Callable[[int], Tensor]
    items: int
    held_out: int

    def backward(self, batch: Sequence[int]) -> float:
        """Add the gradients of the mean loss over a batch; one item is in memory at a time. Returns that loss."""
        total = 0.0
        with torch.enable_grad():
            for item in batch:
                loss = self.loss_of(item) / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total

    def held_out_loss(self) -> float:
        """The mean loss over what is not trained on."""
        with torch.no_grad():
            losses = [float(self.loss_of(self.items + number)) for number in range(self.held_out)]
        return sum(losses) / len(losses)


def next_token_loss(model: nn.Module, windows: Sequence[Sequence[int]], teacher: TopLogits, item: int) -> Tensor:
    """`top_kl` of a language model on one window. Linears and attention run in bf16 if the CPU multiplies it."""
    with fast_forward():
        logits_TV = model(input_ids=torch.tensor([windows[item]]), use_cache=False).logits[0]
    return top_kl(logits_TV, *teacher.of(item))
