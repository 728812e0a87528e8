"""A language model on the engine, as users have it: answers, streams, threads, limits, pickles."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import bitwright
from bitwright.engine.decoders import Arithmetic
from bitwright.errors import EngineError, InputError
from bitwright.files.directory import ModelDirectory
from bitwright.recipe import make_recipe
from bitwright.runtime.decoder_model import DecoderModel
from tests.forks import ended_well, in_child

CONFIG = {"head_dim": 16, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256}
PROMPTS = ["the harbour", "a", "text of some length that has more words than the others have", "the harbour was"]


@pytest.fixture(scope="module")
def float_directory(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", dtype=torch.bfloat16, **CONFIG)


@pytest.fixture(scope="module")
def directory(float_directory: Path, once: Callable[..., Path]) -> Path:
    recipe = make_recipe({"scheme": "w4a16_g32", "targets": ["bitwright"]})
    return once(
        "decoder in 4 bits", lambda out: bitwright.quantize(float_directory, out=out, recipe=recipe, judged=False)
    )


@pytest.fixture(scope="module")
def model(directory: Path) -> DecoderModel:
    found = bitwright.load(directory)
    assert isinstance(found, DecoderModel)
    return found


def test_a_quantized_language_model_runs_on_the_engine(model: DecoderModel) -> None:
    assert model.backend.startswith("engine:")
    assert model.backend.endswith("int8 cache")
    assert (model.task, model.max_tokens, model.vocabulary) == ("text-generation", 256, 200)


def test_answers_do_not_depend_on_company_or_threads(model: DecoderModel) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    together = model.generate(PROMPTS, **asked)
    assert [model.generate(prompt, **asked)[0] for prompt in PROMPTS] == together
    assert all(len(answer.ids) == 12 and answer.finish_reason == "length" for answer in together)
    found: dict[str, Any] = {}

    def work(prompt: str) -> None:
        found[prompt] = model.generate(prompt, **asked)[0]

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[prompt] for prompt in PROMPTS] == together
    assert model.scheduler.idle
    assert model.cache.free == model.cache.size


def test_a_cache_of_four_bits_takes_half_of_one_of_eight(directory: Path, model: DecoderModel) -> None:
    small = bitwright.load(directory, kv_cache="int4")
    assert isinstance(small, DecoderModel)
    assert small.backend.endswith("int4 cache")
    assert small.cache.layout.block_bytes < 0.6 * model.cache.layout.block_bytes
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    together = small.generate(PROMPTS, **asked)
    assert [small.generate(prompt, **asked)[0] for prompt in PROMPTS] == together
    assert pickle.loads(pickle.dumps(small)).generate(PROMPTS, **asked) == together


def test_a_stream_is_the_answer_in_pieces(model: DecoderModel) -> None:
    (answer,) = model.generate("the harbour", max_tokens=9)
    steps = list(model.stream("the harbour", max_tokens=9))
    assert "".join(step.text for step in steps) == answer.text
    assert tuple(step.id for step in steps) == answer.ids
    assert steps[-1].finish_reason == "length"


def test_a_stream_that_is_closed_gives_everything_back(model: DecoderModel) -> None:
    stream = model.stream("the harbour", max_tokens=100)
    next(stream)
    stream.close()
    assert model.scheduler.idle
    assert model.cache.free == model.cache.size


def test_a_child_forked_in_the_middle_of_a_step_answers_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread holds the model's turn, and is gone in the child; what it asked for is the parent's."""
    model = bitwright.load(directory)
    assert isinstance(model, DecoderModel)
    (wanted,) = model.generate("the harbour", max_tokens=5)
    stepping, go_on = threading.Event(), threading.Event()
    run = model.scheduler._run

    def slow(batch: Any) -> np.ndarray:
        stepping.set()
        go_on.wait(20)
        return run(batch)

    monkeypatch.setattr(model.scheduler, "_run", slow)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(model.generate("a", max_tokens=3)))
    thread.start()
    stream = model.stream("the harbour", max_tokens=5)
    stepping.wait(20)

    def holds() -> bool:
        with pytest.raises(EngineError, match="forked while an answer was computed"):
            model._advance(parents)
        return model.generate("the harbour", max_tokens=5)[0] == wanted and model.scheduler.idle

    parents = model.scheduler
    child = in_child(holds)
    go_on.set()
    thread.join()
    assert ended_well(child)
    assert len(answers[0].ids) == 3
    assert "".join(step.text for step in stream) == wanted.text


