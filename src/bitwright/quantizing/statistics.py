"""The calibration statistics of each linear."""

from collections.abc import Callable, Iterable, Sequence

from bitwright.calibration.observers import LayerStats


class Statistics:
    """Statistics of the inputs of linears. Linears that read the same share theirs: which do is kept by number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._stats: dict[int, LayerStats] = {}
        self._next = 0

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def get(self, name: str) -> LayerStats | None:
        """The statistics of one linear; None if it has none."""
        return self._stats[self._numbers[name]] if name in self._numbers else None

    def put(self, names: Iterable[str], stats: LayerStats) -> None:
        """Let these linears share `stats`, in place of what they had. What no linear has any more is let go of."""
        self._numbers |= dict.fromkeys(names, self._next)
        self._stats[self._next] = stats
        self._next += 1
        self._let_go()

    def drop(self, names: Iterable[str]) -> None:
        """Leave these linears without statistics."""
        for name in names:
            self._numbers.pop(name, None)
        self._let_go()

    def sharing(self, names: Iterable[str]) -> list[list[str]]:
        """These linears by what they share, in the order of the first of each; those without statistics together."""
        groups: dict[int | None, list[str]] = {}
        for name in names:
            groups.setdefault(self._numbers.get(name), []).append(name)
        return list(groups.values())

    def distinct(self, names: Iterable[str]) -> list[LayerStats]:
        """What these linears have, each once, in their order."""
        return [self._stats[number] for number in dict.fromkeys(self._numbers[name] for name in names)]

    def replace(self, names: Sequence[str], by: Callable[[LayerStats], LayerStats]) -> None:
        """Put `by(stats)` in place of what these linears have. Those of them that share go on sharing."""
        for group in self.sharing(names):
            self.put(group, by(self._stats[self._numbers[group[0]]]))

    def _let_go(self) -> None:
        """Gram matrices are large: none is kept that is not used."""
        used = set(self._numbers.values())
        self._stats = {number: stats for number, stats in self._stats.items() if number in used}
