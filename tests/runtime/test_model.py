"""`encode` of a language model: likelihoods of next tokens, whatever the batch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright.errors import InputError, ModelError
from bitwright.models.load import load_model
from bitwright.runtime import generic_model
from bitwright.runtime.generic_model import GenericModel, float_model


@pytest.fixture(scope="module")
def llama(tiny_decoder: Callable[..., Path]) -> GenericModel:
    return float_model(load_model(tiny_decoder("llama")))


def sequences(*lengths: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(4)
    return [torch.randint(5, 200, (n,), generator=g).tolist() for n in lengths]


def test_rows_are_the_likelihoods_of_next_tokens(llama: GenericModel) -> None:
    for ids, row in zip(items := sequences(9, 4, 9, 17), llama.encode(items), strict=True):
        with torch.inference_mode():
            logits = llama.hf(torch.tensor([ids])).logits[0, :-1].double()
        nll = -logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        assert row.dtype == np.float32
        assert row.shape == (2, len(ids) - 1)
        np.testing.assert_allclose(row[0], nll, rtol=1e-5, atol=1e-5)
        assert row[1].tolist() == logits.argmax(-1).tolist()


def test_a_sequence_gets_the_same_numbers_in_any_company(llama: GenericModel) -> None:
    items = sequences(30, 12, 30, 12, 1, 2, 30)
    together = llama.encode(items, batch_size=3)
    assert [row.shape for row in together] == [(2, len(ids) - 1) for ids in items]
    for ids, row in zip(items, together, strict=True):
        np.testing.assert_allclose(llama.encode([ids])[0], row, rtol=1e-5, atol=1e-5)


def test_batches_hold_one_length_and_few_tokens(llama: GenericModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    run = GenericModel.logits
    monkeypatch.setattr(GenericModel, "logits", lambda self, ids: shapes.append(tuple(ids.shape)) or run(self, ids))
    monkeypatch.setattr(generic_model, "_TOKENS_AT_ONCE", 40)
    llama.encode(sequences(*[10] * 9, 64, 7, 7), batch_size=5)
    assert sorted(shapes) == [(1, 10), (1, 64), (2, 7), (4, 10), (4, 10)]


def test_texts_are_tokenized_and_cut(llama: GenericModel) -> None:
    text = "the import statement finds a module, then binds names. " * 30
    rows = llama.encode([text, "a class"])
    assert rows[0].shape == (2, llama.max_tokens - 1)
    ids = llama.tokenize(["a class"])[0]
    np.testing.assert_array_equal(llama.encode([ids])[0], rows[1])
    with pytest.raises(InputError, match=f"text 1 has more than {llama.max_tokens} tokens"):
        llama.encode(["a class", text], truncate=False)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["a", 3], "text 1 is int, not str"),
        ([[3, 4], "a"], "item 1 is str; give texts, pairs of texts or sequences of token ids"),
        ([[3, 0.5]], "item 0 is list; give texts, pairs of texts or sequences"),
        ([None], "text 0 is NoneType"),
        ([[3], []], "item 1 has 0 tokens; this model takes 1 to 64"),
        ([[3] * 65], "item 0 has 65 tokens; this model takes 1 to 64"),
    ],
)
def test_items_that_are_neither_texts_nor_ids_say_so(llama: GenericModel, items: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        llama.encode(items)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "n_types"), [("bert", 2), ("roberta", 1), ("deberta-v2", 2), ("distilbert", None)])
def test_pairs_get_their_types(tiny_model: Callable[..., Path], family: str, n_types: int | None) -> None:
    directory = tiny_model(
        family, "sequence-classification", **({} if n_types is None else {"type_vocab_size": n_types})
    )
    model, typed = float_model(load_model(directory)), n_types == 2
    pairs = [("a class is an object", "names"), ("names", "a module binds names to objects"), ("", "a")]
    for pair, got in zip(pairs, model.encode(pairs), strict=True):
        inputs = model.tokenizer(*pair, return_tensors="pt", return_token_type_ids=typed)
        assert not typed or inputs["token_type_ids"].max() == 1
        with torch.inference_mode():
            np.testing.assert_allclose(got, model.hf(**inputs).logits[0], rtol=1e-4, atol=1e-5)


def test_encoders_take_token_ids_too(tiny_model: Callable[..., Path]) -> None:
    bert = float_model(load_model(tiny_model("bert")))
    texts = ["a class is an object", "names", "a module binds names to objects when imported"]
    np.testing.assert_array_equal(bert.encode(bert.tokenize(texts)), bert.encode(texts))
    without = GenericModel(bert.hf, None, bert.task, bert.sentences, bert.max_tokens, bert.backend, bert.path)
    np.testing.assert_array_equal(without.encode([[2, 9, 3], [2, 3]]), bert.encode([[2, 9, 3], [2, 3]]))
    with pytest.raises(ModelError, match="give token ids instead"):
        without.encode(texts)


def test_a_tokenizer_without_padding_is_no_hindrance(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_model("bert"), tmp_path / "copy"))
    settings = json.loads((path / "tokenizer_config.json").read_text())
    whole = float_model(load_model(path)).encode(["a", "a b c"])
    del settings["pad_token"]
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    np.testing.assert_array_equal(float_model(load_model(path)).encode(["a", "a b c"]), whole)
