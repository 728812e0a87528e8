"""Checks that a checkpoint and the model of its config agree."""

import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from bitwright.errors import ModelError
from bitwright.families import Architecture
from bitwright.models.sites import base_prefix, find_blocks


def check_names(
    path: Path,
    model: nn.Module,
    missing: Collection[str],
    kept: Collection[str],
    architecture: Architecture,
    task: str,
) -> None:
    """Refuse names that only the checkpoint or only the model has, unless they may differ.

    A pooler that an embedding model's checkpoint lacks is removed: pooling does not use it. Nothing else is mutated.
    What the files hold beyond the last block of a decoder (layers that predict further tokens) is kept.

    Args:
        missing: names of the model that the files lack. kept: names of the files that the model lacks.

    Raises:
        ModelError: weights that config.json calls for are missing, or a block's weights have no place in the model.
    """
    base = base_prefix(model)
    poolers: list[str] = []
    heads: list[str] = []
    broken: list[str] = []
    for key in sorted(missing):
        if key.removeprefix(base).startswith("pooler."):
            poolers.append(key)
        else:
            (heads if base and not key.startswith(base) else broken).append(key)
    if broken:
        raise ModelError(
            f"{path}: the weights lack {listed(broken)}, which config.json needs. The download is incomplete, or "
            "config and weights are of different models"
        )
    if surplus := sorted(key for key in kept if _is_surplus(key, model, architecture)):
        raise ModelError(
            f"{path}: the weights hold {listed(surplus)}, but config.json has no place for it; config and weights "
            "are of different models"
        )
    if heads or (poolers and task != "embedding"):
        raise ModelError(
            f"{path}: the weights lack {listed(heads + poolers)}, so the model's {task} outputs would be random. "
            "Give the fine-tuned model, or load this one with task='embedding'"
        )
    if poolers:
        model.pooler = None  # type: ignore[assignment]  # transformers' own way of having none


def _is_surplus(key: str, model: nn.Module, architecture: Architecture) -> bool:
    """Whether a tensor that the model lacks belongs to a block, and not to one beyond a decoder's last."""
    # What the model class knows that old files hold, and the rotary tables that every layer once stored.
    ignored = (*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq")
    if any(re.search(pattern, key) for pattern in ignored):
        return False
    blocks = r"(^|\.)" + re.escape(architecture.blocks).replace(r"\*", r"\d+") + r"\.(?P<index>\d+)\."
    if (match := re.search(blocks, key)) is None:
        return False
    return not architecture.decodes or int(match["index"]) < len(find_blocks(model, architecture))


def check_finite(tensor: Tensor, where: str) -> None:
    """Refuse NaN and infinity.

    Args:
        where: file and name, for the message.

    Raises:
        ModelError: there are some; how many, and in which dtype.
    """
    # The sum is finite unless a value is not, or it overflows: then a second look decides.
    if tensor.is_floating_point() and not bool(tensor.sum().isfinite()) and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise ModelError(
            f"{where}: {count} of {tensor.numel()} values are NaN or infinite as {tensor.dtype}; the checkpoint is "
            "damaged, or its values do not fit this type"
        )


def listed(keys: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(keys[:3]) + and_more(len(keys) - 3)


def and_more(count: int) -> str:
    """The words for so many more; none for none."""
    return f" and {count} more" if count > 0 else ""