def test_the_engine_in_16_bits_rounds_nothing_to_int8(directory: Path, float_directory: Path) -> None:
    model, engine = bitwright.load(directory, compute="bf16", kv_cache="bf16"), bitwright.load(directory)
    assert ", bf16, bf16 cache" in model.backend
    ids = torch.tensor([np.random.default_rng(2).integers(5, 200, 60).tolist()])
    plain = bitwright.load(directory, compute="float32").logits(ids)
    near, far = ((found.logits(ids) - plain).norm() / plain.norm() for found in (model, engine))
    assert near < 0.02
    assert near < far / 1.5


def test_greedy_answers_are_those_of_transformers(float_directory: Path) -> None:
    """The float model on the engine; a token may differ only where the likeliest two are as near as bf16 rounds."""
    model = bitwright.load(float_directory, compute="engine", kv_cache="bf16")
    assert isinstance(model, DecoderModel)
    hf = AutoModelForCausalLM.from_pretrained(float_directory, dtype=torch.float32).eval()
    random = np.random.default_rng(0)
    same = 0
    for _ in range(20):
        prompt = random.integers(5, 200, random.integers(1, 40)).tolist()
        (answer,) = model.generate([prompt], max_tokens=12, ignore_eos=True)
        ids = [*prompt, *answer.ids]
        with torch.inference_mode():
            logits = hf(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        best, chosen = logits.max(dim=1).values, logits[torch.arange(12), list(answer.ids)]
        assert ((best - chosen) <= 0.05 * logits.std()).all()
        same += int((best == chosen).sum())
    assert same >= 0.97 * 20 * 12


def test_scores_are_those_of_the_logits(model: DecoderModel) -> None:
    ids = np.random.default_rng(1).integers(5, 200, 90).tolist()
    logits = model.logits(torch.tensor([ids]))[0]
    (scored,) = model.encode([ids])
    want = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    np.testing.assert_allclose(scored[0], want.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scored[1], logits[:-1].argmax(dim=1).numpy())
    both = torch.tensor([ids[:40], ids[40:80]])
    assert torch.equal(model.logits(both)[0], model.logits(both[:1])[0])


def test_the_arithmetic_is_a_choice(directory: Path, model: DecoderModel) -> None:
    ids = torch.tensor([list(range(5, 60))])
    exact = DecoderModel(ModelDirectory(directory), arithmetic=Arithmetic("bf16", "16", "bf16")).logits(ids)
    generic = model.generic.logits(ids)
    spread = (generic - generic.mean()).norm()
    apart = (exact - generic).norm()
    assert apart < 0.03 * spread
    assert apart < (model.logits(ids) - generic).norm() < 0.15 * spread


@pytest.mark.parametrize(
    ("prompt", "asked", "says"),
    [
        ("", {}, "no tokens|at least one"),
        ([5] * 256, {}, "256 tokens and the model takes 256"),
        ([5, 999], {}, "token 999; this model has tokens 0 to 199"),
        ("a", {"max_tokens": 0}, "max_tokens is 0"),
        ("a", {"temperature": float("nan")}, "temperature is nan"),
        ("a", {"stop": [""]}, "stop is"),
        ("a", {"top": 3}, "top"),
        (5, {}, "a prompt is a text or a list of token ids, not 5"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(model: DecoderModel, prompt: Any, asked: Any, says: str) -> None:
    if prompt == "":
        prompt = []
    with pytest.raises((InputError, TypeError), match=says):
        model.generate([prompt], **asked)
    assert model.scheduler.idle


def test_a_context_that_does_not_fit_is_refused(directory: Path) -> None:
    for wrong in (0, -3, "many"):
        with pytest.raises(InputError, match="context"):
            bitwright.load(directory, context=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="kv_cache = 'int3' is unknown"):
        bitwright.load(directory, kv_cache="int3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="GB, which this machine does not have"):
        DecoderModel(ModelDirectory(directory), cache_tokens=1 << 50)


def test_a_family_without_a_builder_says_so(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match="model_type 'gpt2'"):
        bitwright.load(tiny_model("gpt2"), compute="engine")


def test_a_model_is_an_ordinary_object(model: DecoderModel) -> None:
    want = model.generate(PROMPTS, max_tokens=6)
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.generate(PROMPTS, max_tokens=6) == want
