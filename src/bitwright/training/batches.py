"""The order in which texts are trained on: a function of the seed and of the number of the step, so that a run that
goes on needs no more than that number.
"""

import random
from collections.abc import Sequence

_POOL = 16  # batches whose texts are sorted by length together: little padding, and still mixed


def batch_of(step: int, lengths: Sequence[int], size: int, seed: int) -> list[int]:
    """The texts of one step, by number. Every text comes once in each round over all of them; those that are left when
    no whole batch remains wait for the next round.

    lengths: of the texts, in tokens. size: texts of a batch, at most as many as there are.
    """
    per_round = len(lengths) // size
    return _round(lengths, size, f"{seed}:{step // per_round}")[step % per_round]


def _round(lengths: Sequence[int], size: int, seed: str) -> list[list[int]]:
    """All batches of one round."""
    rng = random.Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order = order[: len(order) // size * size]
    batches = []
    for begin in range(0, len(order), size * _POOL):
        pool = sorted(order[begin : begin + size * _POOL], key=lambda i: lengths[i])
        batches += [pool[start : start + size] for start in range(0, len(pool), size)]
    rng.shuffle(batches)
    return batches
