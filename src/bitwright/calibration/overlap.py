"""Finds sources that are the same corpus under different names."""

from collections.abc import Collection, Hashable, Sequence
from itertools import combinations

from bitwright.calibration.columns import Source
from bitwright.errors import DataError

_LEAST_SHARED = 8  # texts; fewer may be in two small files by chance
_MOST_SHARED = 0.5  # of the smaller source


def refuse_same_corpus(drawn: Sequence[tuple[Source, Collection[Hashable]]]) -> None:
    """Refuse sources that share most of their texts, because a mix would count one text as several kinds.

    drawn: of each source its texts, or those of smallest priority, which are the same texts in a copy.

    Raises:
        DataError: two sources of which one has over half of its texts in common with the other.
    """
    for (one, some), (other, more) in combinations(drawn, 2):
        shared, smaller = len({*some} & {*more}), min(len({*some}), len({*more}))
        if shared >= _LEAST_SHARED and shared > _MOST_SHARED * smaller:
            raise DataError(
                f"{one.name} and {other.name} share {shared} of {smaller} texts, so they are the same corpus; give "
                "one of them, or texts of another kind"
            )
