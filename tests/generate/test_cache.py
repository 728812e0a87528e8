"""The cache's blocks: shared, found again, copied before they are written, and never lost."""

import numpy as np
import pytest

from bitwright.engine.cache_layout import ROWS, CacheLayer, CacheLayout, ConvolutionLayer
from bitwright.errors import InputError
from bitwright.generate.cache import Cache, CacheFull, Held
from bitwright.kernels import native

LAYOUT = CacheLayout.of([CacheLayer(2, 16)] * 3, "int8", native.load())
LAYOUTS = {
    "int8": LAYOUT,
    "int4": CacheLayout.of([CacheLayer(2, 16)] * 3, "int4", native.load()),
    "windows": CacheLayout.of([CacheLayer(2, 16, 40), CacheLayer(2, 16, 100)], "int8", native.load()),
    "windows, int4": CacheLayout.of([CacheLayer(2, 16, 70)], "int4", native.load()),
}


def marked(cache: Cache, blocks: list[int], value: int) -> None:
    for layer in cache._layers:
        layer[:, blocks] = value


def content(cache: Cache, block: int) -> np.ndarray:
    return np.concatenate([layer[:, block].ravel() for layer in cache._layers])


def filled(cache: Cache, ids: list[int]) -> Held:
    """A sequence of these tokens, each block of which is marked by its place and its text."""
    held = cache.begin(ids)
    try:
        cache.grow(held, len(ids) - held.length)
    except CacheFull:
        cache.end(held)
        raise
    held.written = max(held.written, len(ids))
    for place, block in enumerate(held.blocks):
        if block >= 0:
            marked(cache, [block], mark_of(cache, ids, place))
    cache.appended(held, ids)
    return held


def mark_of(cache: Cache, ids: list[int], place: int) -> int:
    number, form = divmod(place, len(cache.layout.forms))
    return (sum(ids[: (number + 1) * 64]) + 7 * number + form) % 251


