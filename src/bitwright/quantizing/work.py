"""The state of a stage during the work: its plan, and what is known about its linears.

A stage is a block, or several that must be observed together. Its linears come in sets that read the same input: a
transform is chosen for such a set, a rounding for each linear.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bitwright.calibration.observers import LayerStats
from bitwright.calibration.stream import Stage
from bitwright.methods import METHODS
from bitwright.models.rescale import SharedInput
from bitwright.models.sites import LinearSite
from bitwright.numerics.histogram import Histogram
from bitwright.numerics.linear import InputTransform, QuantizedLinear
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.quantizing.statistics import Statistics
from bitwright.recipe import Recipe, range_of
from bitwright.record import PlanRow

LossWeights = Callable[[int], Mapping[str, Tensor]]  # by batch: (B, T, groups) for linears, by name
Weights = dict[str, tuple[Tensor, Tensor | None]]  # weight and bias of linears, by name

EXACT_RANGES = ("absmax", "min_max")  # static input ranges that follow from each feature's extremes


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What is to be done with the stages of a model.

    rows: the plan's rows of the linears to quantize, by name. inputs: the sets that read one input, in forward order.
    loss_weights: where errors are weighted by the loss, how much each token counts in each group of a linear's outputs.
    """

    rows: Mapping[str, PlanRow]
    inputs: Sequence[SharedInput]
    recipe: Recipe
    loss_weights: LossWeights | None = None

    def is_gptq(self, name: str) -> bool:
        """Whether a linear is rounded by GPTQ."""
        return METHODS[self.rows[name].method].rounding == "gptq"


@dataclass(slots=True)
class Work:
    """A stage under way.

    sites: its linears that are quantized. sample, before: batches whose outputs are compared, and the stage's outputs
    for them before anything was changed. stats: of every linear's input, transformed. applied: transforms that did not
    fold, by linear. histograms: of transformed inputs, where a static range needs them. notes: what the Record says of
    each linear. changed: parameters that a fold changed. layers: what was made; rebiased: those of them whose bias is
    another than the model's. originals: weights before they were rounded, where inputs are observed again afterwards.
    weighted: statistics of inputs weighted by the loss, for each group of a linear's outputs.
    """

    model: nn.Module
    stage: Stage
    plan: StagePlan
    sites: list[LinearSite]
    sample: range
    before: list[Any]
    stats: Statistics = field(default_factory=Statistics)
    weighted: dict[str, tuple[LayerStats, ...]] = field(default_factory=dict)
    applied: dict[str, InputTransform] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    layers: dict[str, QuantizedLinear] = field(default_factory=dict)
    rebiased: set[str] = field(default_factory=set)
    originals: Weights = field(default_factory=dict)

    def weights(self, names: Iterable[str]) -> Weights:
        """What these linears hold, not copied."""
        linears = {name: self.linear(name) for name in names}
        return {name: (x.weight.data, None if x.bias is None else x.bias.data) for name, x in linears.items()}

    def keep_originals(self, names: Iterable[str]) -> None:
        """Copy what these linears hold, before it is rounded."""
        self.originals = {
            name: (weight_NK.clone(), None if bias_N is None else bias_N.clone())
            for name, (weight_NK, bias_N) in self.weights(names).items()
        }

    def put(self, weights: Weights) -> None:
        """Let these linears hold these, not copied."""
        for name, (weight_NK, bias_N) in weights.items():
            linear = self.linear(name)
            linear.weight.data = weight_NK
            if bias_N is not None:
                linear.bias.data = bias_N

    def scheme(self, name: str) -> Scheme:
        """The scheme of one linear."""
        return SCHEMES[self.plan.rows[name].scheme]

    def linear(self, name: str) -> nn.Linear:
        """The module of one linear."""
        module = self.model.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module

    def chosen(self, shared: SharedInput) -> list[str]:
        """The linears that are quantized of those that read an input."""
        return [name for name in shared.sites if name in self.plan.rows]

    def needs_histogram(self, names: Iterable[str]) -> bool:
        """Whether a range of these linears' inputs is static and follows from more than extremes."""
        searched = [name for name in names if self.input_range(name) not in EXACT_RANGES]
        specs = [self.scheme(name).input for name in searched]
        return any(spec and not spec.dynamic for spec in specs)

    def input_range(self, name: str) -> str:
        """How the range of one linear's static input is chosen."""
        return range_of(self.plan.recipe, self.plan.rows[name])
