"""The sections of the Record about what was made, from what, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bitwright.record.convert import NULL, REST


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that was quantized.

    source: as it was typed. task: "embedding", "sequence-classification", "token-classification",
    "question-answering" or "text-generation". dtype: of its weights. decoded: of a file of codes, whose dequantized
    weights were the original, their types, the most frequent first.
    """

    name: str | None = None
    source: str | None = None
    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    task: str | None = None
    n_parameters: int | None = None
    n_blocks: int | None = None
    license: str | None = field(default=None, metadata=NULL)
    source_sha256: str | None = None
    dtype: str | None = None
    decoded: tuple[str, ...] | None = None


# Roles of the rows of a plan that are no linears.
EMBEDDING, ATTENTION, HELD = "embedding", "attention", "held"


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What happens to one tensor, a linear's weight or an embedding table; to the attention of one block; or to what
    the engine holds of a language model and no file does.

    block: None outside the blocks. unit: the set of linears that share an input. shape: (N, K). scheme: "16bit" is a
    fallback or an exclusion, and the reason says which. half: the dtype, "bfloat16" or "float16", in which the file
    holds it if it is kept in 16 bit.

    Attention (the role "attention") has no bytes: the row says how the engine computes it, "int8" or "float"; its shape
    is (heads, head size). Nor has what the engine holds (the role "held"): its head, rounded when the model is loaded,
    whose shape is (N, K), and keys and values, whose shape is (heads, head size).
    """

    name: str
    block: int | None
    role: str
    unit: str
    shape: tuple[int, int]
    scheme: str
    method: str
    bytes_before: int
    bytes_after: int
    reason: str
    half: str | None = None

    @property
    def is_linear(self) -> bool:
        """Whether the row is one of a linear."""
        return self.in_files and self.role != EMBEDDING

    @property
    def is_attention(self) -> bool:
        """Whether the row says how attention is computed."""
        return self.role == ATTENTION

    @property
    def in_files(self) -> bool:
        """Whether the row stands for a tensor in the files, not for how the engine computes."""
        return self.role not in (ATTENTION, HELD)


@dataclass(frozen=True, slots=True)
class Starved:
    """An expert that saw too few calibration tokens.

    fewest: tokens that would have been enough. policy: "lent", it uses what all experts of the block saw; "rtn", it
    was rounded to nearest.
    """

    n_tokens: int
    fewest: int
    policy: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """How one linear was quantized, and how well.

    block_emd: Earth Mover's Distance between the outputs of its block before and after.
    n_tokens: calibration tokens that reached it. starved: a text if an earlier release told it otherwise than we do.
    error: ‖XWᵀ − XŴᵀ‖ / ‖XWᵀ‖ over the tokens, before inputs are rounded. error_rtn: the same of plain rounding to
    nearest. error_input: what rounding the inputs is expected to add for an ordinary token, relative to its output.
    transform: "folded", "at the input" or "none: …"; transform_…: what it noted, its strength among them.
    dead_inputs: inputs that were always 0. damping: GPTQ's. damping_failed: lower ones that were tried.
    gave_way_to, reason: the method that took the place of one that failed, and why.
    more: what else a method noted. fallback: whether the linear went back to more bits, so that it is
    not stored as this row says.
    """

    name: str
    block: int | None
    role: str
    unit: str
    block_emd: float | None = None
    scheme: str | None = None
    method: str | None = None
    n_tokens: int | None = None
    starved: Starved | str | None = None
    error_rtn: float | None = None
    transform: str | None = None
    transform_alpha: float | None = None
    transform_statistic: str | None = None
    transform_exponent: float | None = None
    transform_duo: bool | None = None
    transform_error_before: float | None = None
    transform_error_after: float | None = None
    dead_inputs: int | None = None
    damping_failed: str | None = None
    gave_way_to: str | None = None
    reason: str | None = None
    damping: float | None = None
    error: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    error_input: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict, metadata=REST)
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """Weight files of source and result; weights_before and weights_after: what the plan covers of them."""

    source_bytes: int | None = field(default=None, metadata=NULL)
    checkpoint_bytes: int | None = None
    weights_before: int | None = None
    weights_after: int | None = None


ALL_INT8 = "all-INT8"  # in `Speed`, the runtime of the checkpoint with 8 bits for every unit


@dataclass(frozen=True, slots=True)
class Smallest:
    """The outcome of the goal "smallest". bytes: of the result's linears, with scales, zero points and biases.
    int8_bytes: of the same linears with 8 bits for every unit. `Speed` has rows of that variant too, if anything was
    timed.
    """

    bytes: int
    int8_bytes: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file beside the source model that the result does not hold.

    name: with its folders. reason: "weights", which the run did not read (heads in pickles, adapters); "code";
    "large", and no part of a tokenizer; "unknown", of a kind that nobody promises to be safe; "training", its state;
    "copy", the same model in another format; "unread", which nothing reads where it lies, and something would in the
    result.
    """

    name: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class RejectedMethod:
    """A method that no unit got, and the numbers against it."""

    method: str
    why: str


@dataclass(frozen=True, slots=True)
class UnitEvidence:
    """The features of one unit of linears, and the method that it got.

    expected: of each method, the relative error of the outputs that it is expected to leave. The other features are as
    `search.features` measures them.
    """

    unit: str
    role: str
    block: int | None
    scheme: str
    n_weights: int
    k: int
    n_tokens: int
    tail: float
    kurtosis: float
    channel_ratio: float
    error_int4: float
    error_int8: float
    expected: Mapping[str, float]
    foldable: bool
    linears: tuple[str, ...]
    method: str
    reason: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence for the choices of `method: auto`.

    rtn_loss: of the whole model rounded to nearest. tolerable_error: of a unit's outputs. overruled: linears whose
    method the recipe names. cost, resources: what calibrating takes, and what there was.
    """

    reason: str
    rtn_loss: float | None = field(default=None, metadata=NULL)
    tolerable_error: float | None = field(default=None, metadata=NULL)
    overruled: int = 0
    units: tuple[UnitEvidence, ...] = ()
    rejected: tuple[RejectedMethod, ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolishPoint:
    """The losses of polishing after a step. train: the mean since the point before; None before any step."""

    step: int
    train: float | None
    held_out: float


@dataclass(frozen=True, slots=True)
class Polished:
    """How the floats beside the codes were trained.

    loss: what was made small, "KL to float" or "distance to float embeddings". tokens: that were trained on in an
    epoch; held_out_tokens: of the text that chose among the steps. points: the losses, the first before any step. best:
    the step that was kept. stopped: why training ended early. before, after: the loss on tuning texts, where it was
    measured. kept: whether the result has what was trained: not if it was worse there.
    """

    loss: str
    tokens: int
    held_out_tokens: int
    epochs: int
    learning_rate: float
    points: tuple[PolishPoint, ...]
    best: int
    seconds: float
    stopped: str | None = None
    before: float | None = None
    after: float | None = None
    kept: bool = True