def is_there(cache: Cache, held: Held, ids: list[int]) -> bool:
    """Whether every full block that the next token reads is held, and is that of this text."""
    forms, full = cache.layout.forms, held.length // 64
    return all(
        block >= 0 and (content(cache, block) == mark_of(cache, ids, place)).all()
        for place, block in enumerate(held.blocks[: full * len(forms)])
        if forms[place % len(forms)].reads(place // len(forms), full)
    )


def test_what_advanced_alone_is_found_by_nobody() -> None:
    cache, ids = Cache(LAYOUT, 512), list(range(200))
    held = cache.begin([])
    cache.grow(held, len(ids))
    step = cache.step([(held, ids, 1)])
    cache.advanced(held, len(ids))
    assert (held.length, int(step.past[0])) == (len(ids), 0)
    assert int(cache.step([(held, [1], 1)]).past[0]) == len(ids)
    assert cache.begin(ids).length == 0
    cache.roll_back(held, 128)
    assert (held.length, len(held.blocks)) == (128, 2)
    cache.end(held)
    assert cache.free == cache.size


def test_a_layout_holds_every_layer_in_each_block() -> None:
    head = native.load().cache_head_bytes(native.load().CacheKind.int8, 16)
    assert LAYOUT.tokens == 64
    assert LAYOUT.offsets == (0, 2 * head, 4 * head)
    cache = Cache(LAYOUT, 1024)
    marked(cache, list(range(16)), 1)
    assert cache._memory.all(), "layers have all of the memory"
    assert LAYOUT.block_bytes == 6 * head


def test_a_convolution_keeps_rows_of_the_last_tokens_of_a_block() -> None:
    module = native.load()
    layout = CacheLayout.of([ConvolutionLayer(24, 3), CacheLayer(2, 16)], "int8", module)
    head = module.cache_head_bytes(module.CacheKind.int8, 16)
    assert layout.head_bytes == (ROWS * 24 * 2, head)
    assert layout.offsets == (0, ROWS * 24 * 2)
    assert (layout.heads, layout.undone) == ((1, 2), ROWS - 2)
    assert CacheLayout.of([ConvolutionLayer(1, 3)], "bf16", module, rows=4).head_bytes == (64,), "whole cache lines"
    assert LAYOUT.undone == LAYOUT.tokens


@pytest.mark.parametrize(
    ("computed", "length", "kept"),
    [
        (150, 150, 150),
        (150, 140, 140),
        (150, 136, 136),
        (150, 135, 128),
        (150, 100, 64),
        (150, 114, 114),
        (150, 64, 64),
    ],
)
def test_where_rows_are_lost_a_text_is_taken_back_to_the_beginning_of_a_block(
    computed: int, length: int, kept: int
) -> None:
    layout = CacheLayout.of([ConvolutionLayer(16, 3)], "int8", native.load())
    cache, ids = Cache(layout, 1024), list(range(computed))
    for one in (filled(cache, ids), cache.fork(filled(cache, ids))):
        cache.roll_back(one, length)
        assert one.length == kept
        assert len(one.blocks) == -(-kept // 64)
        cache.roll_back(one, kept)
        assert one.length == kept


def test_texts_that_begin_alike_share_full_blocks() -> None:
    cache, ids = Cache(LAYOUT, 1024), list(range(200))
    one = filled(cache, ids)
    other = cache.begin([*ids[:150], 7])
    assert other.blocks == one.blocks[:2]
    assert other.length == 128
    assert cache.begin([9, *ids]).length == 0, "the same tokens elsewhere are another text"
    assert cache.begin(ids[:128]).length == 64, "the last token is computed, so that there are logits"


def test_blocks_that_nobody_holds_are_found_until_they_are_needed() -> None:
    cache, ids = Cache(LAYOUT, 4 * 64), list(range(130))
    cache.end(filled(cache, ids))
    assert cache.free == 4
    assert cache.begin(ids).length == 128
    again = Cache(LAYOUT, 4 * 64)
    again.end(filled(again, ids))
    other = again.begin([])
    again.grow(other, 4 * 64)
    assert again.begin(ids).length == 0


def test_growing_beyond_what_is_free_changes_nothing() -> None:
    cache = Cache(LAYOUT, 3 * 64)
    held = filled(cache, list(range(100)))
    other = cache.begin([])
    with pytest.raises(CacheFull):
        cache.grow(other, 65)
    assert other.blocks == []
    cache.grow(other, 64)
    with pytest.raises(CacheFull):
        cache.grow(held, 64)
    assert cache.needs(held, 28) == 0


def test_a_fork_has_its_own_last_block_and_shares_the_others() -> None:
    cache = Cache(LAYOUT, 1024)
    one = filled(cache, list(range(150)))
    two = cache.fork(one)
    assert two.blocks[:2] == one.blocks[:2]
    assert two.blocks[2] != one.blocks[2]
    np.testing.assert_array_equal(content(cache, two.blocks[2]), content(cache, one.blocks[2]))
    cache.end(one)
    cache.end(two)
    assert cache.free == cache.size


@pytest.mark.parametrize("length", [0, 1, 63, 64, 100, 128, 150])
def test_what_is_rolled_back_is_not_written_over_where_others_read_it(length: int) -> None:
    cache, ids = Cache(LAYOUT, 1024), list(range(150))
    one = filled(cache, ids)
    two = cache.begin(ids)  # holds the first two blocks
    before = [content(cache, block) for block in two.blocks]
    cache.roll_back(one, length)
    cache.grow(one, 150 - length)
    marked(cache, one.blocks[length // 64 :], 255)
    for block, kept in zip(two.blocks, before, strict=True):
        np.testing.assert_array_equal(content(cache, block), kept)
    found = cache.begin(ids)
    for block, kept in zip(found.blocks, before, strict=False):
        np.testing.assert_array_equal(content(cache, block), kept)
    for held in (one, two, found):
        cache.end(held)
    assert cache.free == cache.size


@pytest.mark.parametrize("name", LAYOUTS)
def test_random_lives_lose_no_block(name: str) -> None:
    random, cache = np.random.default_rng(0), Cache(LAYOUTS[name], 30 * 64)
    alive: list[tuple[Held, list[int]]] = []
    for _ in range(600):
        what = random.random()
        try:
            if what < 0.35 or not alive:
                ids = [0] * int(random.integers(0, 500)) + random.integers(0, 3, random.integers(1, 200)).tolist()
                alive.append((filled(cache, ids), ids))
            elif what < 0.55:
                held, ids = alive[random.integers(len(alive))]
                alive.append((cache.fork(held), list(ids)))
            elif what < 0.8:
                number = random.integers(len(alive))
                held, ids = alive[number]
                length = int(random.integers(0, len(ids) + 1))
                cache.roll_back(held, length)
                assert held.length <= length
                alive[number] = (held, ids[: held.length])
            else:
                cache.end(alive.pop(random.integers(len(alive)))[0])
        except CacheFull:
            cache.end(alive.pop(0)[0]) if alive else None
        held_now = [block for held, _ in alive for block in held.blocks if block >= 0]
        holders = np.bincount(np.array(held_now, np.int64), minlength=cache.size)
        assert all(is_there(cache, held, ids) for held, ids in alive)
        assert holders.tolist() == cache._holders
        assert cache.free == (holders == 0).sum()
    for held, _ in alive:
        cache.end(held)
    assert cache.free == cache.size


def test_what_a_layout_reads_and_takes() -> None:
    near, windows = LAYOUTS["int4"].forms[1], LAYOUTS["windows"].forms[0]
    assert [block for block in range(10) if near.reads(block, 8)] == [0, 5, 6, 7, 8, 9]
    assert [block for block in range(10) if windows.reads(block, 8)] == [6, 7, 8, 9], "99 tokens before one's own"
    assert [LAYOUTS["int4"].blocks_of(64 * n, 1) for n in (1, 5, 6, 100)] == [3, 15, 16, 110]
    assert [LAYOUTS["windows"].blocks_of(64 * n, 64) for n in (1, 4, 100)] == [1, 4, 4]
    assert Cache(LAYOUTS["windows"], 4 * 64).longest(10_000) == 256, "a step may have 512 tokens"
    assert Cache(LAYOUTS["windows"], 11 * 64).longest(10_000) == 10_000
    assert Cache(LAYOUTS["int4"], 1000).longest(10_000) >= 1000


@pytest.mark.parametrize("name", ["int4", "windows"])
def test_a_sequence_gives_back_what_its_next_token_does_not_read(name: str) -> None:
    cache, ids = Cache(LAYOUTS[name], 4096), list(range(1000))
    held = filled(cache, ids)
    blocks = {"int4": 16 + 2 * 5, "windows": 3}[name]
    assert cache.size - cache.free == blocks
    cache.roll_back(held, 900)
    assert held.length == 900, "what was given back is found again"
    assert is_there(cache, held, ids)
    cache.end(held)
    assert cache.free == cache.size


def test_a_text_goes_on_where_all_is_there_that_its_next_token_reads() -> None:
    cache, ids = Cache(LAYOUTS["int4"], 64), list(range(640))
    cache = Cache(LAYOUTS["int4"], 640)  # 10 blocks, and 2 for each in 8 bits
    cache.end(filled(cache, ids))
    assert cache.begin(ids).length == 576
    other = filled(cache, [5, *ids[:100]])  # takes the longest unused: what is in 8 bits of the middle
    assert cache.begin(ids[:350]).length == 64, "blocks 2 to 4 are not there in 8 bits"
    cache.end(other)


def test_a_cache_that_no_machine_has_is_refused() -> None:
    with pytest.raises(InputError, match="GB, which this machine does not have"):
        Cache(LAYOUT, 1 << 50)
