"""Runs a model block by block: observes a block's inputs, lets it change, and passes its outputs to the next block.

Memory: the output of one block per batch, what the caller keeps of one block, and, where
blocks are filled and emptied by the caller, the weights of one block.

A block's inputs are more than hidden states: masks, rotary tables or position biases that the model computes, in some
families differently per layer; and DeBERTa may convolve between two blocks. So no block is called from here. Instead
the model runs its own forward, in which every block that is done is replaced by what it put out, and which ends at the
block under way. What precedes the blocks is computed anew each time: embeddings, about a hundredth of a block.

A stage is as many block calls as have to be run together: one block; of blocks that run several times in one forward
(ALBERT), all runs, and all blocks whose runs interleave with them.

One file although a little long: a stage and the walk that makes stages share the state of every batch.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bitwright.calibration.hooks import hooked
from bitwright.calibration.precision import fast_forward
from bitwright.errors import ModelError
from bitwright.families import Architecture
from bitwright.models.forward import forward
from bitwright.models.load import LoadedModel, materialise, release
from bitwright.models.sites import LinearSite, find_blocks

Stats = TypeVar("Stats")
Batch = Mapping[str, Tensor]
Observe = Callable[..., Stats]
Beside = Callable[[int], Mapping[str, Tensor]]
Resume = tuple[int, Sequence[Any] | None]  # index of a stage, and what it starts from

_EXPERT = re.compile(r"\.experts\.(?P<index>\d+)\.")


class Visit(NamedTuple):
    """What is done to the blocks of these paths before they run, and after."""

    enter: Callable[[Sequence[str]], object]
    leave: Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class _Walk:
    """How one model is run in parts.

    blocks: its blocks. order: index of the block of each block call of one forward. options: keyword arguments of every
    forward beside the batch. fast: compute in bf16 where the CPU can, but for what adds up and normalises.
    """

    model: nn.Module
    blocks: list[nn.Module]
    order: list[int]
    options: dict[str, Any]
    fast: bool

    def run(self, batch: Batch, before: Any, begin: int, end: int | None) -> Any:
        """Run the block calls [begin, end) of one forward on what call begin − 1 put out; return the output of end − 1.

        All earlier calls give that output too: only the last one's matters, since none looks at its input. `end=None`
        goes on to the end of the forward and returns the model's output.

        Raises:
            ModelError: the forward calls other blocks than the architecture table says.
        """
        calls = 0

        def stand_in(index: int, block_forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            call, calls = calls, calls + 1
            if call >= len(self.order) or self.order[call] != index:
                expected = f"block {self.order[call]}" if call < len(self.order) else "no more"
                raise ModelError(
                    f"call {call} of a forward runs block {index}, but the architecture table expects {expected}. "
                    "The table's path of blocks, or its number of runs, is wrong for this model"
                )
            if call < begin:
                return before
            output = block_forward(*args, **kwargs)
            if call + 1 == end:
                raise _Reached(output)
            return output

        try:
            with (
                forward(_place(self.model), but=(_Reached, _Failed)),
                _around(self.blocks, stand_in), torch.no_grad(), fast_forward() if self.fast else nullcontext(),
            ):  # fmt: skip
                output = self.model(**batch, **self.options)
        except _Reached as reached:
            return reached.output
        except _Failed as failed:
            raise failed.error from None
        if end is not None or calls < len(self.order):
            raise ModelError(
                f"a forward ended after {calls} block calls, but the architecture table expects {len(self.order)}. "
                "The table's path of blocks, or its number of runs, is wrong for this model"
            )
        return output


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that run together. The last stage is everything after the blocks.

    index: of the stage. blocks: indices of its blocks, () for the last stage: poolers and heads. sites: its linears.
    fast: whether it computes in bf16 where the CPU can.
    inputs: what it starts from, by batch: the output of the stage before; None for the first. The list is filled anew
        when the next stage begins. Saved, they let `stream_stages` resume here.
    originals: what it would start from in the float model, likewise; empty where that is not followed.
    """

    index: int
    blocks: tuple[int, ...]
    sites: tuple[LinearSite, ...]
    inputs: list[Any]
    originals: list[Any]
    _walk: _Walk = field(repr=False)
    _batches: Sequence[Batch] = field(repr=False)
    _span: tuple[int, int | None] = field(repr=False)
    _ahead: dict[int, Any] = field(repr=False)  # what the next stage would start from in the float model

    @property
    def fast(self) -> bool:
        return self._walk.fast

    def outputs(self, indices: Sequence[int] | None = None) -> list[Any]:
        """Run the stage with its present modules on its inputs: the output of the block, or in the last stage of the
        model.

        indices: of the batches to run; by default all.
        """
        chosen = range(len(self._batches)) if indices is None else indices
        return [self._walk.run(self._batches[index], self.inputs[index], *self._span) for index in chosen]

    def original_inputs(self, sites: Sequence[LinearSite], index: int) -> dict[str, Tensor]:
        """What these linears read of one batch in the float model: only of those that run once, and see the same tokens
        in both models.

        The stage's modules must compute as the float model's. This must have run for all batches before they do not:
        the next stage starts from what it puts out.
        """
        names = {site.name for site in sites if site.is_whole}
        found: dict[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Tensor, ...], *, name: str) -> None:
            found[name] = args[0]
            if index in self._ahead and len(found) == len(names):
                raise _Reached(None)

        with hooked(self._walk.model, before={name: partial(note, name=name) for name in names}):
            output = self._walk.run(self._batches[index], self.originals[index], *self._span)
        self._ahead.setdefault(index, output)
        return found

    def observe(
        self, sites: Sequence[LinearSite], observe: Observe[Stats], beside: Beside | None = None
    ) -> dict[str, Stats]:
        """The statistics of these linears' inputs, by name, from one run over all batches.

        Linears that read the same tensors share one statistics object. An expert that no token reaches has no entry.

        observe: `observe(stats or None, x_MK) -> stats`, x_MK the inputs of one call, floating, without those of
            padding tokens.
        beside: gives, by the index of a batch, what else is known of the tokens that enter a linear, by name. If there
            is something, it is cut as the inputs are, and handed to `observe` after them.
        """
        leaders: dict[tuple[str, int], str] = {}
        for site in sites:
            leaders.setdefault(site.reads, site.name)
        stats: dict[str, Stats] = {}
        kept = _Kept()

        # Once everything that is asked for was seen, the rest of the stage is not worth running.
        stops = all(site.is_whole for site in sites)
        unseen: set[str] = set()
        more: Mapping[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Tensor, ...], *, name: str) -> None:
            rows_MK = kept.rows(args[0], name)
            besides = [kept.rows(more[name], name)] if name in more else []
            if len(rows_MK):
                with torch.autocast("cpu", enabled=False):  # whose products would come out in bf16
                    try:
                        stats[name] = observe(stats.get(name), rows_MK, *besides)
                    except Exception as error:
                        raise _Failed(error) from error
            unseen.discard(name)
            if stops and not unseen:
                raise _Reached(None)

        experts = {site.name.rsplit(".", 2)[0] for site in sites if site.role == "expert"}
        hooks = {name: partial(note, name=name) for name in leaders.values()} | dict.fromkeys(experts, kept.route)
        for index, (batch, before) in enumerate(zip(self._batches, self.inputs, strict=True)):
            more = {} if beside is None else beside(index)
            kept.mask_BT = batch["attention_mask"].bool() if "attention_mask" in batch else None
            unseen.update(leaders.values())
            with hooked(self._walk.model, before=hooks):
                self._walk.run(batch, before, *self._span)
        found = {site.name: leaders[site.reads] for site in sites}
        return {name: stats[leader] for name, leader in found.items() if leader in stats}


