"""Streaming sees what hooks on a plain forward see, and shows each block what the blocks before it became."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bitwright.calibration.stream import stream_blocks
from bitwright.errors import ModelError
from bitwright.models.architectures import ARCHITECTURES, LinearSite, find_blocks, find_linears
from bitwright.models.load import LoadedModel, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [(family, "embedding", {}) for family in ARCHITECTURES] + [
    ("albert", "token-classification", {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2}),
    ("bert", "sequence-classification", {}),
    ("deberta-v2", "sequence-classification", {"share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"}),
    ("modernbert", "token-classification", {"num_hidden_layers": 3}),
    ("roberta", "question-answering", {}),
]


class Seen(NamedTuple):
    """Stands in for real statistics: enough to tell any two inputs apart."""

    n: int
    absmax_K: Tensor
    gram_KK: Tensor


def observe(seen: Seen | None, x_MK: Tensor) -> Seen:
    new = Seen(len(x_MK), x_MK.abs().amax(0), x_MK.T @ x_MK)
    if seen is None:
        return new
    return Seen(seen.n + new.n, torch.maximum(seen.absmax_K, new.absmax_K), seen.gram_KK + new.gram_KK)


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], case[1], *case[2]]))
def make(request, tiny_model):
    family, task, config = request.param
    return lambda: load_model(tiny_model(family, task, **config), dtype=torch.float64)


def batches(loaded: LoadedModel, pad: int = 0) -> list[dict[str, Tensor]]:
    """Three batches of different sizes and lengths, with padding; `pad` more columns of it."""
    random, made = torch.Generator().manual_seed(2), []
    for b, t in ((2, 9), (1, 12), (3, 7)):
        ids = nn.functional.pad(torch.randint(5, 200, (b, t), generator=random), (0, pad))
        mask = torch.ones_like(ids)
        mask[0, t - 3 :] = 0
        mask[:, t:] = 0
        made.append({"input_ids": ids.masked_fill(mask == 0, loaded.config.pad_token_id), "attention_mask": mask})
    return made


def plain(loaded: LoadedModel, sites: Iterable[LinearSite], inputs: list[dict[str, Tensor]]) -> dict[str, Seen]:
    """The definition: hooks on whole forwards, rows of padding dropped."""
    seen: dict[str, Seen] = {}
    mask = torch.empty(0)

    def note(name: str, x: Tensor) -> None:
        rows = x[mask.bool()] if x.shape[:2] == mask.shape else x.flatten(0, -2)
        seen[name] = observe(seen.get(name), rows)

    hooks = [
        loaded.model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: note(name, args[0])
        )
        for site in sites
    ]
    with torch.no_grad():
        for batch in inputs:
            mask = batch["attention_mask"]
            loaded.model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def assert_same(got: dict[str, Seen], want: dict[str, Seen]) -> None:
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].n == want[name].n, name
        torch.testing.assert_close(got[name].absmax_K, want[name].absmax_K, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got[name].gram_KK, want[name].gram_KK, rtol=1e-9, atol=1e-9)


def stream(loaded: LoadedModel, sites: list[LinearSite], inputs: list[dict[str, Tensor]]):
    return stream_blocks(loaded.model, loaded.architecture, sites, inputs, observe)


def swap(model: nn.Module, names: Iterable[str]) -> None:
    """Replace linears by coarse ones, as quantization does."""
    for name in names:
        old = model.get_submodule(name)
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None, dtype=old.weight.dtype)
        new.load_state_dict({key: (value * 8).round() / 8 for key, value in old.state_dict().items()})
        model.set_submodule(name, new)


def test_streamed_equals_plain_forward(make):
    loaded = make()
    sites = find_linears(loaded.model, loaded.architecture)
    streamed = dict(stream(loaded, sites, batches(loaded)))
    assert list(streamed) == list(dict.fromkeys(site.block for site in sites))
    assert_same(
        {name: s for block in streamed.values() for name, s in block.items()}, plain(loaded, sites, batches(loaded))
    )


def test_each_block_sees_what_earlier_blocks_became(make):
    loaded = make()
    sites = find_linears(loaded.model, loaded.architecture)
    interleaved = getattr(loaded.config, "inner_group_num", 1) > 1  # observed together, before any is handed out
    reference = make()
    done: list[str] = []
    for block, stats in stream(loaded, sites, batches(loaded)):
        if not interleaved or block is None:
            here = [site for site in sites if site.block == block]
            assert_same(stats, plain(reference, here, batches(loaded)))
        swap(loaded.model, stats)
        swap(reference.model, stats)
        done += stats
    assert done == [site.name for site in sites]
    before, after = plain(make(), sites, batches(loaded)), plain(loaded, sites, batches(loaded))
    assert any(not torch.equal(before[s.name].gram_KK, after[s.name].gram_KK) for s in sites)  # swapping does change it


def test_padding_has_no_influence(make):
    loaded = make()
    sites = find_linears(loaded.model, loaded.architecture)
    padded = [
        {n: s for _, stats in stream(loaded, sites, batches(loaded, pad)) for n, s in stats.items()} for pad in (0, 5)
    ]
    assert_same(*padded)


def test_linears_that_read_the_same_are_observed_once(tiny_model):
    loaded = load_model(tiny_model("bert"))
    sites = find_linears(loaded.model, loaded.architecture)
    seen = []
    for block, stats in stream_blocks(
        loaded.model, loaded.architecture, sites, batches(loaded), lambda _, x_MK: seen.append(len(x_MK)) or object()
    ):
        # Nothing of a later block has been observed yet: 4 units of a block, or the one pooler, over 3 batches.
        assert len(seen) == 3 * 4 * (2 if block is None else block + 1) + 3 * (block is None)
        assert len({id(value) for value in stats.values()}) == (1 if block is None else 4)


def test_blocks_without_sites_are_passed_through(tiny_model):
    loaded = load_model(tiny_model("bert"), dtype=torch.float64)
    sites = [site for site in find_linears(loaded.model, loaded.architecture) if site.name.endswith("1.output.dense")]
    ((block, stats),) = stream(loaded, sites, batches(loaded))
    assert block == 1
    assert_same(stats, plain(loaded, sites, batches(loaded)))


def test_model_is_left_as_it_was_even_when_observing_fails(tiny_model):
    loaded = load_model(tiny_model("bert"))
    sites = find_linears(loaded.model, loaded.architecture)

    def fail(stats, x_MK):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(stream_blocks(loaded.model, loaded.architecture, sites, batches(loaded), fail))
    blocks = [loaded.model.get_submodule(path) for path, _ in find_blocks(loaded.model, loaded.architecture)]
    assert not any("forward" in vars(block) for block in blocks)
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_nothing_is_patched_and_gradients_stay_on_while_the_caller_works(tiny_model):
    loaded = load_model(tiny_model("bert"))
    for _ in stream(loaded, find_linears(loaded.model, loaded.architecture), batches(loaded)):
        assert loaded.model(**batches(loaded)[0]).last_hidden_state.requires_grad


def test_no_batches_is_an_error(tiny_model):
    loaded = load_model(tiny_model("bert"))
    with pytest.raises(ModelError, match="at least one batch"):
        next(stream(loaded, find_linears(loaded.model, loaded.architecture), []))
