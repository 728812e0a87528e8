"""What follows the log is mended after it; what contradicts it is told."""

import shutil
from collections.abc import Callable

import pytest

from bitwright.errors import InputError
from bitwright.registry.add import add
from bitwright.registry.change import promote
from bitwright.registry.log import HEAD, LOG, read_log
from bitwright.registry.store import CURRENT, Registry, linked, swap
from bitwright.registry.verify import verify
from tests.registry.conftest import Made


def served(registry: Registry) -> int | None:
    return linked(registry.folder("m") / CURRENT)


@pytest.fixture
def promoted(made: Made) -> Registry:
    registry = made(2)
    promote(registry, "m", 1, force=True, reason="a test")
    return registry


def test_a_whole_registry_is_whole(promoted: Registry) -> None:
    found = verify(promoted)
    assert (found.entries, found.versions, found.damage, found.repaired) == (6, 2, (), ())
    assert found.head == read_log(promoted.root).head


def test_a_link_that_somebody_turned_is_turned_back(promoted: Registry) -> None:
    link = promoted.folder("m") / CURRENT
    swap(link, 2)
    assert verify(promoted, "m").repaired == ("m: the link was 2, and is 1",)
    link.unlink()
    assert verify(promoted).repaired == ("m: the link was none, and is 1",)
    link.unlink()
    link.symlink_to("/etc")
    assert verify(promoted).repaired == ("m: the link was none, and is 1",)
    assert served(promoted) == 1


def test_a_link_without_a_promotion_goes(made: Made) -> None:
    registry = made(1)
    swap(registry.folder("m") / CURRENT, 1)
    assert verify(registry).repaired == ("m: the link was 1, and is none",)
    assert served(registry) is None


def test_files_that_are_gone_are_told(promoted: Registry) -> None:
    place = promoted.version("m", 1)
    shutil.rmtree(place)
    assert verify(promoted).damage == ("m: the files of version 1 are gone",)


def test_an_older_log_with_its_head_is_told_by_the_versions(
    promoted: Registry, copied: Callable[[Registry], Registry], tmp_path: object
) -> None:  # fmt: skip
    """The signed head cannot tell: it is the older one, too."""
    before = copied(promoted)
    source = promoted.version("m", 1)
    add(promoted, source, "m", sign=False)
    add(promoted, source, "n", sign=False)
    for file in (LOG, HEAD):
        shutil.copy(before.root / file, promoted.root / file)
    damage = verify(promoted, files=False).damage
    assert [text.partition(": ")[2] for text in damage] == [
        "the log knows no such version; was an older log put back?"
    ] * 2


def test_a_damaged_log_is_told(promoted: Registry) -> None:
    (promoted.root / LOG).write_bytes(b"")
    found = verify(promoted)
    assert "the log was cut" in found.damage[0]
    assert served(promoted) == 1  # and nothing is turned after it


def test_a_model_that_is_not_there(promoted: Registry) -> None:
    with pytest.raises(InputError, match="no model is called 'x'"):
        verify(promoted, "x")
