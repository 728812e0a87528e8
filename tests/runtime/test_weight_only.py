"""Linears of every scheme on the engine: what the generic path computes, in the memory that the scheme promises."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitwright
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.engine.ops import Multiply, MultiplyW4A8, MultiplyWna16, Round
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.models.load import load_model
from bitwright.models.names import model_names
from bitwright.numerics.linear import QuantizedLinear, ready
from bitwright.numerics.schemes import SCHEMES, Scheme
from bitwright.numerics.spec import QuantSpec
from bitwright.recipe import make_recipe
from bitwright.runtime.engine_model import EngineModel
from bitwright.runtime.generic import load_generic
from bitwright.runtime.generic_model import float_model
from bitwright.runtime.swap import round_groups, set_compute, swap_linears
from bitwright.runtime.verify import compared, verify
from bitwright.runtime.verify_library import Given

pytestmark = [
    pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built"),
]
IDS = torch.randint(5, 200, (3, 17), generator=torch.Generator().manual_seed(2))
# As of a float model on the engine (tests/engine/test_builders.py): bf16 here and there.
TOLERANCE = 0.015
# Where inputs are rounded to codes, those that lie at the middle between two may become either.
CODES_TOLERANCE = 0.04

ASYMMETRIC8 = QuantSpec(symmetric=False)
INPUT = QuantSpec(symmetric=False, dynamic=True)
# Beyond those with a name: what other tools write.
OTHERS = {
    "int8 groups": Scheme("", QuantSpec(group_size=32)),
    "int8 asymmetric": Scheme("", ASYMMETRIC8),
    "int8 asymmetric, int8 inputs": Scheme("", ASYMMETRIC8, INPUT),
    "int8 groups, int8 inputs": Scheme("", QuantSpec(group_size=32), INPUT),
    "int4 per tensor": Scheme("", QuantSpec(bits=4, per_tensor=True)),
    "int4 asymmetric per tensor": Scheme("", QuantSpec(bits=4, per_tensor=True, symmetric=False)),
    "groups of 16": Scheme("", QuantSpec(bits=4, group_size=16)),
    "groups of 4": Scheme("", QuantSpec(bits=4, group_size=4, symmetric=False)),
    "nf4 groups of 4": Scheme("", QuantSpec(bits=4, group_size=4, grid="nf4")),
    "pot": Scheme("", QuantSpec(bits=4, grid="pot")),
    "kmeans3": Scheme("", QuantSpec(bits=3, grid="kmeans", group_size=32)),
}
NAMED = [
    "w8a8", "w8a8_symmetric", "w8a16", "w4a16_channel", "w4a16_g32", "w4a16_g64", "w4a16_channel_asym",
    "w4a16_g32_asym", "w4a16_g64_asym", "w3a16_g32", "w3a16_channel_asym", "w2a16_g32", "w2a16_g32_asym", "log4_g32",
    "nf4_g64", "nf4_channel", "kmeans4_g32", "ternary_g32", "binary_g32", "w4a8_channel", "w2a8_channel",
    "ternary_a8_channel", "w4a8_channel_asym", "w4a8_g32", "w4a8_g64_asym",
]  # fmt: skip
INTEGER = ("w8a8", "w8a8_symmetric", "w4a8_channel", "w2a8_channel", "ternary_a8_channel")  # on the int8 kernels
ALL = {name: SCHEMES[name] for name in NAMED} | OTHERS

Written = Callable[..., Path]
Rounded = dict[str, QuantizedLinear]


@pytest.fixture
def write(tiny_model: Callable[..., Path], round_linears: Callable[..., Rounded], tmp_path: Path) -> Written:
    """`write(scheme, family="bert", choose=None, transformed=False, **config)`: a directory whose linears are of a
    scheme; `choose(name)` gives that of each, None for 16 bit."""

    def make(
        scheme: Scheme | None = None,
        family: str = "bert",
        *,
        choose: Callable[[str], Scheme | None] | None = None,
        transformed: bool = False,
        **config: Any,
    ) -> Path:
        source = tiny_model(family, **({"hidden_size": 64, "intermediate_size": 128} | config))
        loaded = load_model(source)

        def wanted(name: str) -> Scheme | None:
            return choose(name) if choose else scheme

        rounded: dict[str, Rounded] = {}
        layers: Rounded = {}
        half = []
        for name in round_linears(loaded.model, family, "w8a16"):
            how = wanted(name)
            if how is None:
                half.append(name)
                continue
            if repr(how) not in rounded:
                rounded[repr(how)] = round_linears(loaded.model, family, how, transformed=transformed)
            layers[name] = rounded[repr(how)][name]
        parts = QuantizedParts({name: ready(layer) for name, layer in layers.items()}, half=tuple(half))
        names = model_names(loaded.model, loaded.architecture)
        write_checkpoint(ModelDirectory(source), tmp_path / "out", parts, names, model_card="card")
        return tmp_path / "out"

    return make


def on_engine(directory: Path, compute: str = "bf16") -> EngineModel:
    """compute: "bf16" rounds no inputs that the files leave in 16 bits, as the generic path."""
    model = bitwright.load(directory, compute=compute)
    assert isinstance(model, EngineModel), model.backend
    return model


def linears(model: EngineModel) -> list[Multiply]:
    return [op for op in model.executor.program.ops if isinstance(op, Multiply)]


def distance(directory: Path, *, rounds: bool = False) -> float:
    """rounds: inputs of 4-bit linears to int8, on both paths."""
    generic = load_generic(ModelDirectory(directory), compute="float32")
    round_groups(generic.hf, on=rounds)
    got, _ = compared(on_engine(directory, "auto" if rounds else "bf16"), IDS)
    want, _ = compared(generic, IDS)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("scheme", ALL)
def test_every_scheme_is_as_on_the_generic_path(write: Written, scheme: str) -> None:
    directory = write(ALL[scheme])
    assert distance(directory) < (TOLERANCE if ALL[scheme].input is None else CODES_TOLERANCE)
    engine, generic = on_engine(directory), load_generic(ModelDirectory(directory))
    assert compared(engine, IDS)[1] == compared(generic, IDS)[1] == 12 * (scheme in INTEGER)


@pytest.mark.parametrize(
    "scheme",
    [
        "w4a16_channel", "w4a16_g32_asym", "w3a16_g32", "ternary_g32", "groups of 16", "nf4_g64", "kmeans4_g32",
        "kmeans3", "log4_g32", "binary_g32",
    ],
)  # fmt: skip
@pytest.mark.parametrize("transformed", [False, True])
def test_inputs_of_four_bits_are_rounded_by_groups(write: Written, scheme: str, transformed: bool) -> None:
    """By default: the same codes meet inputs in int8."""
    directory = write(ALL[scheme], transformed=transformed)
    assert distance(directory, rounds=True) < CODES_TOLERANCE
    model = on_engine(directory, "auto")
    assert all(isinstance(op, MultiplyW4A8) for op in linears(model))
    assert model.executor.program.added == compared(model, IDS)[1] == 12


@pytest.mark.parametrize("scheme", ["w4a16_g32", "w4a16_channel_asym", "w8a16", "nf4_g32", "w4a8_g32", "w8a8"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_input_transforms(write: Written, family: str, scheme: str) -> None:
    directory = write(SCHEMES[scheme], family, transformed=True)
    assert distance(directory) < (TOLERANCE if SCHEMES[scheme].input is None else CODES_TOLERANCE)
    rounds = [op for op in on_engine(directory).executor.program.ops if isinstance(op, Round)]
    assert bool(rounds) == (scheme != "w8a8")
    assert all(op.transform is not None for op in rounds)
    assert all((op.grid is not None) == (SCHEMES[scheme].input is not None) for op in rounds)


@pytest.mark.parametrize("family", ["albert", "distilbert", "electra", "modernbert", "mpnet", "roberta"])
def test_every_family(write: Written, family: str) -> None:
    size = {"dim": 64, "hidden_dim": 128} if family == "distilbert" else {}
    assert distance(write(SCHEMES["w4a16_channel_asym"], family, **size)) < TOLERANCE


def test_a_plan_of_many_schemes(write: Written) -> None:
    """q, k and v of three; int8, nf4 and int4 beside 16 bit."""
    names = {
        "0.attention.self.query": "w4a16_g32", "0.attention.self.key": "w8a8", "0.attention.self.value": "nf4_g32",
        "0.attention.output": "w4a16_g64_asym", "0.intermediate": "w8a16", "1.output.dense": "kmeans4_g32",
        "1.intermediate": "w8a8", "1.attention.self": "w4a16_g32",
    }  # fmt: skip

    def choose(name: str) -> Scheme | None:
        found = next((scheme for part, scheme in names.items() if part in name), None)
        return None if found is None else SCHEMES[found]

    directory = write(choose=choose)
    assert distance(directory) < CODES_TOLERANCE
    model = on_engine(directory)
    assert [op.dtype for op in linears(model)] == [
        "int4 g32", "int8", "nf4 g32", "int4", "int8×bf16", "bf16", "int4 g32", "bf16", "int8", "kmeans4 g32",
    ]  # fmt: skip
    assert compared(model, IDS)[1] == compared(load_generic(ModelDirectory(directory)), IDS)[1] == 2


@pytest.mark.parametrize(
    ("scheme", "widths"), [("w4a16_g32_asym", [192, 64, 128, 64]), ("kmeans4_g32", [64, 64, 64, 64, 128, 64])]
)
def test_alike_linears_are_one_operator(write: Written, scheme: str, widths: list[int]) -> None:
    """Codebooks fitted to each are not alike."""
    assert [op.n for op in linears(on_engine(write(SCHEMES[scheme])))] == widths * 2


@pytest.mark.parametrize(("scheme", "bits"), [("w4a16_g32", 4), ("nf4_g64", 4), ("w3a16_channel", 4), ("w8a16", 8)])
def test_weights_stay_packed(write: Written, scheme: str, bits: int) -> None:
    for op in linears(on_engine(write(SCHEMES[scheme]))):
        assert isinstance(op, MultiplyWna16)
        assert op.weight.codes.nbytes == op.n * op.source.width * bits // 8


def test_inspect_says_what_runs(write: Written) -> None:
    program = on_engine(write(SCHEMES["w4a16_g32"])).executor.program.text()
    assert "64→192 int4 g32" in program
    assert "64→128 int4 g32 gelu" in program
    assert max(map(len, program.splitlines())) <= 90


@pytest.mark.parametrize("isa", [row.name for row in dispatch.isa_table() if row.supported])
@pytest.mark.parametrize("scheme", ["w4a16_g32_asym", "w4a8_g32", "w8a16"])
def test_every_instruction_set(write: Written, monkeypatch: pytest.MonkeyPatch, isa: str, scheme: str) -> None:
    directory = write(SCHEMES[scheme])
    want, _ = compared(load_generic(ModelDirectory(directory), compute="float32"), IDS)
    monkeypatch.setattr("bitwright.runtime.engine_model.native_isa", lambda: dispatch.native_isa(isa))
    got, _ = compared(on_engine(directory), IDS)
    assert np.linalg.norm(got - want) < CODES_TOLERANCE * np.linalg.norm(want)


@pytest.mark.parametrize("scheme", ["w4a16_g32", "w4a8_g32"])
def test_threads_and_company_change_no_bit(write: Written, scheme: str) -> None:
    model = on_engine(write(SCHEMES[scheme]), "auto")
    generator = np.random.default_rng(0)
    items = [generator.integers(5, 200, length).tolist() for length in (7, 1, 16, 40, 2, 17, 31, 15, 33)] * 40
    want = model.executor.run(items, 1)
    for threads in (2, 3, 5):
        assert np.array_equal(model.executor.run(items, threads), want)
        assert np.array_equal(model.executor.run(items[:5], threads), want[:5])
    # Too uneven for whole groups, and rows enough for each thread to unpack all the weights.
    long = [generator.integers(5, 200, 66).tolist() for _ in range(13)]
    assert np.array_equal(model.executor.run(long, 3), model.executor.run(long, 1))


def test_a_clean_process_agrees(
    write: Written, round_linears: Callable[..., Rounded], tiny_model: Callable[..., Path]
) -> None:
    directory = write(SCHEMES["w4a16_g32"])
    loaded = load_model(tiny_model("bert", hidden_size=64, intermediate_size=128))
    swap_linears(loaded.model, round_linears(loaded.model, "bert", "w4a16_g32"), {}, loaded.architecture)
    set_compute(loaded.model, "float32")
    plain, _ = compared(float_model(loaded), IDS)
    set_compute(loaded.model, "auto")
    ours, calls = compared(float_model(loaded), IDS)
    rows = verify(directory, ("bitwright",), Given(IDS.numpy(), plain, ours), calls)
    assert rows[0]["ok"], rows
    assert calls == 0
    assert rows[0]["checks"]["engine_integer_kernel_calls"] == rows[0]["checks"]["engine_added_calls"] == 12
    assert rows[0]["checks"]["engine_distance"] < CODES_TOLERANCE


def test_what_quantize_writes(tiny_model: Callable[..., Path], tmp_path: Path, texts: list[str]) -> None:
    recipe = make_recipe({"scheme": "w4a16", "method": "gptq", "targets": ["bitwright"]})
    bitwright.quantize(tiny_model("electra"), out=tmp_path / "out", recipe=recipe, samples=40, judged=False)
    model = on_engine(tmp_path / "out", "auto")
    round_groups(model.generic.hf, on=True)
    got, want = np.stack(model.encode(texts[:20])), np.stack(model.generic.encode(texts[:20]))
    assert np.linalg.norm(got - want) < CODES_TOLERANCE * np.linalg.norm(want)
