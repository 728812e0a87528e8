"""Compares single blocks with the user's library, for language models that the library cannot run whole.

What enters a block in Bitwright's forward of a window of tokens enters the library's block too; the first block gets
what the library's embeddings give, and after the last one its head runs. So what is compared are weights and masks,
positions and norms of some blocks, and all that stands around the blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bitwright.calibration.stream import stream_lazily
from bitwright.errors import ModelError, NotFiniteError
from bitwright.models.load import LoadedModel
from bitwright.models.sites import find_blocks
from bitwright.runtime.library import Library

_ROWS = 16  # tokens at the end of the window whose logits are compared: they are as wide as the vocabulary
# How far rows may lie apart, relative to what a block adds to the row: both compute in float32, and order sums
# differently. Relative to the row itself that is less than float32 can tell where a row is long.
_TOLERANCE, _ROUNDING = 1e-3, 1e-5
# Rows that may lie further apart: a router to which two experts are nearly alike may take either.
_ONE_IN = 100
_LEAST = float(np.finfo(np.float32).tiny)
_COPIES = 3  # of a block's weights that are in memory while transformers joins those of its experts

_Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Outputs:
    """entering: the inputs (T, D) of some blocks except the first, by index; the entry after the last block is its
    output. logits_RV: the logits of the last tokens.
    """

    entering: dict[int, _Float32]
    logits_RV: _Float32


def path_of_blocks(loaded: LoadedModel) -> str:
    """The path of the list of blocks in the model, such as "model.layers"."""
    return find_blocks(loaded.model, loaded.architecture)[0][0].rpartition(".")[0]


def compared_bytes(loaded: LoadedModel) -> int:
    """The memory that the library needs for one block and everything outside the blocks, in float32."""
    whole = sum(parameter.numel() for parameter in loaded.model.parameters())
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in _blocks(loaded)]
    return 4 * (whole - sum(blocks) + _COPIES * max(blocks))


def chosen_blocks(loaded: LoadedModel) -> list[int]:
    """The indices of the first, the middle and the last block, and of the first block of each other kind. Kinds differ
    in their weights' shapes or in the type of attention.
    """
    blocks = _blocks(loaded)
    types = getattr(loaded.model.config.get_text_config(), "layer_types", None) or [""] * len(blocks)  # type: ignore[union-attr, operator]
    kinds = [(kind, _shapes(block)) for kind, block in zip(types, blocks, strict=True)]
    chosen = {0, len(blocks) // 2, len(blocks) - 1}
    seen = {kinds[index] for index in chosen}
    return sorted(chosen | {kinds.index(kind) for kind in kinds if kind not in seen})


def compare_blocks(loaded: LoadedModel, library: Library, ids: Sequence[int]) -> str:
    """Compare blocks with those of a `Library` that was opened for `path_of_blocks`. Returns in words which were
    compared.

    ids: of a window of tokens.

    Raises:
        ModelError: a block, or the head, gives other outputs; the message names it and how far they lie apart.
        NotFiniteError: the library's outputs are not finite.
    """
    path, chosen = path_of_blocks(loaded), chosen_blocks(loaded)
    rows, count = min(_ROWS, len(ids)), len(_blocks(loaded))
    ours = _outputs(loaded, ids, chosen, rows)
    for index in chosen:
        before_TD, name = ours.entering.get(index), f"{path}.{index}"
        theirs_TD, *logits = library.block(index, ids, before_TD, rows)
        _check(loaded, library, name, theirs_TD, ours.entering[index + 1], before_TD)
        for logits_RV in logits:
            _check(loaded, library, f"the head after {name}", logits_RV, ours.logits_RV, None)
    numbers = [str(index) for index in chosen]
    listed = " and ".join([", ".join(numbers[:-1]), numbers[-1]] if numbers[1:] else numbers)
    return f"blocks {listed} of {count} compared; Bitwright alone ran the others"


def _outputs(loaded: LoadedModel, ids: Sequence[int], chosen: Sequence[int], rows: int) -> _Outputs:
    """The outputs of Bitwright's forward pass, which runs in the memory of one block."""
    batch = {"input_ids": torch.tensor([list(ids)]), "logits_to_keep": torch.arange(len(ids) - rows, len(ids))}
    wanted = {index + after for index in chosen for after in (0, 1)} - {0}
    entering: dict[int, _Float32] = {}
    for stage in stream_lazily(loaded.reopen(), (), [batch]):
        if stage.index in wanted:
            entering[stage.index] = stage.inputs[0][0].numpy()
        if not stage.blocks:
            logits_RV = stage.outputs()[0].logits[0].numpy()
    return _Outputs(entering, logits_RV)


def _check(
    loaded: LoadedModel, library: Library, name: str, theirs_TD: _Float32, ours_TD: _Float32, before_TD: _Float32 | None
) -> None:
    """Compare two outputs of one block. before_TD: what the outputs were added to; None if to nothing."""
    if not np.isfinite(theirs_TD).all():
        raise NotFiniteError(
            f"{loaded.path}: {name}: the outputs of {library.name} are NaN or infinite; the checkpoint is damaged, or "
            "its values do not fit float32"
        )
    if ours_TD.shape != theirs_TD.shape:
        how = f"have different shapes, {theirs_TD.shape} and {ours_TD.shape}"
    else:
        apart_T = _length(theirs_TD - ours_TD)
        added_T = _length(theirs_TD if before_TD is None else theirs_TD - before_TD)
        near_T = apart_T <= _TOLERANCE * added_T + _ROUNDING * _length(theirs_TD)
        if np.count_nonzero(~near_T) <= len(near_T) // _ONE_IN:
            return
        far = [(float(apart_T[t] / max(added_T[t], _LEAST)), int(t)) for t in np.flatnonzero(~near_T)]
        distance, token = max(far)
        how = f"differ by {distance:.2g} for token {token} of {len(near_T)}"
    raise ModelError(
        f"{loaded.path}: {name}: the outputs of {library.name} and of Bitwright's float model {how}. The result "
        "would not answer as the model does, so nothing was quantized"
    )


def _length(x_TD: _Float32) -> NDArray[np.float64]:
    squares_T: NDArray[np.float64] = np.square(x_TD, dtype=np.float64).sum(axis=1)
    return np.sqrt(squares_T)


def _blocks(loaded: LoadedModel) -> list[nn.Module]:
    return [loaded.model.get_submodule(path) for path, _ in find_blocks(loaded.model, loaded.architecture)]


def _shapes(block: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
