"""The sections of the Record about speed, and about the machine that measured it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from bitwright.record.convert import NULL, REST

Work = Literal["forward", "prefill", "decode"]

# The original that a ratio is relative to: the fastest of these.
ORIGINALS = {"fp32": ("torch fp32",), "bf16": ("torch bf16", "bitwright bf16")}


class Shape(NamedTuple):
    """What is timed. work: "forward", that many sequences of so many tokens; "prefill", prompts of so many tokens, up
    to the logits of the last one; "decode", a token more of that many texts of about so many tokens.
    """

    batch: int
    tokens: int
    work: Work = "forward"

    @property
    def counted(self) -> int:
        """What a sample is divided into for a rate: sequences of a forward, else tokens."""
        return self.batch * (self.tokens if self.work == "prefill" else 1)


def shape_words(shape: Shape) -> str:
    """What is timed, for a reader."""
    tokens = f"{shape.tokens} token{'s' * (shape.tokens != 1)}"
    if shape.work == "forward":
        return f"{shape.batch} × {tokens}"
    if shape.work == "prefill":
        return f"reading a prompt of {tokens}" if shape.batch == 1 else f"reading {shape.batch} prompts of {tokens}"
    return f"writing {'an answer' if shape.batch == 1 else f'{shape.batch} answers at once'}, after {tokens}"


@dataclass(frozen=True, slots=True)
class SpeedRow:
    """One runtime and shape. work: "forward", batch sequences of so many tokens; "prefill", prompts of so many;
    "decode", a token more of batch texts of about so many. per_second: sequences, or tokens of a language model.
    ratio_to_…: how many times as fast; None if that was not measured. note: how a rival was converted.
    """

    runtime: str
    batch: int
    tokens: int
    median_ms: float | None = None
    min_ms: float | None = None
    per_second: float | None = None
    ratio_to_fp32: float | None = field(default=None, metadata=NULL)
    ratio_to_bf16: float | None = field(default=None, metadata=NULL)
    note: str | None = field(default=None, metadata=NULL)
    work: Work = "forward"

    @property
    def shape(self) -> Shape:
        """What was timed."""
        return Shape(self.batch, self.tokens, self.work)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A runtime or shape that was not measured. runtime: "all" for a shape that is too long for the model, or that met
    a busy machine.
    """

    runtime: str
    reason: str


@dataclass(frozen=True, slots=True)
class Speed:
    """What `runtime.bench` measured.

    other_load_cores: cores that other programs kept busy in the rounds that count. too_busy: they left too few quiet
    rounds for any figure, so there are no rows. load_s, peak_rss_mib: by runtime, and what they include.
    cosine_to_fp32: by runtime, of outputs for one input. more: what else it told.
    """

    threads: int | None = None
    rounds: int | None = None
    block_s: float | None = None
    rows: tuple[SpeedRow, ...] = ()
    other_load_cores: float | None = None
    too_busy: bool = False
    peak_rss_mib: Mapping[str, float] = field(default_factory=dict)
    peak_rss_includes: str | None = None
    load_s: Mapping[str, float] = field(default_factory=dict)
    load_includes: str | None = None
    cosine_to_fp32: Mapping[str, float] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A loss on held-out data, with its one-sided bounds."""

    loss: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True)
class FrontRow:
    """One variant. speedup: the geometric mean over shapes, against the faster of torch fp32 and bf16. loss,
    loss_upper: on tuning data, which decides. units: those with more bits.
    """

    n_fallback: int
    units: tuple[str, ...]
    speedup: float
    loss: float
    loss_upper: float
    held_out: HeldOut
    bytes: int
    on_front: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class Front:
    """Variants in which different numbers of the `n_units` units get more bits. met: whether one is fast enough and
    inside the budget. busy: other programs disturbed the timing, so nothing is met.
    """

    min_speedup: float
    met: bool
    rows: tuple[FrontRow, ...]
    n_units: int
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and its libraries, None for one that is not installed. isa: the instruction set in use."""

    cpu: str | None = None
    cores: int | None = field(default=None, metadata=NULL)
    isa: str | None = None
    os: str | None = None
    python: str | None = None
    torch: str | None = None
    transformers: str | None = field(default=None, metadata=NULL)
    tokenizers: str | None = None
    sentence_transformers: str | None = None
    bitwright: str | None = None
    threads: int | None = None
