"""How attention is computed, in config.json: `"bitwright_attention": {"int8": [0, 1, 2]}` names blocks by their number.

Only Bitwright's engine follows it. No tensor depends on it, so every other reader may pass it over and compute float
attention, as the engine does where the key is missing. It stands beside `quantization_config`, not in it:
compressed-tensors refuses keys there that it does not know.
"""

from collections.abc import Collection, Mapping
from typing import Any

from bitwright.errors import CheckpointError, brief

ATTENTION_KEY = "bitwright_attention"
_INT8 = "int8"


def attention_section(int8_blocks: Collection[int]) -> dict[str, list[int]]:
    """The value of `ATTENTION_KEY`."""
    return {_INT8: sorted(int8_blocks)}


def parse_attention(config: Mapping[str, Any], where: str) -> frozenset[int]:
    """The blocks whose attention is computed in int8; none if config.json says nothing.

    Raises:
        CheckpointError: what it says is no such object; a way to compute attention that this release lacks.
    """
    where = f"{where}: {ATTENTION_KEY}"
    said = config.get(ATTENTION_KEY)
    if said is None:
        return frozenset()
    if not isinstance(said, dict):
        raise CheckpointError(f'{where}: this must be an object such as {{"{_INT8}": [0, 1]}}, but is {brief(said)}')
    if unknown := [key for key in said if key != _INT8]:
        raise CheckpointError(f"{where}: this release cannot compute attention in {brief(unknown[0])}, only in {_INT8}")
    blocks = said.get(_INT8, [])
    if not isinstance(blocks, list) or any(type(block) is not int or block < 0 for block in blocks):
        raise CheckpointError(f"{where}.{_INT8}: this must be a list of blocks, counted from 0, but is {brief(blocks)}")
    return frozenset(blocks)
