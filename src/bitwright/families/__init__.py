"""One row of data per model family, for the quantizer, the engine, the tokenizer and the benchmark.

Imports neither torch nor numpy. Nothing else in Bitwright knows a family by name.
"""

from bitwright.errors import ModelError
from bitwright.families.decoders import DECODERS
from bitwright.families.encoders import ENCODERS
from bitwright.families.row import ROLES, Architecture, Input, Role, Style

__all__ = ["FAMILIES", "ROLES", "Architecture", "Input", "Role", "Style", "architecture_of"]

# model_type of config.json -> row.
FAMILIES: dict[str, Architecture] = ENCODERS | DECODERS


def architecture_of(model_type: str) -> Architecture:
    """The row of a model type.

    Raises:
        ModelError: no such row; the message lists the known ones and says what a new one needs.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    from difflib import get_close_matches

    near = get_close_matches(model_type, FAMILIES, n=1)
    raise ModelError(
        f"Bitwright does not know model_type {model_type!r}"
        + (f" (did you mean {near[0]!r}?)" if near else "")
        + f"; known: {', '.join(sorted(FAMILIES))}. To add it, write a row in bitwright/families/encoders.py or "
        "decoders.py"
    )
