"""More layouts, the second half of them: in a file of its own, so that two processes can share them."""

import pytest

from tests.differential.run import check, judge_all

SEEDS = range(1150, 1300)


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_more_layouts_are_right_or_refused() -> None:
    """Of so many, one in a hundred may have a text whose rounding errors add up, or a limit beyond the positions."""
    check(list(judge_all(SEEDS, in_16_bit=4)), most_wrong=len(SEEDS) // 100)
