"""Pooling is what the sentence-transformers library computes, on the real model and on every mode."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from bitwright.errors import ModelError
from bitwright.files.directory import ModelDirectory
from bitwright.files.pooling import Mode, Pooling
from bitwright.files.sentences import read_sentences
from bitwright.models.load import load_model
from bitwright.models.pool_tokens import pool_tokens

TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}
POOLING = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}


def write(path: Path, modules: Any, pooling: Any = None, normalize: Any = None) -> Path:
    (path / "modules.json").write_text(json.dumps(modules))
    for name, content in (("1_Pooling", pooling), ("2_Normalize", normalize)):
        if content is not None:
            (path / name).mkdir()
            (path / name / "config.json").write_text(json.dumps(content))
    return path


def read_pooling(path: Path) -> Pooling:
    if not (path / "config.json").exists():
        (path / "config.json").write_text("{}")
    return read_sentences(ModelDirectory(path), "embedding").pooling


def test_real_model_gives_the_library_s_embeddings(minilm_dir, texts):
    loaded = load_model(minilm_dir)
    tokens = loaded.tokenizer(
        texts[:24], padding=True, truncation=True, max_length=loaded.max_tokens, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = loaded.model(**tokens).last_hidden_state
    ours = pool_tokens(hidden, tokens["attention_mask"], read_pooling(minilm_dir))
    theirs = SentenceTransformer(str(minilm_dir), device="cpu").encode(texts[:24], convert_to_tensor=True)
    assert read_pooling(minilm_dir) == Pooling(("mean",), normalize=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("modes", [*((mode,) for mode in get_args(Mode)), ("cls", "mean"), get_args(Mode)])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_every_mode_equals_the_library(modes, normalize, left):
    hidden = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    mask = mask.flip(1) if left else mask
    features = TheirPooling(5, modes)({"token_embeddings": hidden, "attention_mask": mask})
    theirs = (Normalize()(features) if normalize else features)["sentence_embedding"]
    torch.testing.assert_close(pool_tokens(hidden, mask, Pooling(modes, normalize)), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_the_mask_excludes_has_no_influence(mode):
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    poisoned = hidden.masked_fill(mask.unsqueeze(-1) == 0, torch.nan)
    torch.testing.assert_close(
        pool_tokens(poisoned, mask, Pooling((mode,))), pool_tokens(hidden, mask, Pooling((mode,)))
    )


def test_half_precision_is_summed_in_float32():
    hidden = torch.full((1, 4096, 1), 40.0, dtype=torch.float16)  # the sum, 163840, is over float16's range
    pooled = pool_tokens(hidden, torch.ones(1, 4096), Pooling())
    assert (pooled.dtype, pooled.item()) == (torch.float16, 40.0)


@pytest.mark.parametrize("modes", [("cls",), ("mean", "max"), ("lasttoken",)])
def test_files_of_old_and_new_releases_are_read_alike(tmp_path, modes):
    flags = {"cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens", "mean": "pooling_mode_mean_tokens"}
    old = {flags.get(mode, f"pooling_mode_{mode}"): True for mode in modes} | {"word_embedding_dimension": 8}
    new = {"embedding_dimension": 8, "pooling_mode": modes[0] if len(modes) == 1 else list(modes)}
    for name, config in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        read = read_pooling(write(tmp_path / name, [TRANSFORMER, POOLING], config))
        assert set(read.modes) == set(modes)
        assert not read.normalize


def test_files_that_the_library_writes(tmp_path, tiny_model):
    from sentence_transformers.sentence_transformer.modules import Transformer

    transformer = Transformer(str(tiny_model("bert")))
    SentenceTransformer(modules=[transformer, TheirPooling(32, ("cls", "max")), Normalize()], device="cpu").save(
        str(tmp_path)
    )
    assert read_pooling(tmp_path) == Pooling(("cls", "max"), normalize=True)


def test_without_files_the_mean(tiny_model):
    assert read_pooling(tiny_model("bert")) == Pooling(("mean",), normalize=False)


@pytest.mark.parametrize(
    ("modules", "pooling", "normalize", "message"),
    [
        (
            [TRANSFORMER, POOLING, {"type": "x.CNN", "path": "2_CNN"}],
            {},
            None,
            "Transformer, Pooling, CNN. Bitwright runs",
        ),
        ([TRANSFORMER, NORMALIZE, POOLING], {}, None, "Without Normalize the embeddings"),
        ([POOLING, TRANSFORMER], {}, None, "the first module is Pooling"),
        ([TRANSFORMER | {"path": "0_Transformer"}, POOLING], {}, None, "in '0_Transformer', but there is no"),
        ([], None, None, "the first module is missing"),
        ([TRANSFORMER], None, None, "Without that order"),
        ({"a": 1}, None, None, "must be a list of modules"),
        ([TRANSFORMER, POOLING], {"pooling_mode": "median"}, None, r"\['median'\] is unknown; known are cls"),
        ([TRANSFORMER, POOLING], {"pooling_mode": []}, None, "known are cls"),
        ([TRANSFORMER, POOLING], {"pooling_mode": 5}, None, r"\[5\] is unknown; known are cls"),
        ([TRANSFORMER, POOLING], [1], None, "must hold a JSON object"),
        ([TRANSFORMER, POOLING], None, None, "modules.json names this file, but it does not exist"),
        ([TRANSFORMER, POOLING, NORMALIZE], {}, [1], "must hold a JSON object"),
        (
            [TRANSFORMER, POOLING, NORMALIZE],
            {},
            {"module_input_name": "token_embeddings"},
            "only on sentence_embedding",
        ),
    ],
)
def test_what_cannot_be_followed_exactly_is_refused(tmp_path, modules, pooling, normalize, message):
    with pytest.raises(ModelError, match=message):
        read_pooling(write(tmp_path, modules, pooling, normalize))
