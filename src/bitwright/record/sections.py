"""The sections of the Record, version 1, and the keys of `record.json`: each field is a key.

What a step would have measured is None where the step did not run: `evaluation`, `distributions`, `speed` and `verify`
of a result that was not judged; `sensitivity`, `distributions` and `speed` of a language model. Times in seconds, sizes
in bytes, losses and errors as fractions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitwright.record.convert import NULL
from bitwright.record.made import Evidence, LayerRow, LeftOut, ModelFacts, PlanRow, Polished, Size, Smallest
from bitwright.record.measured import AttentionCost, Distribution, Evaluation, Sensitivity, StepRow, Verification
from bitwright.record.timed import Environment, Front, Speed
from bitwright.record.trained import Training
from bitwright.record.tuned import Tuning

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that a run measured.

    created: UTC, ISO 8601. command: what reproduces the run. recipe: the resolved one, fallbacks included, as
    `recipe.yaml` has it. steps: what the fallback search and then the front measured, in order. front: with a
    min_speedup. polish, training: where scales or linears were trained. smallest: with the goal "smallest". tuning:
    where a tuner chose the recipe. attention: where there was int8 attention to decide on. left_out: files beside the
    source model that the result does not hold; records of earlier releases do not say. warnings: texts. timings_s: by
    step.
    """

    record_version: int = RECORD_VERSION
    bitwright_version: str | None = None
    created: str | None = None
    command: str | None = None
    exit_code: int = 0
    model: ModelFacts = field(default_factory=ModelFacts)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plan: tuple[PlanRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    sensitivity: Sensitivity | None = field(default=None, metadata=NULL)
    size: Size = field(default_factory=Size)
    decision: Evidence | None = None
    left_out: tuple[LeftOut, ...] | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None
    distributions: tuple[Distribution, ...] | None = field(default=None, metadata=NULL)
    verify: tuple[Verification, ...] | None = None
    front: Front | None = None
    smallest: Smallest | None = None
    tuning: Tuning | None = None
    polish: Polished | None = None
    attention: AttentionCost | None = None
    speed: Speed | None = None
    warnings: tuple[str, ...] = ()
    environment: Environment | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
