"""The section of the Record about training."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LookRow:
    """What was seen after so many steps. loss: on texts kept apart from the training texts. train_loss: mean since the
    look before; None at the start.
    """

    step: int
    loss: float
    train_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """How the linears were trained on their grids, with the float model as teacher.

    texts: what they are, in words. n_texts, n_tokens: of one round over them. objective: what was minimized, in words.
    curve: the start first. best: the step whose state was kept. stopped: why it ended early; "" if it did not. before,
    after: the loss on tuning data, as fractions, where it was measured. kept: whether the result is the trained one.
    """

    teacher: str
    texts: str
    objective: str
    n_texts: int
    n_tokens: int
    steps: int
    batch: int
    rate: float
    bf16: bool
    curve: tuple[LookRow, ...]
    best: int
    stopped: str = ""
    before: float | None = None
    after: float | None = None
    kept: bool = True
    seconds: float | None = None
