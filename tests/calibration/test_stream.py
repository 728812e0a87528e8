"""Streaming sees what hooks on a plain forward see, and shows each block what the blocks before it became.

One file although long: two fifths are the definition that every test compares with (hooks on whole forwards) and the
models that differ in how their blocks run; parted, both halves would need all of that.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bitwright.calibration.stream import Stage, Visit, stream_outputs, stream_stages
from bitwright.errors import ModelError
from bitwright.families.encoders import ENCODERS
from bitwright.models.load import LoadedModel, load_model, materialise, open_lazily, release
from bitwright.models.sites import LinearSite, find_blocks, find_linears

DECODERS = ("gemma3_text", "glm4_moe", "gpt2", "lfm2", "llama", "mixtral", "opt")
INTERLEAVED = {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((family, "embedding", {}) for family in ENCODERS),
    ("albert", "token-classification", INTERLEAVED),
    ("bert", "sequence-classification", {}),
    ("deberta-v2", "sequence-classification", {"share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"}),
    ("modernbert", "token-classification", {"num_hidden_layers": 3}),
    ("roberta", "question-answering", {}),
    *((family, "text-generation", {}) for family in DECODERS),
]

FEW = [case for case in CASES if case[2] or case[0] in ("bert", "gemma3_text", "gpt2", "mixtral")]

Open = Callable[..., LoadedModel]
Batches = list[dict[str, Tensor]]


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


@pytest.fixture
def open_as(tiny_model, decoder_dir) -> Callable[..., LoadedModel]:
    """`open_as(load_model or open_lazily, family, task, **config)`, in float64."""

    def make(load: Open, family: str, task: str = "embedding", **config: Any) -> LoadedModel:
        path = decoder_dir(family, **config) if family in DECODERS else tiny_model(family, task, **config)
        return load(path, dtype=torch.float64)

    return make


def name_of(case: tuple[str, str, dict[str, Any]]) -> str:
    return "-".join([case[0], case[1], *case[2]])


@pytest.fixture(params=CASES, ids=name_of)
def make(request, open_as) -> Open:
    """`make(load_model or open_lazily)`, for every family."""
    family, task, config = request.param
    return lambda load=load_model: open_as(load, family, task, **config)


@pytest.fixture(params=FEW, ids=name_of)
def make_one(request, open_as) -> Open:
    """The same for the families that differ in how their blocks run."""
    family, task, config = request.param
    return lambda load=load_model: open_as(load, family, task, **config)


def batches(loaded: LoadedModel, pad: int = 0, *, padded: bool = True) -> Batches:
    """Three batches of different sizes and lengths, with padding; `pad` more columns of it."""
    random, made = torch.Generator().manual_seed(2), []
    for b, t in ((2, 9), (1, 12), (3, 7)):
        ids = nn.functional.pad(torch.randint(5, 200, (b, t), generator=random), (0, pad))
        mask = torch.ones_like(ids)
        mask[0, t - 3 :] = 0
        mask[:, t:] = 0
        batch = {"input_ids": ids.masked_fill(mask == 0, loaded.config.pad_token_id), "attention_mask": mask}
        made.append(batch if padded else {"input_ids": ids})
    return made


def inputs_of(loaded: LoadedModel) -> Batches:
    """Batches with padding, but for a mixture of experts: `plain` cannot tell which tokens of an expert are none."""
    return batches(loaded, padded=not hasattr(loaded.config, "num_experts_per_tok"))


def alone(inputs: Batches) -> Batches:
    """Each sequence as a batch of its own, without its padding."""
    return [
        {"input_ids": ids[mask.bool()][None]}
        for batch in inputs
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def plain(loaded: LoadedModel, sites: Iterable[LinearSite], inputs: Batches) -> dict[str, Seen]:
    """The definition: hooks on whole forwards, rows of padding dropped."""
    seen: dict[str, Seen] = {}
    mask = torch.empty(0)

    def note(name: str, x: Tensor) -> None:
        rows = x.flatten(0, -2)
        if x.shape[:-1] in (mask.shape, mask.flatten().shape):
            rows = rows[mask.flatten().bool()]
        seen[name] = observe(seen.get(name), rows)

    hooks = [
        loaded.model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, name=site.name: note(name, args[0])
        )
        for site in sites
    ]
    with torch.no_grad():
        for batch in inputs:
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            loaded.model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def assert_same(got: dict[str, Seen], want: dict[str, Seen], tolerance: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name in got:
        assert got[name].n == want[name].n, name
        torch.testing.assert_close(got[name].absmax_K, want[name].absmax_K, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got[name].gram_KK, want[name].gram_KK, rtol=tolerance, atol=tolerance)


def sites_of(loaded: LoadedModel) -> list[LinearSite]:
    return find_linears(loaded.model, loaded.architecture)


def stages_of(loaded: LoadedModel, inputs: Batches, /, **options: Any) -> Iterator[Stage]:
    """The stages; the blocks of a model that was opened lazily are filled and emptied on the way."""
    if any(parameter.is_meta for parameter in loaded.model.parameters()):
        options["visit"] = Visit(
            lambda paths: [materialise(loaded, path) for path in paths],
            lambda paths: [release(loaded, path) for path in paths],
        )
    return stream_stages(loaded.model, loaded.architecture, sites_of(loaded), inputs, **options)


def swap(model: nn.Module, names: Iterable[str]) -> None:
    """Replace linears by coarse ones, as quantization does."""
    for name in names:
        old = model.get_submodule(name)
        new = nn.Linear(old.in_features, old.out_features, bias=old.bias is not None, dtype=old.weight.dtype)
        new.load_state_dict({key: (value * 8).round() / 8 for key, value in old.state_dict().items()})
        model.set_submodule(name, new)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in what a block or a model puts out."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, Tensor)]


def assert_outputs(got: Sequence[Any], want: Sequence[Any]) -> None:
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert tensors_of(theirs)
        for a, b in zip(tensors_of(ours), tensors_of(theirs), strict=True):
            assert torch.equal(a, b)


def run_whole(loaded: LoadedModel, inputs: Batches) -> list[Any]:
    with torch.no_grad():
        return [loaded.model(**batch) for batch in inputs]


@pytest.mark.parametrize("load", [load_model, open_lazily])
def test_streamed_equals_plain_forward(make, load):
    loaded, whole = make(load), make()
    inputs, found = inputs_of(whole), {}
    for stage in stages_of(loaded, inputs):
        found |= stage.observe(stage.sites, observe)
    assert_same(found, plain(whole, sites_of(whole), inputs))


def test_stages_are_the_blocks_in_order_then_the_heads(make_one):
    loaded = make_one()
    stages = [(stage.index, stage.blocks, stage.sites) for stage in stages_of(loaded, inputs_of(loaded))]
    assert [index for index, _, _ in stages] == list(range(len(stages)))
    assert [block for _, blocks, _ in stages for block in blocks] == [
        *range(len(find_blocks(loaded.model, loaded.architecture)))
    ]
    assert [blocks == () for _, blocks, _ in stages] == [False] * (len(stages) - 1) + [True]
    assert [site for _, _, sites in stages for site in sites] == sites_of(loaded)


def test_blocks_that_run_in_turns_are_one_stage(open_as):
    loaded = open_as(load_model, "albert", "token-classification", **INTERLEAVED)
    assert [stage.blocks for stage in stages_of(loaded, batches(loaded))] == [(0, 1), (2, 3), ()]


def test_each_block_sees_what_earlier_blocks_became(make_one):
    loaded, reference = make_one(), make_one()
    inputs = inputs_of(loaded)
    for stage in stages_of(loaded, inputs):
        stats = stage.observe(stage.sites, observe)
        assert_same(stats, plain(reference, stage.sites, inputs))
        swap(loaded.model, stats)
        swap(reference.model, stats)
    before, after = plain(make_one(), sites_of(loaded), inputs), plain(loaded, sites_of(loaded), inputs)
    assert any(not torch.equal(before[name].gram_KK, after[name].gram_KK) for name in before.keys() & after.keys())


def test_part_of_a_block_can_be_swapped_and_the_rest_observed_again(open_as):
    loaded, reference = open_as(load_model, "llama"), open_as(load_model, "llama")
    inputs = batches(loaded)
    for stage in stages_of(loaded, inputs):
        for name in dict.fromkeys(site.input for site in stage.sites):
            here = [site for site in stage.sites if site.input == name]
            stats = stage.observe(here, observe)
            assert_same(stats, plain(reference, here, inputs))
            swap(loaded.model, stats)
            swap(reference.model, stats)


def test_padding_has_no_influence(make):
    loaded = make()
    tolerance = 1e-9 if loaded.task != "text-generation" else 1e-4  # decoders compute norms in float32
    found: list[dict[str, Seen]] = [{}, {}]
    for stats, pad in zip(found, (0, 5), strict=True):
        for stage in stages_of(loaded, batches(loaded, pad)):
            stats |= stage.observe(stage.sites, observe)
    assert_same(*found, tolerance)


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "opt"])
def test_padding_reaches_neither_experts_nor_flattened_tokens(open_as, family):
    loaded = open_as(load_model, family)
    inputs, found = batches(loaded), {}
    for stage in stages_of(loaded, inputs):
        found |= stage.observe(stage.sites, observe)
    assert_same(found, plain(loaded, sites_of(loaded), alone(inputs)), 1e-4)


def test_an_expert_without_a_token_has_no_entry(open_as):
    loaded = open_as(load_model, "mixtral")
    one_token = [{"input_ids": torch.tensor([[7]])}]
    for stage in stages_of(loaded, one_token):
        stats = stage.observe(stage.sites, observe)
        routed = {name.rsplit(".", 1)[0] for name in stats if ".experts." in name}
        assert len(routed) == (2 if stage.blocks else 0)  # each token goes to two of the four experts
        assert {site.name for site in stage.sites if site.role != "expert"} <= stats.keys()


def test_an_expert_that_only_padding_reaches_has_no_entry(open_as):
    loaded = open_as(load_model, "mixtral")
    ids = torch.tensor([[7, *range(20, 60)]])
    mask = torch.zeros_like(ids)
    mask[0, 0] = 1
    stage = next(stages_of(loaded, [{"input_ids": ids, "attention_mask": mask}]))
    stats = stage.observe(stage.sites, observe)
    assert {seen.n for seen in stats.values()} == {1}
    assert len({name.rsplit(".", 1)[0] for name in stats if ".experts." in name}) == 2


@pytest.mark.parametrize(("family", "tensors"), [("bert", 4), ("llama", 4), ("mixtral", 2 + 4 * 2)])
def test_linears_that_read_the_same_are_observed_once(open_as, family, tensors):
    loaded = open_as(load_model, family)
    inputs, calls = batches(loaded), []
    stage = next(stages_of(loaded, inputs))
    stats = stage.observe(stage.sites, lambda seen, x_MK: calls.append(len(x_MK)) or seen or object())
    assert len({id(value) for value in stats.values()}) == tensors
    assert tensors <= len(calls) <= tensors * len(inputs)
    assert stats.keys() == {site.name for site in stage.sites}


def test_a_subset_of_sites_and_none(open_as):
    loaded = open_as(load_model, "bert")
    stage = next(stages_of(loaded, batches(loaded)))
    chosen = [site for site in stage.sites if site.name.endswith("output.dense")]
    assert_same(stage.observe(chosen, observe), plain(loaded, chosen, batches(loaded)))
    assert stage.observe([], observe) == {}


@pytest.mark.parametrize("padded", [True, False])
def test_outputs_streamed_from_the_files_are_the_whole_models(make, padded):
    loaded, whole = make(open_lazily), make()
    inputs = batches(whole, padded=padded)
    assert_outputs(list(stream_outputs(loaded, inputs)), run_whole(whole, inputs))
    assert_outputs(list(stream_outputs(whole, inputs)), run_whole(whole, inputs))


def test_outputs_of_a_stage_are_the_inputs_of_the_next(make_one):
    loaded = make_one()
    inputs, before = inputs_of(loaded), None
    for stage in stages_of(loaded, inputs):
        if before is not None:
            assert_outputs(stage.inputs, before)
        before = stage.outputs()
        assert_outputs(stage.outputs([2, 0]), [before[2], before[0]])
    assert before is not None
    assert_outputs(before, run_whole(loaded, inputs))


def test_outputs_follow_the_modules(open_as):
    loaded = open_as(load_model, "llama")
    stage = next(stages_of(loaded, batches(loaded)))
    (before,) = stage.outputs([0])
    swap(loaded.model, [stage.sites[0].name])
    assert not torch.equal(tensors_of(before)[0], tensors_of(stage.outputs([0])[0])[0])


@pytest.mark.parametrize("family", ["llama", "mixtral", "bert", "albert"])
def test_only_the_blocks_of_a_stage_are_filled(open_as, family):
    loaded = open_as(open_lazily, family)
    paths = [path for path, _ in find_blocks(loaded.model, loaded.architecture)]

    def filled() -> set[str]:
        names = [name for name, parameter in loaded.model.named_parameters() if not parameter.is_meta]
        return {path for path in paths if any(name.startswith(f"{path}.") for name in names)}

    for stage in stages_of(loaded, batches(loaded)):
        stage.observe(stage.sites, observe)
        assert filled() == {paths[block] for block in stage.blocks}
    assert filled() == set()


def test_blocks_are_left_when_the_caller_stops_or_fails(open_as):
    loaded = open_as(open_lazily, "llama")
    stages = stages_of(loaded, batches(loaded))
    next(stages)
    assert not next(loaded.model.model.layers[0].parameters()).is_meta
    stages.close()
    assert next(loaded.model.model.layers[0].parameters()).is_meta


def test_resumed_from_saved_inputs_the_rest_is_the_same(make_one, tmp_path):
    def quantize(stages: Iterator[Stage], model: nn.Module) -> list[dict[str, Seen]]:
        done = []
        for stage in stages:
            torch.save(stage.inputs, tmp_path / f"{stage.index}-{save}")
            done.append(stage.observe(stage.sites, observe))
            swap(model, done[-1])
        return done

    save = "whole"
    loaded = make_one(open_lazily)
    inputs = inputs_of(loaded)
    done = quantize(stages_of(loaded, inputs), loaded.model)
    for begin in range(len(done)):
        save = "resumed"
        again, saved = make_one(open_lazily), torch.load(tmp_path / f"{begin}-whole", weights_only=True)
        resumed = quantize(stages_of(again, inputs, resume=(begin, saved)), again.model)
        assert len(resumed) == len(done) - begin
        for ours, theirs in zip(resumed, done[begin:], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name].gram_KK, theirs[name].gram_KK) for name in ours)


def test_the_float_model_is_followed_beside_the_one_that_changes(open_as):
    """Its path is that of a model that nobody changes, whether or not a stage was observed; it can be resumed."""
    loaded, untouched = open_as(load_model, "llama"), open_as(load_model, "llama")
    inputs = batches(loaded)
    saved: dict[int, list[Any]] = {}
    followed = stages_of(loaded, inputs, originals=True)
    for stage, wanted in zip(followed, stages_of(untouched, inputs), strict=True):
        if stage.index:
            assert_outputs(stage.originals, wanted.inputs)
            saved[stage.index] = [*stage.inputs, *stage.originals]
        if stage.index != 1:  # a stage that nobody looks at
            read = [stage.original_inputs(stage.sites, index) for index in range(len(inputs))]
            assert all(set(found) == {site.name for site in stage.sites} for found in read)
            assert all(
                torch.equal(stage.original_inputs(stage.sites, index)[name], x)
                for index, found in enumerate(read)
                for name, x in found.items()
            )
            swap(loaded.model, [site.name for site in stage.sites])
    again = next(stages_of(open_as(load_model, "llama"), inputs, resume=(2, saved[2]), originals=True))
    assert_outputs(again.originals, saved[2][len(inputs) :])
    assert_outputs(again.inputs, saved[2][: len(inputs)])
    with pytest.raises(ModelError, match="needs inputs for"):
        next(stages_of(open_as(load_model, "llama"), inputs, resume=(2, saved[2][: len(inputs)]), originals=True))


def test_inputs_to_resume_with_are_not_changed(open_as):
    loaded = open_as(load_model, "bert")
    stages = stages_of(loaded, batches(loaded))
    next(stages)
    saved = list(next(stages).inputs)
    given = list(saved)
    for _ in stages_of(loaded, batches(loaded), resume=(1, given)):
        pass
    assert all(a is b for a, b in zip(given, saved, strict=True))


@pytest.mark.parametrize(
    ("begin", "inputs", "message"),
    [
        (4, [1, 2, 3], "no stage 4 to resume at; the model has 4, counted from 0"),
        (-1, None, "no stage -1"),
        (1, None, "stage 1 needs inputs for 3 batches, but got no"),
        (1, [1, 2], "stage 1 needs inputs for 3 batches, but got 2"),
    ],
)
def test_resuming_with_what_does_not_fit(open_as, begin, inputs, message):
    loaded = open_as(load_model, "llama")
    with pytest.raises(ModelError, match=message):
        next(stages_of(loaded, batches(loaded), resume=(begin, inputs)))


class Chain(nn.Module):
    """Blocks in a list, run in any order."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.layers[index](x)
        return x


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 0, 2], "call 0 of a forward runs block 1, but the architecture table expects block 0"),
        ([0, 0, 1, 2], "call 1 of a forward runs block 0, but the architecture table expects block 1"),
        ([0, 1, 2, 2], "call 3 of a forward runs block 2, but the architecture table expects no more"),
        ([0, 1], "a forward ended after 2 block calls, but the architecture table expects 3"),
        ([], "a forward ended after 0 block calls"),
    ],
)
def test_a_model_whose_blocks_the_table_misplaces(order, message):
    row = ENCODERS["bert"]._replace(blocks="layers")
    stages = stream_stages(Chain(order), row, [], [{"x": torch.ones(1, 4)}])
    with pytest.raises(ModelError, match=message):
        [stage.outputs() for stage in stages]


def test_model_is_left_as_it_was_even_when_observing_fails(open_as):
    loaded = open_as(load_model, "mixtral")

    def fail(seen: object, x_MK: Tensor) -> None:
        raise ZeroDivisionError

    stage = next(stages_of(loaded, batches(loaded)))
    with pytest.raises(ZeroDivisionError):
        stage.observe(stage.sites, fail)
    blocks = [loaded.model.get_submodule(path) for path, _ in find_blocks(loaded.model, loaded.architecture)]
    assert not any("forward" in vars(block) for block in blocks)
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_nothing_is_patched_and_gradients_stay_on_while_the_caller_works(open_as):
    loaded = open_as(load_model, "bert")
    for _ in stages_of(loaded, batches(loaded)):
        assert loaded.model(**batches(loaded)[0]).last_hidden_state.requires_grad


def test_a_language_model_keeps_no_keys_and_values(open_as):
    loaded = open_as(load_model, "llama")
    (output, *_) = stream_outputs(loaded, batches(loaded))
    assert output.past_key_values is None


def test_no_batches_is_an_error(open_as):
    with pytest.raises(ModelError, match="at least one batch"):
        next(stages_of(open_as(load_model, "bert"), []))
