"""docs/compatibility.md is what the comparison finds. In a file of its own, so that another process can take it."""

import pytest

from tests.differential.compatibility import DOCUMENT, document, rows


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_the_page_says_what_is() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(list(rows()))
