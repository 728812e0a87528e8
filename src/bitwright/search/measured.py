"""The measurements of a recipe that every search uses: method choice, fallback, speed and loss."""

from collections.abc import Callable
from dataclasses import dataclass

from bitwright.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of a model that was quantized by a recipe.

    loss: relative to the float model's score, a fraction; infinite if the outputs are no numbers any more. bound: the
    upper bound of that loss; infinite where none is known. seconds: of one run of the model; None where nothing was
    timed. bytes_: of the weights. for_new_text: whether the bound is one for text of kinds that were not tried, else it
    is for more text of the same kind.
    """

    loss: float
    bound: float
    seconds: float | None
    bytes_: int
    for_new_text: bool = False


Measure = Callable[[Recipe], Measured]
