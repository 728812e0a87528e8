"""The one callback that a Trainer of transformers or of sentence-transformers needs."""

from typing import TYPE_CHECKING, Any

from torch import nn

from bitwright.errors import InputError
from bitwright.training.prepare import set_blend

if TYPE_CHECKING:
    from transformers import TrainerCallback


def blend_at(progress: float, after: float, ramp: float) -> float:
    """How far a model is on its grids, 0 to 1, when a share `progress` of the steps is done: 0 until the share `after`,
    then rising during the share `ramp`."""
    if progress < after:
        return 0.0
    return 1.0 if ramp <= 0 else min(1.0, (progress - after) / ramp)


def delayed(model: nn.Module, *, after: float = 0.0, ramp: float = 0.0) -> "TrainerCallback":
    """A callback for a prepared model that trains in float first and on its grids later: what a Trainer gets beside it.

    after: the share of the steps in float. ramp: the share of the steps in which grids take over little by little.
    Evaluation and the trained model are always on the grids.

    Raises:
        InputError: shares that leave no step on the grids.
    """
    from transformers import TrainerCallback

    if not (after >= 0 and ramp >= 0 and after + ramp < 1):
        raise InputError(f"after = {after} and ramp = {ramp}: both are shares of the steps, together below 1")

    class Delayed(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_blend(model, blend_at(state.global_step / max(state.max_steps, 1), after, ramp))

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_blend(model, 1.0)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_blend(model, 1.0)  # an evaluation may follow

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            set_blend(model, 1.0)

    return Delayed()
