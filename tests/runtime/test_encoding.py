"""One contract for every model: what it is asked, what `encode` gives, and what is refused, whatever runs it."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright
from bitwright.errors import InputError, ModelError, NumericsError
from bitwright.kernels import dispatch
from bitwright.models.load import load_model, open_lazily
from bitwright.recipe import make_recipe
from bitwright.runtime import encoding, on_engine
from bitwright.runtime.encoding import batches_of
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.generic_model import GenericModel, float_model
from bitwright.runtime.items import Tokens
from bitwright.runtime.model import Model
from bitwright.runtime.streamed import StreamedModel
from tests.forks import ended_well, in_child

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
HOW = ("engine", "generic", "streamed", "whole decoder")


@pytest.fixture(scope="module")
def models(
    tiny_model: Callable[..., Path], tiny_decoder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Model]:
    out = tmp_path_factory.mktemp("int8") / "out"
    bitwright.quantize(
        tiny_model("bert"), out=out, recipe=make_recipe({"targets": ["bitwright"]}), samples=40, judged=False
    )
    return {
        "engine": bitwright.load(out),
        "generic": float_model(load_model(tiny_model("bert"))),
        "streamed": StreamedModel(open_lazily(tiny_decoder("llama"), runnable=False), 64),
        "whole decoder": float_model(load_model(tiny_decoder("llama"))),
    }


@pytest.fixture(params=HOW)
def model(models: dict[str, Model], request: pytest.FixtureRequest) -> Model:
    return models[request.param]


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")} | {"__call__"}


def test_each_has_every_member_and_encode_is_written_once(models: dict[str, Model]) -> None:
    assert [type(model) for model in models.values()] == [EngineModel, GenericModel, StreamedModel, GenericModel]
    for model in models.values():
        missing = members(Model) - set(dir(model))
        assert not missing, (type(model).__name__, missing)
        assert type(model).encode is encoding.encode
        assert type(model).tokenize is encoding.tokenize


def test_the_order_of_the_result_is_that_of_the_items(model: Model, texts: list[str]) -> None:
    items = model.tokenize([*texts[:9], "a", texts[3]])
    together = model.encode(items, batch_size=4)
    assert len(together) == len(items)
    for ids, row in zip(items, together, strict=True):
        (alone,) = model.encode([ids])
        assert row.shape == alone.shape
        assert row.dtype == np.float32
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(model.encode([*texts[:9], "a", texts[3]], batch_size=4), together, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_texts_are_cut_or_refused(model: Model, texts: list[str]) -> None:
    long = " ".join(texts[:30])
    (ids,) = model.tokenize([long])
    assert len(ids) == model.max_tokens
    np.testing.assert_array_equal(model.encode([long])[0], model.encode([ids])[0])
    with pytest.raises(InputError, match=f"text 1 has more than {model.max_tokens} tokens"):
        model.encode(["a class", long], truncate=False)


def test_nothing_in_nothing_out(model: Model) -> None:
    found = model.encode([])
    assert len(found) == 0
    if model.width is not None:
        assert isinstance(found, np.ndarray)
        assert found.shape == (0, model.width) == (0, *model.encode(["a"]).shape[1:])  # type: ignore[union-attr]
    assert model.tokenize([]) == []


def test_refusals_are_the_same(model: Model) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (["a", 3], {}, "text 1 is int, not str"),
        ([[3], []], {}, f"item 1 has 0 tokens; this model takes 1 to {model.max_tokens}"),
        ([[3] * 99], {}, "item 0 has 99 tokens"),
        (["a"], {"batch_size": 0}, "batch_size = 0"),
        (["a"], {"types": [[0]]}, "types can be given only with token ids"),
        ([[5]], {"types": [[7]]}, "token type 7, but this model has only 0 to"),
        (["a"], {"threads": 0}, "threads = 0"),
    ]
    for items, options, message in cases:
        with pytest.raises(InputError, match=message):
            model.encode(items, **options)


def test_threads_beyond_the_processors_are_not_taken(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, taken = models["engine"], []
    assert isinstance(engine, EngineModel)
    run = engine.executor.run
    monkeypatch.setattr(
        engine.executor, "run", lambda ids, threads, **more: taken.append(threads) or run(ids, threads, **more)
    )
    monkeypatch.setattr(on_engine, "usable_processors", lambda: 2)
    for threads in (1, 2, 5):
        engine.encode(["a"], threads=threads)
    assert taken == [1, 2, 2]
    assert [bitwright.load(engine.path, threads=threads).threads for threads in (1, 7)] == [1, 2]  # type: ignore[attr-defined]


def test_threads_are_the_engines(models: dict[str, Model]) -> None:
    np.testing.assert_array_equal(models["engine"].encode(["a"], threads=2), models["engine"].encode(["a"]))
    with pytest.raises(InputError, match=r"this model runs on torch; leave threads out"):
        models["generic"].encode(["a"], threads=2)


def test_several_python_threads_at_once(model: Model, texts: list[str]) -> None:
    lists = [texts[:9], texts[9:13], texts[13:14]]
    wants = [model.encode(items, batch_size=4) for items in lists]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(4):
            found = model.encode(lists[number % 3], batch_size=4)
            wrong.extend(number for mine, want in zip(found, wants[number % 3], strict=True) if (mine != want).any())

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_forked_children_encode_the_same(model: Model, texts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = torch.ones(400, 400)
        want, children = model.encode(texts[:2]), []

        def same() -> bool:
            return all(map(np.array_equal, model.encode(texts[:2]), want)) and bool((x @ x == 400).all())

        def fork_once() -> None:
            assert same()  # torch's threads are there, and the engine's, and the tokenizers library's
            children.append(in_child(same))

        fork_once()
        thread = threading.Thread(target=fork_once)
        thread.start()
        thread.join()
        assert [ended_well(child) for child in children] == [True] * 2
    finally:
        torch.set_num_threads(threads)
    assert capfd.readouterr() == ("", "")


def test_batches_are_tracked_as_they_are_done(model: Model) -> None:
    seen: list[int] = []

    def track(batches: Iterable[Any]) -> Iterable[Any]:
        for batch in batches:
            seen.extend(batch)
            yield batch

    model.encode([[5], [6, 7], [8]], batch_size=2, track=track)
    assert seen == [1, 0, 2]  # the longest first


class Broken:
    """A model whose outputs are not finite for one token."""

    path, width, tokens_at_once, n_types, max_tokens, vocabulary = Path("broken"), 2, None, 1, 9, 8
    task, pads = "sequence-classification", False
    encode = encoding.encode

    def run(self, batches: Any, threads: int | None = None) -> Any:
        for tokens in batches:
            yield [np.array([1, np.nan if 7 in ids else 0], np.float32) for ids in tokens.ids]


def test_outputs_that_are_not_finite_are_named() -> None:
    assert Broken().encode([[1], [2]]).shape == (2, 2)  # type: ignore[misc]
    with pytest.raises(NumericsError, match="broken: the output for text 1 has 1 values of 2 that are NaN or infinite"):
        Broken().encode([[1], [7, 1]])  # type: ignore[misc]


def test_batches() -> None:
    lengths = [3, 9, 3, 1, 3, 9]
    assert batches_of(lengths, 4, None) == [[1, 5, 0, 2], [4, 3]]
    assert batches_of(lengths, 4, 100) == [[1, 5], [0, 2, 4], [3]]
    assert batches_of(lengths, 4, 6) == [[1], [5], [0, 2], [4], [3]]
    assert batches_of(lengths, 4, 1) == [[1], [5], [0], [2], [4], [3]]
    assert batches_of([], 4, None) == []
    lengths = [40, 39, 20, 10, 9, 8, 8, 8, 5, 4]
    assert batches_of(lengths, 8, None, pads=True) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches_of([9, 8, 8, 7, 7, 7], 5, None, pads=True) == [[0, 1, 2, 3, 4], [5]]
    assert batches_of(lengths, 2, None, pads=True) == batches_of(lengths, 2, None)


def test_a_model_on_the_generic_path_is_its_own(models: dict[str, Model]) -> None:
    assert models["generic"].generic is models["generic"]
    assert models["engine"].generic is models["engine"].generic is not models["engine"]
    assert models["engine"].tokenizer is models["engine"].generic.tokenizer
    whole, streamed = models["streamed"].generic, models["streamed"]
    np.testing.assert_allclose(whole.encode([[5, 6, 7]])[0], streamed.encode([[5, 6, 7]])[0], rtol=1e-5, atol=1e-5)


def test_the_protocol_needs_no_torch() -> None:
    code = (
        "import sys, bitwright.runtime.model, bitwright.runtime.encoding\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("wrong", [-1, 200, 2**70, np.int64(-(2**40))])
def test_ids_that_the_model_has_not_are_refused_on_every_path(model: Model, wrong: int) -> None:
    assert model.vocabulary == 200
    with pytest.raises(InputError, match=f"^item 1: token id {wrong}, but this model has only 0 to 199$"):
        model.encode([[5, 6], [5, wrong]])
    with pytest.raises(InputError, match=f"item 1: token id {wrong}"):
        model.tokenize([[5], [wrong, 5]])
    model.encode([[0, 199]])


def test_ids_are_looked_at_behind_encode_too(model: Model) -> None:
    for ids in ([[5, 200]], [[-1, 5]]):
        with pytest.raises(InputError, match=r"(item|sequence) 0: token id (200|-1), but this model has only 0 to 199"):
            list(model.run([Tokens(ids)]))
        with pytest.raises(InputError, match=r"item 0: token id (200|-1), but this model has only 0 to 199"):
            model(input_ids=torch.tensor(ids))
        if model.task == "text-generation":
            with pytest.raises(InputError, match=r"item 0: token id (200|-1), but this model has only 0 to 199"):
                model.logits(torch.tensor(ids))
    if model.n_types > 1:
        with pytest.raises(InputError, match=r"(item|sequence) 0: token type 2, but this model has only 0 to 1"):
            list(model.run([Tokens([[5, 6]], [[0, 2]])]))
        with pytest.raises(InputError, match="item 0: token type 2, but this model has only 0 to 1"):
            model(input_ids=torch.tensor([[5, 6]]), token_type_ids=torch.tensor([[0, 2]]))


def test_a_tokenizer_of_another_model_is_told_by_its_ids(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are taken longest first; the message has the place that the user knows."""
    ids = {"a": [2, 5, 3], "zzzz": [2, 200], "b": [5, 6, 7, 8]}
    monkeypatch.setattr(type(model), "read", lambda self, texts, *args, **options: Tokens([ids[t] for t in texts]))
    with pytest.raises(
        InputError, match="item 1: its tokenizer gives the token id 200, but this model has only 0 to 199"
    ):
        model.encode(["a", "zzzz", "b"], batch_size=1)


def test_a_text_without_tokens_is_refused_by_name(tiny_model, tmp_path):
    path = Path(shutil.copytree(tiny_model("llama"), tmp_path / "bare"))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    model = bitwright.load(path)
    assert model.tokenize([""]) == [[]]
    with pytest.raises(InputError, match="text 1 has no tokens"):
        model.encode(["a b", ""])


def test_a_model_without_a_tokenizer_says_so(tiny_model, tmp_path):
    path = Path(shutil.copytree(tiny_model("llama"), tmp_path / "bare"))
    (path / "tokenizer.json").unlink()
    loaded = open_lazily(path)
    with pytest.raises(ModelError, match="transformers cannot build a tokenizer"):
        StreamedModel(loaded, loaded.max_tokens).encode(["a b"])
