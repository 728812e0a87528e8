"""Disentangled attention in all its variants: what transformers computes, and the same bits however the work is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from bitwright.engine.builders import lower_encoder
from bitwright.engine.disentangled import log_buckets
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.models.load import load_model
from tests.engine.conftest import Open
from tests.engine.test_builders import TOLERANCE, distance, hidden_states

TinyModel = Callable[..., Path]
ISAS = [row.name for row in dispatch.isa_table() if row.supported]
LONG = {"max_position_embeddings": 200, "position_buckets": 32}
NO_BUCKETS = {"position_buckets": -1, "max_relative_positions": 24}

# What differs from DeBERTa-v3 (both products, keys shared with the content, log buckets, normed relative embeddings).
VARIANTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "long": LONG,
    "long, half a bucket": {**LONG, "position_buckets": 7, "max_relative_positions": 90},
    "own projections": {"share_att_key": False, "norm_rel_ebd": "none"},
    "only c2p": {"pos_att_type": ["c2p"], "share_att_key": False},
    "only p2c": {"pos_att_type": "p2c"},
    "written as text": {"pos_att_type": "p2c|c2p"},
    "no buckets": NO_BUCKETS,
    "no buckets, long": {**LONG, **NO_BUCKETS},
    "every distance": {**LONG, "position_buckets": -1},
    "no relative positions": {"relative_attention": False, "position_biased_input": True},
    "positions and types": {"position_biased_input": True, "type_vocab_size": 2},
    "narrow embeddings": {"embedding_size": 16},
    "head size 24": {"hidden_size": 48},
    "head size 72": {**LONG, "hidden_size": 144, "initializer_range": 0.1},
}


@pytest.fixture(scope="module")
def lengths() -> list[list[int]]:
    """Token ids: a single token, more than the buckets of any variant, more than are gathered at once."""
    generator = np.random.default_rng(1)
    return [generator.integers(5, 200, length).tolist() for length in (7, 1, 66, 16, 33, 2, 17, 200, 64, 65, 150)]


def fitting(directory: Path, sequences: list[list[int]]) -> list[list[int]]:
    limit = open_weights(ModelDirectory(directory)).number("max_position_embeddings")
    return [ids for ids in sequences if len(ids) <= limit]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(tiny_model: TinyModel, opened: Open, lengths: list[list[int]], variant: str) -> None:
    directory = tiny_model("deberta-v2", **VARIANTS[variant])
    sequences = fitting(directory, lengths)
    assert len(sequences) >= 6
    want = hidden_states(directory, sequences)
    got = np.split(opened(directory, pooling=None).run(sequences, 1), np.cumsum([len(ids) for ids in sequences])[:-1])
    assert max(map(distance, got, want)) < 1.5 * TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(tiny_model: TinyModel, opened: Open, lengths: list[list[int]], isa: str) -> None:
    for variant in ("long", "head size 24"):
        directory = tiny_model("deberta-v2", **VARIANTS[variant])
        sequences = fitting(directory, lengths)
        want = np.concatenate(hidden_states(directory, sequences))
        assert distance(opened(directory, isa, pooling=None).run(sequences, 1), want) < TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
def test_threads_groups_and_company_change_no_bit(
    tiny_model: TinyModel, opened: Open, lengths: list[list[int]], isa: str
) -> None:
    directory = tiny_model("deberta-v2", **LONG)
    want = opened(directory, isa, group_tokens=1 << 20).run(lengths, 1)
    for group_tokens in (1, 96, 4096):
        executor = opened(directory, isa, group_tokens=group_tokens)
        for threads in (1, 2, 3):
            assert np.array_equal(executor.run(lengths, threads), want), (group_tokens, threads)
    alone = [executor.run([ids], 1)[0] for ids in lengths]
    assert np.array_equal(np.stack(alone), want)


def test_buffers_are_kept(tiny_model: TinyModel, opened: Open, lengths: list[list[int]]) -> None:
    executor = opened(tiny_model("deberta-v2", **LONG))
    executor.run(lengths, 1)
    before = executor.memory
    for begin in range(len(lengths)):
        executor.run(lengths[begin:], 1)
    assert executor.memory == before


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_the_pooler_has_an_activation_of_its_own(
    tiny_model: TinyModel, opened: Open, sequences: list[list[int]], activation: str
) -> None:
    directory = tiny_model("deberta-v2", "sequence-classification", pooler_hidden_act=activation)
    model = load_model(directory).model
    with torch.inference_mode():
        want = np.concatenate([model(input_ids=torch.tensor([ids])).logits.numpy() for ids in sequences])
    assert distance(opened(directory).run(sequences, 1), want) < TOLERANCE


@pytest.mark.parametrize(
    ("buckets", "furthest"), [(256, 512), (32, 200), (16, 66), (7, 90), (2, 3), (3, 40), (320, 4096)]
)
def test_buckets_are_those_of_transformers(buckets: int, furthest: int) -> None:
    distances = np.arange(-3000, 3001)
    want = make_log_bucket_position(torch.from_numpy(distances), buckets, furthest).long().numpy()
    assert np.array_equal(log_buckets(distances, buckets, furthest), want)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"conv_kernel_size": 3}, "does not support conv_kernel_size = 3"),
        ({"position_buckets": 16, "max_relative_positions": 9}, "position_buckets = 16 with up to 9 positions"),
        ({"pos_att_type": []}, "support relative_attention without a pos_att_type"),
        ({"pos_att_type": ["c2p", "p2p"]}, r"does not support pos_att_type = \['c2p', 'p2p'\]"),
    ],
)
def test_settings_without_a_builder(tiny_model: TinyModel, config: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        lower_encoder(open_weights(ModelDirectory(tiny_model("deberta-v2", **config))))


def test_what_a_program_says_of_its_attention(tiny_model: TinyModel) -> None:
    text = lower_encoder(open_weights(ModelDirectory(tiny_model("deberta-v2")))).text()
    assert "2 × 16 c2p p2c" in text
    assert (
        "2 × 16 p2c" in lower_encoder(open_weights(ModelDirectory(tiny_model("deberta-v2", pos_att_type="p2c")))).text()
    )
