"""What a student learns: its losses against the float model's outputs, item by item.

B texts of a batch · H features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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


def embedding_loss(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """How far embeddings are from the float model's, in direction and among each other; a scalar.

        mean_b (1 − cos(s_b, t_b))  +  mean_{a≠b} (cos(s_a, s_b) − cos(t_a, t_b))²

    Both are 0 for equal directions. The second is what a similarity search sees.
    """
    student_BH, teacher_BH = (functional.normalize(x_BH.float(), dim=-1) for x_BH in (student_BH, teacher_BH))
    apart = 1.0 - (student_BH * teacher_BH).sum(dim=-1).mean()
    difference_BB = student_BH @ student_BH.T - teacher_BH @ teacher_BH.T
    pairs = max(1, len(student_BH) * (len(student_BH) - 1))
    return apart + (difference_BB.square().sum() - difference_BB.diagonal().square().sum()) / pairs


def logits_loss(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """KL(teacher ‖ student) of a classifier's classes, the mean over texts; a scalar."""
    log_p_BC, log_q_BC = (functional.log_softmax(x_BC.float(), dim=-1) for x_BC in (teacher_BC, student_BC))
    return functional.kl_div(log_q_BC, log_p_BC, reduction="batchmean", log_target=True)
