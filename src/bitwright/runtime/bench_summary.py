"""From measured blocks to the rows of a benchmark's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bitwright.record import ORIGINALS, Shape, Work


@dataclass(frozen=True, slots=True)
class Block:
    """One uninterrupted run of one runtime. Times in s on one clock, since the measurement began.

    median_ms: over the block's own samples. other_load_cores: cores that other programs, or the host, kept busy
    meanwhile. idle_cores: cores that the runtime itself still burned, at most 2 s later, when it had nothing to do.
    """

    runtime: str
    batch: int
    tokens: int
    round: int
    start_s: float
    end_s: float
    median_ms: float
    other_load_cores: float
    idle_cores: float
    work: Work = "forward"

    @property
    def shape(self) -> Shape:
        """What was timed."""
        return Shape(self.batch, self.tokens, self.work)


def summarize(
    measured: Sequence[tuple[Block, Sequence[float]]], notes: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """One row per runtime and shape, in the order in which they first come, which pools the samples of all rounds.

    A ratio is the median over rounds of (block median of fp32 or bf16) / (block median of the runtime): above 1 is
    faster. It is None where the other was not measured; where two runtimes compute in bf16, the faster one counts.
    `per_second`: sequences, or tokens of a language model, by the median.

    Args:
        measured: the blocks that count, with their samples in ms. notes: how each runtime was converted.
    """
    block_ms: dict[tuple[str, Shape], dict[int, float]] = {}
    samples_ms: dict[tuple[str, Shape], list[float]] = {}
    for block, samples in measured:
        key = block.runtime, block.shape
        block_ms.setdefault(key, {})[block.round] = block.median_ms
        samples_ms.setdefault(key, []).extend(samples)

    def times_faster(runtime: str, dtype: str, shape: Shape) -> float | None:
        theirs = [block_ms[other, shape] for other in ORIGINALS[dtype] if (other, shape) in block_ms]
        ours = block_ms[runtime, shape]
        return min((median(ms[r] / ours[r] for r in ours) for ms in theirs), default=None)

    return [
        {
            "runtime": runtime,
            "batch": shape.batch,
            "tokens": shape.tokens,
            "work": shape.work,
            "median_ms": median(samples),
            "min_ms": min(samples),
            "per_second": 1e3 * shape.counted / median(samples),
            "ratio_to_fp32": times_faster(runtime, "fp32", shape),
            "ratio_to_bf16": times_faster(runtime, "bf16", shape),
            "note": notes[runtime],
        }
        for (runtime, shape), samples in samples_ms.items()
    ]
