"""Which weights of a float model are codes already, and what is told of them."""

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from bitwright.methods import REPRODUCE
from bitwright.models.source_tensors import SourceTensors
from bitwright.numerics.known_grid import find_codes
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec
from bitwright.plan import Plan

_ROWS = 8  # of a linear, that are looked at first
_LOOSEST = QuantSpec(4, symmetric=False, group_size=32)  # whatever is codes of another spec is codes of this one


@dataclass(frozen=True, slots=True)
class KnownCodes:
    """Answers, for each linear and spec, whether the weight is codes of it. What was found is kept.

    A few rows decide for most models, which have none; a weight is read whole only if these are codes.
    """

    source: SourceTensors
    found: dict[tuple[str, QuantSpec], bool] = field(default_factory=dict)

    def __call__(self, name: str, spec: QuantSpec) -> bool:
        """Whether the weight of this linear is codes.

        Raises:
            CheckpointError: as `SourceTensors`.
        """
        key = name, spec
        if key not in self.found:
            self.found[key] = self._begins(name, spec) and find_codes(self._weight(name), spec) is not None
        return self.found[key]

    def notes(self, plan: Plan) -> list[str]:
        """What is told of a plan: which codes stay, and which would stay in another scheme."""
        kept = Counter(row.scheme for row in plan if row.method == REPRODUCE)
        told = [
            f"the weights of {count} linears are codes of {scheme} already, as after training for 4 bits: these codes "
            "stay, exactly"
            for scheme, count in kept.items()
        ]
        lost = [
            row.name
            for row in plan
            if row.is_linear and row.method != REPRODUCE and (spec := SCHEMES[row.scheme].weight) is not None
            if spec.bits < 8 and row.shape[1] % 32 == 0 and self(row.name, _LOOSEST)
        ]
        if lost:
            told.append(
                f"the weights of {len(lost)} linears (such as {lost[0]}) are codes of 4 bits already, which this "
                "scheme changes; w4a16_g32_asym would keep them"
            )
        return told

    def _begins(self, name: str, spec: QuantSpec) -> bool:
        key = f"{name}, first rows", spec
        if key not in self.found:
            self.found[key] = find_codes(self._weight(name, _ROWS), spec) is not None
        return self.found[key]

    def _weight(self, name: str, rows: int | None = None) -> Tensor:
        weight = f"{name}.weight"
        return self.source[weight] if rows is None else self.source.first_rows(weight, rows)
