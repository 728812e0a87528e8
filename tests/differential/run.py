"""Many layouts: verdicts, a table of them, and the smallest layout in which a fault still shows."""

import json
import multiprocessing
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.differential.compare import (
    CRASHED,
    INT8_FACTOR,
    REFUSED,
    RIGHT,
    UNLOADABLE,
    WRONG,
    Verdict,
    judge,
    reason_of,
)
from tests.differential.layouts import DIMENSIONS, Layout, draw, odd_ones, settle

LEAST_RESULTS = 0.85  # of the layouts that the library loads
_PLAIN = {dimension.name: dimension.choices[0] for dimension in DIMENSIONS}


class Judged(NamedTuple):
    """A layout and what became of it. smallest: the least of it with which the same happens, if that was asked for."""

    layout: Layout
    verdict: Verdict
    smallest: Layout | None = None

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        made = {"layout": self.layout, "odd": odd_ones(self.layout), "verdict": self.verdict.data()}
        return made if self.smallest is None else made | {"smallest": odd_ones(self.smallest)}


def judge_all(
    seeds: Iterable[int], *, jobs: int = 1, shrinks: bool = False, plain: Sequence[str] = (), in_16_bit: int = 1
) -> Iterator[Judged]:
    """In the order of the seeds. The rest as in `judge_seed`."""
    one = partial(judge_seed, shrinks=shrinks, plain=tuple(plain), in_16_bit=in_16_bit)
    if jobs == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(one, seeds, chunksize=4)


def judge_seed(seed: int, *, shrinks: bool = False, plain: Sequence[str] = (), in_16_bit: int = 1) -> Judged:
    """The layout of a seed.

    shrinks: whether the smallest one is looked for, of a layout that is not right. plain: dimensions that are made so.
    in_16_bit: one in so many seeds is judged in 16 bit, too.
    """
    layout = settle(draw(seed) | {name: _PLAIN[name] for name in plain})
    return judge_layout(layout, shrinks=shrinks, sixteen_bits=seed % in_16_bit == 0)


def judge_layout(layout: Layout, *, shrinks: bool = False, sixteen_bits: bool = True) -> Judged:
    """As `judge_seed`, of a layout that is given."""
    verdict = _judge(layout, sixteen_bits=sixteen_bits)
    failed = verdict.kind in (WRONG, CRASHED, REFUSED)
    return Judged(layout, verdict, _shrunk(layout, verdict) if shrinks and failed else None)


def _judge(layout: Layout, *, sixteen_bits: bool = True) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="layout-") as folder:
        return judge(layout, Path(folder) / "of", sixteen_bits=sixteen_bits)


def _shrunk(layout: Layout, verdict: Verdict) -> Layout:
    """The layout with every dimension made plain that can be, the same kind of verdict in the same stage kept."""
    for name, plain in reversed(_PLAIN.items()):
        if layout.get(name, plain) == plain:
            continue
        other = settle(layout | {name: plain})
        found = _judge(other)
        if (found.kind, found.stage) == (verdict.kind, verdict.stage):
            layout = other
    return layout


def counts(judged: Iterable[Judged]) -> Counter[str]:
    """How many layouts there are of each kind of verdict."""
    return Counter(one.verdict.kind for one in judged)


def reasons(judged: Iterable[Judged]) -> Counter[str]:
    """The refusals by reason, without what is particular to a directory. Each is a row of docs/compatibility.md."""
    return Counter(reason_of(one.verdict.reason) for one in judged if one.verdict.kind == REFUSED)


def table(judged: list[Judged]) -> str:
    """What is printed: figures, the reasons of each kind, and the choices that fail most."""
    if not judged:
        return "no layouts"
    kinds = counts(judged)
    loaded = len(judged) - kinds[UNLOADABLE]
    lines = [f"{len(judged)} layouts, {loaded} loaded by the library; of these"]
    lines += [
        f"  {kinds[kind]:5} {kind:8} {kinds[kind] / max(loaded, 1):6.1%}" for kind in (RIGHT, WRONG, CRASHED, REFUSED)
    ]
    texts, ours, theirs = (sum(numbers) for numbers in zip(*(one.verdict.strict for one in judged), strict=True))
    layouts = [sum(one.verdict.strict[at] > 0 for one in judged) for at in (1, 2)]
    lines.append(
        f"INT8, {texts} texts: more than {INT8_FACTOR:g} times as far as the library's forward with the same rounded "
        f"weights are {ours} of our answers (in {layouts[0]} layouts), and {theirs} of its own when it has bf16 "
        f"between the linears (in {layouts[1]})"
    )
    for kind in (UNLOADABLE, REFUSED, CRASHED, WRONG):
        seeds = defaultdict(list)
        for one in judged:
            if one.verdict.kind == kind:
                seeds[f"{one.verdict.stage}: {reason_of(one.verdict.reason)}"].append(one.layout["seed"])
        lines += ["", kind] if seeds else []
        for reason, found in sorted(seeds.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(found):4} × {reason}  [{', '.join(map(str, found[:6]))}]")
    smallest = Counter(
        f"{one.verdict.kind} {one.verdict.stage}: {json.dumps(odd_ones(one.smallest), ensure_ascii=False)}"
        for one in judged
        if one.smallest is not None
    )
    lines += ["", "what is left of failing layouts"] if smallest else []
    lines += [f"  {number:4} × {what}" for what, number in smallest.most_common()]
    return "\n".join(lines)


def check(judged: list[Judged], most_wrong: int = 0) -> None:
    """Layouts are right, or refused for a reason that seldom holds."""
    kinds = counts(judged)
    assert kinds[WRONG] <= most_wrong, faults(judged, WRONG)
    assert not kinds[CRASHED], faults(judged, CRASHED)
    assert kinds[RIGHT] >= LEAST_RESULTS * (kinds[RIGHT] + kinds[REFUSED]), table(judged)


def faults(judged: list[Judged], kind: str) -> str:
    """The layouts of one kind, with what is odd in them and the figures."""
    found = [one for one in judged if one.verdict.kind == kind]
    return "\n".join(
        f"seed {one.layout['seed']}: {json.dumps(odd_ones(one.layout), ensure_ascii=False)}\n  {one.verdict.stage}: "
        f"{one.verdict.reason} {one.verdict.figures}"
        for one in found
    )
