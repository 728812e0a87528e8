"""Calibration block by block: statistics of what a block's linears read, then the next block on what this one became.

The only file with hooks. Memory: the output of one block per batch, and the statistics of one block.

A block's inputs are more than hidden states: masks, rotary tables or position biases that the model computes, in some
families differently per layer; and DeBERTa may convolve between two blocks. So no block is called from here. Instead
the model runs its own forward, in which every block that is done is replaced by what it put out, and which ends at the
block under way. What precedes the blocks is computed anew each time: embeddings, about a hundredth of a block.

A block that runs several times in one forward (ALBERT) gets statistics merged over all its runs, and is handed out
after the last; blocks whose runs interleave are observed together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bitwright.errors import ModelError
from bitwright.models.architectures import Architecture, LinearSite, find_blocks

Stats = TypeVar("Stats")
Batch = Mapping[str, Tensor]
Observe = Callable[[Stats | None, Tensor], Stats]


def stream_blocks(
    model: nn.Module,
    architecture: Architecture,
    sites: Sequence[LinearSite],
    batches: Sequence[Batch],
    observe: Observe[Stats],
) -> Iterator[tuple[int | None, dict[str, Stats]]]:
    """Yield (block, statistics by linear name) for each block that has sites, in forward order; poolers and heads, as
    block None, last.

    Whatever the caller does to a block before asking for the next one (swapping its linears, rounding their weights)
    the next one sees in its inputs. Linears that read the same tensors share one statistics object.

    model: in evaluation mode; the same after the last block as before the first, but for what the caller does.
    sites: the linears to observe, from `find_linears`.
    batches: keyword arguments of the model's forward: token ids (B, T), and their 0/1 attention_mask (B, T) where there
        is padding; what the mask excludes is not observed.
    observe: `observe(stats or None, x_MK) -> stats`, x_MK the inputs of one call, floating.

    Raises:
        ModelError: there are no batches, or two batches run different blocks.
    """
    if not batches:
        raise ModelError("calibration needs at least one batch")
    blocks = [model.get_submodule(path) for path, _ in find_blocks(model, architecture)]
    calls = _calls(model, blocks, batches[0])
    outputs: list[Any] = [None] * len(batches)
    for begin, end in _stages(calls):
        here = [site for site in sites if site.block in calls[begin:end]]
        if here:
            run = partial(_run, model, blocks, begin=begin, end=end)
            stats = _observed(model, here, batches, outputs, observe, run)
            for block in dict.fromkeys(site.block for site in here):
                yield block, {site.name: stats[site.name] for site in here if site.block == block}
        outputs = [
            _run(model, blocks, batch, before, begin=begin, end=end)
            for batch, before in zip(batches, outputs, strict=True)
        ]
    heads = [site for site in sites if site.block is None]
    if heads:
        run = partial(_run, model, blocks, begin=len(calls), end=None)
        yield None, _observed(model, heads, batches, outputs, observe, run)


class _Reached(Exception):
    """Not an error: it carries a block's output out of a forward that ends there."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _run(model: nn.Module, blocks: list[nn.Module], batch: Batch, before: Any, *, begin: int, end: int | None) -> Any:
    """Run the block calls [begin, end) of one forward on what call begin − 1 put out; return the output of end − 1.

    All earlier calls give that output too: only the last one's matters, since none looks at its input. `end=None` goes
    on to the end of the forward and returns nothing.
    """
    counter = count()

    def stand_in(_: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call = next(counter)
        if call < begin:
            return before
        output = forward(*args, **kwargs)
        if end is not None and call == end - 1:
            raise _Reached(output)
        return output

    try:
        with _around(blocks, stand_in), torch.no_grad():
            model(**batch)
    except _Reached as reached:
        return reached.output
    if end is not None:
        raise ModelError(
            f"a forward ended after {next(counter)} block calls; on the first batch it made at least {end}"
        )
    return None


def _calls(model: nn.Module, blocks: list[nn.Module], batch: Batch) -> list[int]:
    """Index of the block of each block call of one forward, in order."""
    calls: list[int] = []

    def note(index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append(index)
        return forward(*args, **kwargs)

    with _around(blocks, note), torch.no_grad():
        model(**batch)
    return calls


def _stages(calls: list[int]) -> list[tuple[int, int]]:
    """Cut the calls into the shortest ranges [begin, end) such that all calls of a block lie in one range."""
    last = {block: call for call, block in enumerate(calls)}
    stages, begin, reach = [], 0, 0
    for call, block in enumerate(calls):
        reach = max(reach, last[block])
        if call == reach:
            stages.append((begin, call + 1))
            begin = call + 1
    return stages


@contextmanager
def _around(blocks: list[nn.Module], wrapper: Callable[..., Any]) -> Iterator[None]:
    """Have `wrapper(index, forward, *args, **kwargs)` called in place of each block's forward.

    Through the instance, not by a hook: a hook cannot keep the forward from running.
    """
    for index, block in enumerate(blocks):
        block.__dict__["forward"] = partial(wrapper, index, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def _observed(
    model: nn.Module,
    sites: Sequence[LinearSite],
    batches: Sequence[Batch],
    outputs: Sequence[Any],
    observe: Observe[Stats],
    run: Callable[[Batch, Any], Any],
) -> dict[str, Stats]:
    """Statistics of every site. Linears of one unit and as many calls read the same; one is observed."""
    leaders: dict[tuple[str, int], str] = {}
    for site in sites:
        leaders.setdefault((site.unit, site.calls), site.name)
    stats: dict[str, Stats] = {}
    kept_BT: Tensor | None = None

    def note(_: nn.Module, args: tuple[Tensor, ...], *, name: str) -> None:
        stats[name] = observe(stats.get(name), _rows(args[0], kept_BT))

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(note, name=name)) for name in leaders.values()]
    try:
        for batch, before in zip(batches, outputs, strict=True):
            kept_BT = batch["attention_mask"].bool() if "attention_mask" in batch else None
            run(batch, before)
    finally:
        for hook in hooks:
            hook.remove()
    return {site.name: stats[leaders[site.unit, site.calls]] for site in sites}


def _rows(x: Tensor, kept_BT: Tensor | None) -> Tensor:
    """The inputs (M, K) of a linear, without those of padding tokens. A tensor that is not one row per token (a pooled
    text, DeBERTa's table of relative positions) is taken whole."""
    if kept_BT is not None and x.shape[:-1] == kept_BT.shape:
        return x[kept_BT]
    return x.reshape(-1, x.shape[-1])