class _Kept:
    """Finds the tokens of a linear's input that are not padding, from the batch's mask and the block's choice of
    experts.
    """

    mask_BT: Tensor | None = None
    chosen_MS: Tensor

    def route(self, _: nn.Module, args: tuple[Tensor, Tensor, Tensor]) -> None:
        """Note to which experts each token goes, before the experts of a block run."""
        self.chosen_MS = args[1]

    def rows(self, x: Tensor, name: str) -> Tensor:
        """The inputs (M, K) of a linear without those of padding tokens. A tensor that is neither one row per token nor
        an expert's share of them (a pooled text, DeBERTa's table of relative positions) is taken whole."""
        x_MK = x.reshape(-1, x.shape[-1])
        if self.mask_BT is None:
            return x_MK
        if match := _EXPERT.search(name):
            mine_M = (self.chosen_MS == int(match["index"])).any(-1)
            return x_MK[self.mask_BT.reshape(-1)[mine_M]]
        flat = x.shape[:-1] in (self.mask_BT.shape, self.mask_BT.reshape(-1).shape)
        return x_MK[self.mask_BT.reshape(-1)] if flat else x_MK


def stream_stages(
    model: nn.Module,
    architecture: Architecture,
    sites: Sequence[LinearSite],
    batches: Sequence[Batch],
    *,
    visit: Visit | None = None,
    resume: Resume = (0, None),
    fast: bool = False,
    originals: bool = False,
) -> Iterator[Stage]:
    """The stages of `model` in forward order, poolers and heads last.

    When the caller asks for the next stage, this one is run once more, with whatever the caller has made of its
    modules: the next one sees that in its inputs. A caller that needs no more stops asking, and saves that run.

    Args:
        model: in evaluation mode; the same after the last stage as before the first, but for what the caller does.
        sites: linears, from `find_linears`, to be handed out with their stage.
        batches: keyword arguments of the model's forward: token ids (B, T), and their 0/1 attention_mask (B, T) where
            there is padding; what the mask excludes is not observed.
        visit: called with the paths of a stage's blocks before it runs, and after it; with () for the last.
        resume: the stage to begin with, and the `inputs` that it had; its `originals` behind them if they are followed.
        fast: what linears and attention put out is bf16 where the CPU multiplies that; the residual stream and the
            norms stay float32. For calibration, never to judge a model.
        originals: follow the float model beside the one that changes. A caller that changes a stage asks for its
            `original_inputs` first.

    Raises:
        ModelError: there are no batches, the blocks are not run as the architecture table says, or there is no such
            stage or there are not its inputs.
    """
    if not batches:
        raise ModelError("calibration needs at least one batch")
    begin, inputs = resume
    found = find_blocks(model, architecture)
    order = _order(found)
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    walk = _Walk(model, [model.get_submodule(path) for path, _ in found], order, options, fast)
    spans: list[tuple[int, int | None]] = [*_spans(order), (len(order), None)]
    if not 0 <= begin < len(spans):
        raise ModelError(f"there is no stage {begin} to resume at; the model has {len(spans)}, counted from 0")
    n_states = len(batches) * (1 + originals)
    if begin and (inputs is None or len(inputs) != n_states):
        n_inputs = "no" if inputs is None else str(len(inputs))
        raise ModelError(f"resuming at stage {begin} needs inputs for {len(batches)} batches, but got {n_inputs}")
    states: list[Any] = [None] * n_states if inputs is None else list(inputs)
    state, original = states[: len(batches)], states[len(batches) :]
    for index in range(begin, len(spans)):
        first, last = spans[index]
        blocks = tuple(dict.fromkeys(order[first:last]))
        here = tuple(site for site in sites if (site.block in blocks if blocks else site.block is None))
        paths = [found[block][0] for block in blocks]
        if visit is not None:
            visit.enter(paths)
        try:
            ahead: dict[int, Any] = {}
            yield Stage(index, blocks, here, state, original, walk, batches, (first, last), ahead)
            if last is not None:
                for number, batch in enumerate(batches):
                    if originals:
                        if number not in ahead:  # nobody observed the stage, so that nobody changed it
                            ahead[number] = walk.run(batch, original[number], first, last)
                        original[number] = ahead.pop(number)
                    state[number] = walk.run(batch, state[number], first, last)
        finally:
            if visit is not None:
                visit.leave(paths)


