"""The sections of the Record about the effect of quantization on the outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bitwright.record.convert import NULL


@dataclass(frozen=True, slots=True)
class Metric:
    """The metric of the loss. unit: the name of its samples in the plural. protocol: how perplexity was measured."""

    name: str | None = None
    kind: str | None = None
    task: str | None = None
    unit: str | None = None
    label_free: bool | None = None
    higher_is_better: bool | None = None
    protocol: str | None = field(default=None, metadata=NULL)


@dataclass(frozen=True, slots=True)
class KindRow:
    """The loss on one kind of text, of n units, and the bound that it is at most."""

    kind: str
    n: int
    loss: float
    upper: float | None = field(default=None, metadata=NULL)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Agreement with float on built-in texts, beside the user's own that decided.

    loss: the mean over kinds. loss_upper: bound of the loss on a kind that was not tried.
    """

    metric: str
    n: int
    loss: float
    loss_upper: float
    kinds: tuple[KindRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss on held-out data, and the verdict.

    loss_lower, loss_upper: one-sided bounds, each with `confidence`. verdict: "met", "not met", "undecided" or
    "not judged on pairs", which is none: the loss is that of single texts, and the model reads pairs.
    needed_samples: about how many, tuning and held-out together, would decide it. accepted_point_estimate: the budget
    counts as met though undecided. companions: measures beside the metric. texts: what was judged on, for people;
    kinds: of built-in texts, each with its loss, largest first; then `loss` is their mean, and loss_upper the bound for
    a kind that was not tried. languages: of them; languages_left_out: the vocabulary has no words of those.
    calibrated_on: what methods looked at, None for nothing. elsewhere: the loss on other text. judge: the library, with
    its version, that ran the float model, or, "block by block", some of its blocks, whose outputs Bitwright's equal,
    while the loss is relative to Bitwright's own; None if it was Bitwright alone, and a warning says why.
    """

    metric: Metric = field(default_factory=Metric)
    n_tuning: int | None = None
    n_held_out: int | None = None
    float_score: float | None = None
    quantized_score: float | None = None
    loss: float | None = None
    loss_lower: float | None = None
    loss_upper: float | None = None
    confidence: float | None = None
    max_loss: float | None = None
    verdict: str | None = None
    sentence: str | None = None
    needed_samples: int | None = field(default=None, metadata=NULL)
    accepted_point_estimate: bool = False
    companions: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    judge: str | None = None
    texts: str | None = None
    kinds: tuple[KindRow, ...] | None = None
    languages: tuple[str, ...] | None = None
    languages_left_out: tuple[str, ...] | None = None
    calibrated_on: str | None = None
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """The measurements of one combination of schemes in a search, on tuning data; with float attention, unless the
    recipe asks for int8, or speed is what is searched for.

    units: those that got more bits; earlier releases named `unit`, the last of them, alone. schemes: what each of them
    got; earlier releases knew 16 bit alone. chosen: whether it was taken.
    """

    n_fallback: int
    unit: str | None = field(default=None, metadata=NULL)
    units: tuple[str, ...] | None = None
    schemes: tuple[str, ...] | None = None
    chosen: bool = False
    loss: float
    loss_upper: float
    bytes: int
    decided_on: str = "tuning"


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """The loss with int8 attention in one block alone. name: of its module, as in the plan."""

    name: str
    loss: float


@dataclass(frozen=True, slots=True)
class AttentionCost:
    """What int8 attention costs, on tuning data.

    loss_float: with float attention. loss_int8: with int8 attention wherever it might be; loss: where it is. max_added:
    what it was allowed to add. rows: of each block, if it costs too much in all of them.
    """

    loss_float: float
    loss_int8: float
    loss: float
    max_added: float
    rows: tuple[AttentionRow, ...] = ()


@dataclass(frozen=True, slots=True)
class SensitivityRow:
    """How far the outputs moved when a linear, a unit or a group was quantized.

    A group is a role of a block, or with block None of the whole model, and has no unit. mode: "one" was quantized, or
    "all but one". estimate: what stood for the distance where only the most sensitive units were measured: the mean
    squared change of the output, to first order (Fisher); None where everything was measured.
    """

    name: str
    block: int | None
    role: str
    unit: str | None
    mode: str = "one"
    emd: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    rank_flips: float | None = None
    metric_loss: float | None = None
    estimate: float | None = field(default=None, metadata=NULL)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What quantizing parts of the model does to its outputs. rows: linears. metric: the one whose loss is measured."""

    rows: tuple[SensitivityRow, ...] = ()
    units: tuple[SensitivityRow, ...] = ()
    groups: tuple[SensitivityRow, ...] = ()
    spearman_with_metric_loss: float | None = field(default=None, metadata=NULL)
    n_samples: int | None = None
    metric: str | None = None


@dataclass(frozen=True, slots=True)
class Histogram:
    """edges: n + 1; before, after: n shares of the values."""

    edges: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of one quantized linear before and after; activation: None if no sample reached it."""

    name: str
    role: str | None = None
    weight: Histogram | None = field(default=None, metadata=NULL)
    activation: Histogram | None = field(default=None, metadata=NULL)


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a target runtime gives the outputs that it must. ok: None if it was not checked."""

    target: str
    ok: bool | None = field(default=None, metadata=NULL)
    checks: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
