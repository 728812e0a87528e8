"""What the engine computes is what the transformers model computes, for every family and every kind of head."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright.engine.builders import lower_encoder
from bitwright.engine.executor import Executor
from bitwright.engine.weights import open_weights
from bitwright.errors import EngineError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.models.load import load_model
from tests.engine.conftest import Open
from tests.families import ENCODERS

# The engine multiplies in bf16 and keeps what lies between linears in it: each of these rounds to 8 bits, 2^-9 at most.
TOLERANCE = 0.015
TASKS = ("sequence-classification", "token-classification", "question-answering")

TinyModel = Callable[..., Path]


def distance(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def hidden_states(directory: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    model = load_model(directory).model
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy() for ids in sequences]


@pytest.mark.parametrize("family", ENCODERS)
def test_every_token_gets_the_models_vector(
    tiny_model: TinyModel, opened: Open, sequences: list[list[int]], family: str
) -> None:
    directory = tiny_model(family)
    got = opened(directory, pooling=None).run(sequences, 1)
    assert distance(got, np.concatenate(hidden_states(directory, sequences))) < TOLERANCE


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling(tiny_model: TinyModel, opened: Open, sequences: list[list[int]], mode: str) -> None:
    want = []
    for rows in hidden_states(tiny_model("bert"), sequences):
        weights = np.arange(1, len(rows) + 1)[:, None]
        pooled = {
            "cls": rows[0],
            "lasttoken": rows[-1],
            "mean": rows.mean(0),
            "max": rows.max(0),
            "mean_sqrt_len_tokens": rows.sum(0) / len(rows) ** 0.5,
            "weightedmean": (rows * weights).sum(0) / weights.sum(),
        }[mode]
        want.append(np.concatenate([pooled, rows[0]]))
    got = opened(tiny_model("bert"), pooling=(mode, "cls")).run(sequences, 2)
    assert distance(got, np.stack(want)) < TOLERANCE


def test_unit_length(tiny_model: TinyModel, opened: Open, sequences: list[list[int]]) -> None:
    rows = opened(tiny_model("bert"), pooling=("mean",), normalize=True).run(sequences, 1)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ENCODERS)
def test_every_head(tiny_model: TinyModel, opened: Open, sequences: list[list[int]], family: str, task: str) -> None:
    directory = tiny_model(family, task)
    model = load_model(directory).model
    want = []
    with torch.inference_mode():
        for ids in sequences:
            out = model(input_ids=torch.tensor([ids]))
            if task == "question-answering":
                want.append(torch.stack([out.start_logits[0], out.end_logits[0]], dim=1).numpy())
            else:
                want.append(out.logits[0].numpy().reshape(-1, 3))
    assert distance(opened(directory).run(sequences, 1), np.concatenate(want)) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("bert", {"hidden_act": "gelu_fast"}, "activation 'gelu_fast'; it has gelu"),
        ("albert", {"num_hidden_groups": 2}, "does not support num_hidden_groups = 2"),
    ],
)
def test_settings_without_a_builder_say_so(
    tiny_model: TinyModel, family: str, config: dict[str, object], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        lower_encoder(open_weights(ModelDirectory(tiny_model(family, **config))))


def test_a_family_without_a_builder_says_so(tiny_model: TinyModel, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_model("bert"), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "funnel"}))
    with pytest.raises(EngineError, match="does not run model_type 'funnel'; it runs albert, arcee, bert, "):
        lower_encoder(open_weights(ModelDirectory(copy)))


@pytest.mark.parametrize("family", ENCODERS)
def test_blocks_compute_attention_as_the_checkpoint_says(written: Callable[..., Path], family: str) -> None:
    directory = written(family)
    program = lower_encoder(open_weights(ModelDirectory(directory)))
    assert program.int8_attention == (True, True)
    plain = lower_encoder(open_weights(ModelDirectory(directory), float_attention=True))
    assert plain.int8_attention == (False, False)
    long = [np.random.default_rng(0).integers(5, 200, 64).tolist()]  # short ones are computed in float anyway
    with dispatch.without_amx():  # AMX computes both in bf16
        got, want = (Executor(each, dispatch.native_isa()).run(long, 1) for each in (program, plain))
    assert 0 < distance(got, want) < 0.1


def test_some_blocks_only(written: Callable[..., Path]) -> None:
    rules = [{"match": "encoder.layer.1.attention.self", "attention": "float"}]
    assert lower_encoder(open_weights(ModelDirectory(written("bert", rules=rules)))).int8_attention == (True, False)
