"""What follows: the version that is served changes under way, and no call fails or waits."""

import gc
import pickle
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitwright
from bitwright.errors import InputError
from bitwright.registry.add import add
from bitwright.registry.change import promote, rollback
from bitwright.registry.follow import Followed, follow
from bitwright.registry.store import CURRENT, Registry, make_registry, swap
from tests.forks import ended_well, in_child

Quantized = Callable[..., Path]
POLL_S = 0.02


@pytest.fixture
def registry(quantized: Quantized, tmp_path: Path) -> Registry:
    """Two versions that give other vectors, the first one served."""
    registry = make_registry(tmp_path / "registry", mlflow=None)
    for pooling in ("mean_tokens", "cls_token"):
        add(registry, quantized("bert", "w8a8", pooling=pooling), "m", sign=False)
    promote(registry, "m", 1, force=True, reason="a test")
    return registry


@pytest.fixture
def followed(registry: Registry) -> Iterator[Followed]:
    with bitwright.follow(registry.root, "m", poll_s=POLL_S) as model:
        yield model


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(POLL_S / 4)


def swapped(registry: Registry, version: int) -> None:
    promote(registry, "m", version, force=True, reason="a test")


def test_it_is_the_champion_as_a_model(registry: Registry, followed: Followed) -> None:
    one, two = (bitwright.load(registry.version("m", number)) for number in (1, 2))
    encode = followed.encode  # who keeps a method follows, too
    assert np.array_equal(encode(["a text"]), one.encode(["a text"]))
    assert followed.width == one.width
    assert followed.path == registry.version("m", 1)
    assert followed.tokenize(["a text"]) == one.tokenize(["a text"])
    assert followed.similarity(one.encode(["a"]), one.encode(["b"])).shape == (1, 1)
    assert np.array_equal(followed.encode_query(["a"]), followed.encode_document(["a"]))
    swapped(registry, 2)
    until(lambda: followed.version == 2)
    assert np.array_equal(encode(["a text"]), two.encode(["a text"]))
    assert not np.array_equal(one.encode(["a text"]), two.encode(["a text"]))
    rollback(registry, "m")
    until(lambda: followed.version == 1)
    assert (followed.status.swaps, followed.status.error) == (2, None)
    with pytest.raises(AttributeError):
        _ = followed.nonsense


def test_no_call_fails_and_each_is_answered_by_one_version(registry: Registry, followed: Followed) -> None:
    texts = ["one text", "and another one, a little longer"]
    known = [bitwright.load(registry.version("m", number)).encode(texts).tobytes() for number in (1, 2)]
    answers: set[bytes] = set()
    failed: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.add(followed.encode(texts).tobytes())
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in (2, 1, 2, 1):
        swapped(registry, version)
        until(lambda version=version: followed.version == version)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert answers == set(known)
    assert followed.status.swaps == 4


def test_the_old_model_lives_as_long_as_its_calls(registry: Registry, followed: Followed) -> None:
    old = weakref.ref(followed.model)
    call = followed.model.encode  # a call under way holds its model
    swapped(registry, 2)
    until(lambda: followed.version == 2)
    assert call(["a text"]).shape == (1, 64)
    del call
    gc.collect()
    assert old() is None


def test_a_version_that_cannot_be_loaded_changes_nothing(registry: Registry, followed: Followed) -> None:
    broken = registry.version("m", 2) / "config.json"
    content = broken.read_text()
    broken.chmod(0o644)
    broken.write_text("{")

    def promoted() -> None:
        swapped(registry, 2)
        until(lambda: followed.status.error)
        time.sleep(10 * POLL_S)

    with pytest.warns(RuntimeWarning, match="version 1 goes on: version 2 cannot be loaded") as told:
        promoted()
    assert len(told) == 1
    assert (followed.version, followed.status.wanted) == (1, 2)
    assert followed.encode(["a text"]).shape == (1, 64)
    rollback(registry, "m")
    until(lambda: followed.status.error is None)
    broken.write_text(content)
    swapped(registry, 2)
    until(lambda: followed.version == 2)


def test_a_registry_that_cannot_be_reached_changes_nothing(registry: Registry, followed: Followed) -> None:
    away = registry.root.with_name("away")

    def gone() -> None:
        registry.root.rename(away)
        until(lambda: followed.status.error)

    with pytest.warns(RuntimeWarning, match="registry cannot be reached"):
        gone()
    assert followed.encode(["a text"]).shape == (1, 64)
    away.rename(registry.root)
    until(lambda: followed.status.error is None)
    swapped(registry, 2)
    until(lambda: followed.version == 2)


def test_warnings_that_are_errors_do_not_stop_it(registry: Registry, followed: Followed) -> None:
    """As they are in these tests: the thread goes on."""
    link = registry.folder("m") / CURRENT
    link.unlink()
    until(lambda: followed.status.error)
    swap(link, 2)
    until(lambda: followed.version == 2)


def test_a_forked_child_follows(registry: Registry, followed: Followed) -> None:
    def holds() -> bool:
        before = followed.encode(["a text"])
        swapped(registry, 2)
        until(lambda: followed.version == 2 or not followed.model)
        return not np.array_equal(before, followed.encode(["a text"]))

    assert ended_well(in_child(holds))


def test_a_closed_one_works_and_follows_no_longer(registry: Registry) -> None:
    model = follow(registry.root, "m", poll_s=POLL_S)
    model.close()
    swapped(registry, 2)
    time.sleep(5 * POLL_S)
    assert model.version == 1
    assert model.encode(["a text"]).shape == (1, 64)


def test_one_that_nobody_has_ends(registry: Registry) -> None:
    threads = threading.active_count()
    model = follow(registry.root, "m", poll_s=POLL_S)
    assert threading.active_count() == threads + 1
    del model
    gc.collect()
    until(lambda: threading.active_count() == threads)


def test_a_pickle_follows_anew(registry: Registry, followed: Followed) -> None:
    text = pickle.dumps(followed)
    assert len(text) < 1000
    swapped(registry, 2)
    with pickle.loads(text) as other:
        assert (other.version, type(other)) == (2, Followed)
        rollback(registry, "m")
        until(lambda: other.version == 1)


def test_what_cannot_be_followed_is_refused(registry: Registry, quantized: Quantized, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'n'"):
        follow(registry.root, "n")
    with pytest.raises(InputError, match="no model 'm'"):
        follow(tmp_path / "elsewhere", "m")
    with pytest.raises(InputError, match="poll_s = 0"):
        follow(registry.root, "m", poll_s=0)
    add(registry, quantized("bert", "w8a8"), "n", sign=False)
    with pytest.raises(InputError, match="no version is promoted yet"):
        follow(registry.root, "n")


def test_a_reader_needs_no_key(registry: Registry, followed: Followed) -> None:
    """Servers need the folder of the model, and nothing else of the registry."""
    for file in registry.root.iterdir():
        if file.is_file():
            file.unlink()
    shutil.rmtree(registry.root / "key")
    with follow(registry.root, "m", poll_s=POLL_S) as model:
        assert model.version == 1
