"""Language models on the engine against transformers, each family; and a step with a past like the whole text.

One file although long: every test asks the same questions of the same small models.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import bitwright
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.engine.cache_layout import CacheKind
from bitwright.engine.decoders import Arithmetic, lower_text_decoder
from bitwright.engine.executor import Executor
from bitwright.engine.linears import Linear
from bitwright.engine.ops import Multiply
from bitwright.engine.weights import Weights, open_weights
from bitwright.errors import InputError
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.numerics.arrays import as_torch
from bitwright.numerics.grids import grouped, quantize, scale_and_zero_point
from bitwright.numerics.linear import FloatLinear, QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.recipe import make_recipe
from tests.engine.running import EACH_KIND, HEADS, KINDS, LLAMA3, MINISTRAL3, YARN, Running

TinyModel = Callable[..., Path]

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, every head its keys": ("llama", {"num_key_value_heads": 4}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 9}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "gemma3_text": ("gemma3_text", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "gemma3_text, capped": ("gemma3_text", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 40}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv", "conv"], "num_hidden_layers": 4}),
    "lfm2, biases": ("lfm2", {"conv_bias": True, "conv_L_cache": 5}),
    "lfm2, the FFN as given": ("lfm2", {"full_attn_idxs": [0], "block_auto_adjust_ff_dim": False}),
    "phi3": ("phi3", {"head_dim": 16, "hidden_size": 64, "sliding_window": 11}),
    "phi3, partial": ("phi3", {"hidden_size": 64, "partial_rotary_factor": 0.5}),
    "llama, yarn as DeepSeek": ("llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.5}}),
    "llama, yarn not truncated": ("llama", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 3.0}}),
    "ministral": ("ministral", {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}),
    "ministral3": ("ministral3", {"rope_parameters": MINISTRAL3}),
    "ministral3, window": ("ministral3", {"rope_parameters": MINISTRAL3, "sliding_window": 20}),
    "granite": (
        "granite",
        {"attention_multiplier": 0.4, "residual_multiplier": 0.3, "embedding_multiplier": 5.0, "logits_scaling": 8.0,
         "rms_norm_eps": 0.1},
    ),
    "bitnet": ("bitnet", {"hidden_size": 64}),
    "bitnet, silu": ("bitnet", {"hidden_size": 64, "hidden_act": "silu", "attention_bias": True}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layers": [0, 1]}),
    "smollm3, by interval": ("smollm3", {"no_rope_layer_interval": 2, "attention_bias": True}),
    "smollm3, windows": (
        "smollm3", {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 7},
    ),
    "olmo2": ("olmo2", {}),
    "olmo2, every head its keys": ("olmo2", {"num_key_value_heads": 4, "attention_bias": True}),
    "olmo3": ("olmo3", {"sliding_window": 9, "layer_types": KINDS, "rope_parameters": EACH_KIND}),
    "olmo3, by its pattern": ("olmo3", {"sliding_window": 7, "num_hidden_layers": 4}),
    "exaone4": ("exaone4", {"sliding_window": 9, "layer_types": KINDS}),
    "exaone4, no windows": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "exaone4, a window that no block has": ("exaone4", {"layer_types": ["full_attention"] * 2}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 40, "attn_logit_softcapping": 2.0,
                          "final_logit_softcapping": 3.0}),
    "vaultgemma": ("vaultgemma", {"sliding_window": 8, "attn_logit_softcapping": 2.0}),
    "seed_oss": ("seed_oss", {}),
    "seed_oss, biases": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "arcee": ("arcee", {}),
    "arcee, biases": ("arcee", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "cwm": ("cwm", {"sliding_window": 9, "layer_types": KINDS}),
    "helium": ("helium", {"hidden_size": 64, "num_key_value_heads": 4}),
    "ernie4_5": ("ernie4_5", {}),
    "ernie4_5, biases": ("ernie4_5", {"use_bias": True}),
    "hyperclovax": (
        "hyperclovax",
        {"attention_multiplier": 0.4, "residual_multiplier": 0.3, "embedding_multiplier": 5.0, "logits_scaling": 0.25,
         "rms_norm_eps": 0.1},
    ),
    "glm": ("glm", {}),
    "glm, all of a head": ("glm", {"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 1.0}}),
    "glm4": ("glm4", {}),
    "nemotron": ("nemotron", {}),
    "nemotron, biases": ("nemotron", {"attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.25}),
    "jais2": ("jais2", {}),
    "stablelm": ("stablelm", {"hidden_size": 64}),
    "stablelm, biases": ("stablelm", {"hidden_size": 64, "use_qkv_bias": True, "partial_rotary_factor": 0.75}),
    "starcoder2": ("starcoder2", {}),
    "cohere": ("cohere", {"logit_scale": 0.3}),
    "cohere2": ("cohere2", {"hidden_size": 64, "sliding_window": 9, "layer_types": KINDS}),
    "phi": ("phi", {"hidden_size": 64}),
    "phi, every head its keys": ("phi", {"hidden_size": 64, "num_key_value_heads": 4, "partial_rotary_factor": 0.75}),
    "starcoder2, window": ("starcoder2", {"sliding_window": 9, "use_bias": False}),
}  # fmt: skip


def test_a_step_beyond_the_last_position_is_refused(tiny_model: TinyModel) -> None:
    """There are no angles for it: logits would be NaN, or whatever lies behind the table."""
    running = Running(tiny_model("llama", **(HEADS | {"max_position_embeddings": 96})), kind="int8")
    ids = np.random.default_rng(0).integers(4, 200, 100).tolist()
    for cuts, message in (([], "has 0 tokens and gets 97 more"), ([90], "has 90 tokens and gets 7 more")):
        with pytest.raises(InputError, match=rf"sequence 0 {message}; this model has 96 positions"):
            running.logits(ids[:97], cuts)
    assert np.isfinite(running.logits(ids[:96], [90])).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(tiny_model: TinyModel, ids: list[int], name: str) -> None:
    family, config = FAMILIES[name]
    directory = tiny_model(family, **(HEADS | config))
    hf = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = hf(torch.tensor([ids])).logits[0].numpy()
    found = Running(directory, arithmetic=Arithmetic(head="16")).logits(ids, [])
    spread = want - want.mean(axis=1, keepdims=True)
    apart = np.linalg.norm(found - want, axis=1) / np.linalg.norm(spread, axis=1)
    assert apart.max() < 0.1, apart  # weights and values between the linears are bf16; a wrong reading is 0.3 apart
    assert np.sqrt((apart**2).mean()) < 0.03


@pytest.mark.parametrize(
    "how", [{"scheme": "w4a16_g32", "method": "awq_gptq"}, {"scheme": "w8a8", "method": "smoothquant_gptq"}], ids=str
)
def test_a_quantized_file_gives_what_it_gives_in_transformers(
    tiny_model: TinyModel, tmp_path: Path, ids: list[int], how: dict[str, str]
) -> None:
    """Of a family whose blocks have linears of two kinds, which read what a convolution or attention makes."""
    family, config = FAMILIES["lfm2"]
    source, out = tiny_model(family, **(HEADS | config | {"hidden_size": 64})), tmp_path / "out"
    bitwright.quantize(source, out=out, recipe=make_recipe(how), samples=40, judged=False)
    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = hf(torch.tensor([ids])).logits[0].numpy()
    quantized = read_checkpoint(ModelDirectory(out)).linears
    assert {name.partition(".0.")[2] for name in quantized if ".0." in name} == {
        "conv.in_proj", "conv.out_proj", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    }  # fmt: skip
    found = Running(out, arithmetic=Arithmetic("bf16", head="16")).logits(ids, [])
    apart = np.linalg.norm(found - want) / np.linalg.norm(want - want.mean(axis=1, keepdims=True))
    assert apart < 0.1  # with 8-bit inputs both round independently; a wrong reading is 0.3 apart


@pytest.mark.parametrize("how", [{"scheme": "w4a16_g32", "method": "gptq"}, {"scheme": "w8a8"}], ids=str)
@pytest.mark.parametrize("name", ["olmo3", "exaone4", "glm4", "nemotron", "starcoder2", "gemma2", "cohere2", "phi"])
def test_a_quantized_file_of_other_norms_gives_what_it_gives_in_transformers(
    tiny_model: TinyModel, tmp_path: Path, ids: list[int], name: str, how: dict[str, str]
) -> None:
    """Of families whose linears read the residual, what layer norms make, or what has no gate."""
    family, config = FAMILIES[name]
    source = tiny_model(family, **(HEADS | config | {"hidden_size": 64, "intermediate_size": 64}))
    out = tmp_path / "out"
    bitwright.quantize(source, out=out, recipe=make_recipe(how), samples=8, judged=False)
    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = hf(torch.tensor([ids])).logits[0].numpy()
    running = Running(out, arithmetic=Arithmetic("bf16", head="16"))
    assert {op.dtype for op in running.executor.program.ops if isinstance(op, Multiply)} > {"bf16"}
    found = running.logits(ids, [])
    apart = np.linalg.norm(found - want) / np.linalg.norm(want - want.mean(axis=1, keepdims=True))
    assert apart < 0.1
    np.testing.assert_array_equal(running.logits(ids, [1, 40, 41], 2), found)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "mistral, window",
        "qwen3",
        "gemma3_text",
        "phi3",
        "lfm2",
        "lfm2, biases",
        "ministral3, window",
        "smollm3",
        "bitnet",
        "olmo2",
        "olmo3",
        "exaone4",
        "gemma2",
        "glm4",
        "cohere2",
        "starcoder2, window",
    ],
)
def test_a_step_with_a_past_gives_the_bytes_of_the_whole_text(tiny_model: TinyModel, ids: list[int], name: str) -> None:
    family, config = FAMILIES[name]
    running = Running(tiny_model(family, **(HEADS | config)))
    whole = running.logits(ids, [])
    for threads, cuts in ((1, [1, 2, 3, 40, 64, 65]), (2, list(range(1, len(ids)))), (2, [63]), (3, [17, 80])):
        np.testing.assert_array_equal(running.logits(ids, cuts, threads), whole)


def test_what_fewer_bits_in_the_cache_cost(tiny_model: TinyModel) -> None:
    """Against bf16, and least while all is near enough to be read in 8 bits."""
    ids = np.random.default_rng(8).integers(4, 200, 560).tolist()
    directory = tiny_model("llama", **(HEADS | {"max_position_embeddings": 600}))
    exact, int8, int4 = (
        Running(directory, kind=kind, tokens=640).logits(ids, []) for kind in ("bf16", "int8", "int4")
    )  # fmt: skip

    def loss(logits_TV: np.ndarray) -> float:
        picked_T = logits_TV[np.arange(len(ids) - 1), ids[1:]]
        return float((np.log(np.exp(logits_TV[:-1]).sum(axis=1)) - picked_T).mean())

    assert abs(np.expm1(loss(int4) - loss(exact))) < 0.005
    near, far = (np.linalg.norm(int4[rows] - exact[rows]) for rows in (slice(220, 320), slice(460, 560)))
    of_int8 = np.linalg.norm(int8[220:320] - exact[220:320])
    assert near < 1.2 * of_int8 < far


@pytest.mark.parametrize(
    ("name", "kind", "tokens"),
    [
        ("llama", "bf16", 200),
        ("lfm2", "bf16", 200),
        ("lfm2, biases", "bf16", 200),
        ("llama", "int4", 520),  # the last tokens see three blocks in 4 bits
        ("lfm2", "int4", 450),
        ("mistral, window", "int8", 300),  # blocks behind the window are given back
        ("olmo3", "int8", 300),
    ],
)
def test_drafts_forks_and_what_is_taken_back_change_no_byte(
    tiny_model: TinyModel, name: str, kind: CacheKind, tokens: int
) -> None:
    family, config = FAMILIES[name]
    directory = tiny_model(family, **(HEADS | config | {"max_position_embeddings": 600}))
    running, random = Running(directory, kind=kind, tokens=3 * tokens), np.random.default_rng(5)
    ids = random.integers(4, 200, tokens).tolist()
    whole, cache = running.logits(ids, []), running.cache
    assert np.isfinite(whole).all()
    held = cache.begin(ids)

    def step(most: int) -> None:
        """Some of the next tokens, then drafts that turn out wrong."""
        begin, tokens = held.length, int(random.integers(1, min(most, len(ids) - held.length) + 1))
        drafts = random.integers(4, 200, random.integers(0, cache.layout.undone + 1)).tolist()
        cache.grow(held, tokens + len(drafts))
        new = ids[begin : begin + tokens] + drafts
        found = running.executor.step(cache.step([(held, new, len(new))]), int(random.integers(1, 4)))
        np.testing.assert_array_equal(found[:tokens], whole[begin : begin + tokens])
        cache.appended(held, ids[: begin + tokens])

    for _ in range(150):
        what = random.random()
        if held.length == len(ids) or what < 0.2:
            length = int(random.integers(max(held.length - 30, 0), held.length + 1))
            cache.roll_back(held, length)
            assert length // 64 * 64 <= held.length <= length
        elif what < 0.35:
            other = cache.fork(held)
            step(10)
            cache.end(held)
            held = other
        elif what < 0.4:
            cache.end(held)
            held = cache.begin(ids)
        else:
            step(len(ids) // 3)
    cache.end(held)
    assert cache.free == cache.size


def test_a_head_is_held_in_8_bits_with_scales_for_groups(tiny_model: TinyModel, ids: list[int]) -> None:
    directory = tiny_model("llama", **HEADS)
    want = Running(directory, arithmetic=Arithmetic(head="16")).logits(ids, [])
    found = Running(directory, arithmetic=Arithmetic(head="int8")).logits(ids, [])
    apart = np.linalg.norm(found - want) / np.linalg.norm(want - want.mean(axis=1, keepdims=True))
    assert 0.001 < apart < 0.01


def test_8_bits_with_groups_are_held_in_halves(
    tiny_model: TinyModel, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every linear and the head. Codes stay as they are; only inputs are rounded."""
    own, directory = Weights.linear, tiny_model("llama", intermediate_size=64, **HEADS)
    spec = QuantSpec(8, group_size=32, full_range=True)

    def coded(weights: Weights, name: str) -> QuantizedLinear:
        floats = own(weights, name)
        assert isinstance(floats, FloatLinear)
        q = quantize(
            as_torch(floats.widened()), torch.full((floats.shape[0], floats.shape[1] // 32), 2**-7), None, spec
        )
        return QuantizedLinear(QTensor(q.codes_NK.numpy(), q.scale_NG.numpy(), None, spec))

    monkeypatch.setattr(Weights, "linear", coded)
    want = Running(directory, arithmetic=Arithmetic(inputs="bf16", head="16")).logits(ids, [])
    running = Running(directory)
    found = running.logits(ids, [])
    kinds = {op.dtype for op in running.executor.program.ops if isinstance(op, Multiply)}
    assert kinds == {"int4 g32×int8"}
    apart = np.linalg.norm(found - want, axis=1) / np.linalg.norm(want - want.mean(axis=1, keepdims=True), axis=1)
    assert 0.001 < np.median(apart) < 0.05
    np.testing.assert_array_equal(running.logits(ids, [1, 40, 41], 2), found)


@pytest.mark.parametrize("bits", [3, 4])
def test_minima_give_what_zero_points_do(
    tiny_model: TinyModel, ids: list[int], bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a weight that both describe. Sums are rounded elsewhere, so a code of an input differs now and then."""
    spec, own = QuantSpec(bits=bits, symmetric=False, group_size=32), Weights.linear
    directory = tiny_model("llama", intermediate_size=64, **HEADS)

    def with_offset(minimum: bool) -> Callable[[Weights, str], Linear]:
        def linear(weights: Weights, name: str) -> Linear:
            floats = own(weights, name)
            if not isinstance(floats, FloatLinear) or "layers" not in name:
                return floats
            ends = torch.aminmax(grouped(as_torch(floats.widened()), spec), dim=-1)
            scale_NG, zero_NG = scale_and_zero_point(ends.min, ends.max, spec)
            scale_NG = scale_NG.bfloat16().float()  # so that every product of a scale and a code is exact
            q = quantize(as_torch(floats.widened()), scale_NG, zero_NG, spec)
            zero_NG = q.zero_point_NG.numpy()
            lowest_NG = (spec.code_min - zero_NG.astype(np.float32)) * scale_NG.numpy()
            codes_NK, offsets = q.codes_NK.numpy(), (None, None, lowest_NG) if minimum else (zero_NG, None, None)
            return QuantizedLinear(QTensor(codes_NK, scale_NG.numpy(), offsets[0], spec, offsets[1], offsets[2]))

        return linear

    for arithmetic in (Arithmetic(), Arithmetic(inputs="bf16")):
        found = {}
        for minimum in (False, True):
            monkeypatch.setattr(Weights, "linear", with_offset(minimum))
            running = Running(directory, arithmetic=arithmetic)
            found[minimum] = running.logits(ids, [])
            np.testing.assert_array_equal(running.logits(ids, [1, 40, 41], 2), found[minimum])
        apart = np.linalg.norm(found[True] - found[False], axis=1) / np.linalg.norm(found[False], axis=1)
        assert np.median(apart) < 1e-5
        assert apart.max() < 0.03


def test_company_changes_nothing(tiny_model: TinyModel, ids: list[int]) -> None:
    running = Running(tiny_model("llama", **HEADS))
    texts = [ids[:1], ids[5:70], ids[3:20], ids[60:]]
    alone = [running.logits(text, []) for text in texts]
    held = [running.cache.begin([]) for _ in texts]
    for one, text in zip(held, texts, strict=True):
        running.cache.grow(one, len(text))
    work = [(one, text, len(text)) for one, text in zip(held, texts, strict=True)]
    np.testing.assert_array_equal(running.executor.step(running.cache.step(work), 2), np.concatenate(alone))


def test_only_wanted_tokens_have_logits(tiny_model: TinyModel, ids: list[int]) -> None:
    running = Running(tiny_model("llama", **HEADS))
    whole, held = running.logits(ids, []), running.cache.begin([])
    running.cache.grow(held, len(ids))
    found = running.executor.step(running.cache.step([(held, ids, 3)]), 2)
    np.testing.assert_array_equal(found, whole[-3:])


def test_a_shorter_context_needs_fewer_angles_and_changes_nothing(tiny_model: TinyModel, ids: list[int]) -> None:
    directory = tiny_model("llama", **HEADS)
    short = Running(directory, context=100)
    assert short.executor.program.max_tokens == 100
    np.testing.assert_array_equal(short.logits(ids, []), Running(directory).logits(ids, []))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"is_causal": False, "sliding_window": 20}),
        ("olmo3", {"sliding_window": 20}),
        ("cohere", {}),
    ],
)
def test_vectors_of_texts_are_those_of_transformers_in_any_company(
    tiny_model: TinyModel, family: str, config: dict[str, Any]
) -> None:
    directory = tiny_model(family, "embedding", **(HEADS | config))
    program = lower_text_decoder(open_weights(ModelDirectory(directory)), "embedding", pooling=None)
    executors = [Executor(program, dispatch.native_isa(), group_tokens=size) for size in (64, 4096)]
    generator = np.random.default_rng(4)
    texts = [generator.integers(4, 200, length).tolist() for length in (7, 1, 64, 200, 65, 2, 40, 16, 63, 3)]
    rows = np.split(executors[0].run(texts, 1), np.cumsum([len(text) for text in texts])[:-1])
    hf = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    for text, found in zip(texts, rows, strict=True):
        with torch.inference_mode():
            want = hf(torch.tensor([text])).last_hidden_state[0].numpy()
        assert np.linalg.norm(found - want) < 0.03 * np.linalg.norm(want)
    for executor, threads, order in ((executors[0], 3, 1), (executors[1], 2, -1), (executors[1], 1, 1)):
        again = executor.run(texts[::order], threads)
        np.testing.assert_array_equal(again, np.concatenate(rows[::order]))
    with ThreadPoolExecutor(4) as callers:  # each call has keys and values of its own
        found = list(callers.map(lambda k: executors[0].run(texts[k:], 1), [*range(len(texts))] * 8))
    for k, out in enumerate(found):
        np.testing.assert_array_equal(out, np.concatenate(rows[k % len(texts) :]))
    assert [executor.steps([len(text) for text in texts], 1) for executor in executors] == [7, 1]
