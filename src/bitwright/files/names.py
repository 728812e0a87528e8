"""Tensor names in a model's files: with or without the base model's prefix, in today's or an older spelling."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from bitwright.errors import CheckpointError

T = TypeVar("T")

# Ends of names in checkpoints from before 2019 -> as transformers has them, which renames just these.
_OLD_ENDS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def renamed(tensors: Mapping[str, T], where: Path) -> dict[str, T]:
    """What a file holds, by today's names. So no reader needs to know the older names, and no writer writes them.

    Raises:
        CheckpointError: the file holds both names of one tensor.
    """
    found: dict[str, T] = {}
    for name, tensor in tensors.items():
        today = next((name.removesuffix(end) + new for end, new in _OLD_ENDS.items() if name.endswith(end)), name)
        if today in found or (today != name and today in tensors):
            raise CheckpointError(
                f"{where}: the file holds {name} and {today}, which are two names for one tensor; remove one"
            )
        found[today] = tensor
    return found


def name_in(names: Collection[str], name: str, prefix: str) -> str | None:
    """`name` as it stands in `names`: unchanged, with the base model's prefix, or without it. None if it is not there.

    A head on top of the base model adds the prefix ("bert.encoder…"), the base model alone has none ("encoder…");
    either may be loaded from the other's file.
    """
    if name in names:
        return name
    other = name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else f"{prefix}.{name}"
    return other if prefix and other in names else None


def require_name_in(names: Collection[str], name: str, prefix: str, where: str) -> str:
    """`name_in`, for a name that must be there.

    Raises:
        CheckpointError: it is not; the message gives the nearest name.
    """
    found = name_in(names, name, prefix)
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(name, names, n=1, cutoff=0.0)
        raise CheckpointError(
            f"{where}: there is no {name!r}, with or without the prefix {prefix!r}"
            + (f"; the nearest of its {len(names)} names is {near[0]!r}" if near else "; it is empty")
        )
    return found