def stream_lazily(
    opened: LoadedModel, sites: Sequence[LinearSite], batches: Sequence[Batch], *, resume: Resume = (0, None),
    fast: bool = False, originals: bool = False,
) -> Iterator[Stage]:  # fmt: skip
    """`stream_stages` for a lazily opened model: each block is loaded from the files and emptied again.

    What is swapped in or folded in a block is gone when the next one begins.
    """
    return stream_stages(
        opened.model, opened.architecture, sites, batches, resume=resume, fast=fast, originals=originals,
        visit=Visit(partial(_each, materialise, opened), partial(_each, release, opened)),
    )  # fmt: skip


def stream_outputs(
    loaded: LoadedModel,
    batches: Sequence[Batch],
    visit: Visit | None = None,
    *,
    fast: bool = False,
) -> Iterator[Any]:
    """The model's outputs, batch by batch, in the memory of one block and the hidden states of all batches.

    visit, fast: as in `stream_stages`; by default the blocks of a model that was opened lazily are filled from
        its files and emptied again.
    """
    is_empty = any(parameter.is_meta for parameter in loaded.model.parameters())
    if is_empty and visit is None:
        stages = stream_lazily(loaded, (), batches, fast=fast)
    else:
        stages = stream_stages(loaded.model, loaded.architecture, (), batches, visit=visit, fast=fast)
    for stage in stages:
        if not stage.blocks:
            for index in range(len(batches)):
                yield stage.outputs([index])[0]


def _place(model: nn.Module) -> str:
    """The model's name for messages: the place of its config, or its class."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def _each(act: Callable[[LoadedModel, str], None], loaded: LoadedModel, paths: Sequence[str]) -> None:
    for path in paths:
        act(loaded, path)


class _Reached(Exception):
    """Not an error: it carries a block's output out of a forward that ends there."""

    def __init__(self, output: Any) -> None:
        self.output = output


class _Failed(Exception):
    """It carries what a caller's function raises out of a forward, whose own errors are a model's."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _order(blocks: Sequence[tuple[str, int]]) -> list[int]:
    """Index of the block of each block call of one forward: every list of blocks is run through so many times, one
    list after the other.

    blocks: (path, number of calls), from `find_blocks`.
    """
    order = []
    for _, members in groupby(enumerate(blocks), key=lambda item: item[1][0].rpartition(".")[0]):
        entries = list(members)
        order += [index for index, _ in entries] * entries[0][1][1]
    return order


def _spans(order: Sequence[int]) -> list[tuple[int, int]]:
    """Cut the calls into the shortest ranges [begin, end) such that all calls of a block lie in one range."""
    last = {block: call for call, block in enumerate(order)}
    spans, begin, reach = [], 0, 0
    for call, block in enumerate(order):
        reach = max(reach, last[block])
        if call == reach:
            spans.append((begin, call + 1))
            begin = call + 1
    return spans


@contextmanager
def _around(blocks: Sequence[nn.Module], wrapper: Callable[..., Any]) -> Iterator[None]:
    """Call `wrapper(index, forward, *args, **kwargs)` instead of each block's forward.

    Through the instance, not by a hook: a hook cannot keep the forward from running.
    """
    for index, block in enumerate(blocks):
        block.__dict__["forward"] = partial(wrapper, index, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]
