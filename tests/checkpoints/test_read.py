import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitwright.checkpoints.stored import LazyLinear, StoredLinear
from safetensors.torch import load_file, save_file

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.read import for_model, is_quantized
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import CheckpointError, NumericsError
from bitwright.families import architecture_of
from bitwright.models.names import ModelNames, model_names
from bitwright.numerics.linear import ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import SCHEMES, QuantSpec

Quantize = Callable[..., dict[str, StoredLinear]]
WORDS = "embeddings.word_embeddings"
NAME = "encoder.layer.0.output.dense"
# The tiny model's K are 32 and 64.
SCHEME_NAMES = [name for name, s in SCHEMES.items() if s.weight is not None and s.weight.group_size in (None, 32)]


def names_of(model: Any) -> ModelNames:
    return model_names(model, architecture_of(model.config.model_type))


def lazy(layers: dict[str, StoredLinear]) -> dict[str, LazyLinear]:
    return {name: ready(layer) for name, layer in layers.items()}


def same(a: StoredLinear, b: StoredLinear) -> bool:
    def equal(x: torch.Tensor | None, y: torch.Tensor | None) -> bool:
        return x is y is None or (x is not None and y is not None and x.dtype == y.dtype and torch.equal(x, y))

    return (a.qtensor.spec, a.input_spec) == (b.qtensor.spec, b.input_spec) and all(
        equal(x, y)
        for x, y in (
            (a.qtensor.codes_NK, b.qtensor.codes_NK),
            (a.qtensor.scale_NG, b.qtensor.scale_NG),
            (a.qtensor.zero_point_NG, b.qtensor.zero_point_NG),
            (a.qtensor.codebook, b.qtensor.codebook),
            (a.input_scale, b.input_scale),
            (a.input_zero_point, b.input_zero_point),
            (a.input_scale_K, b.input_scale_K),
            (a.input_shift_K, b.input_shift_K),
        )
    )


@pytest.fixture
def checkpoint(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> Path:
    """A dynamic W8A8 checkpoint."""
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    parts = QuantizedParts(lazy(quantize_linears(model)))
    write_checkpoint(tiny_bert, tmp_path / "out", parts, names_of(model), model_card="")
    return tmp_path / "out"


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_reading_gives_back_what_was_written(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, scheme: str
) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    layers = quantize_linears(model, scheme)
    write_checkpoint(tiny_bert, tmp_path / "out", QuantizedParts(lazy(layers)), names_of(model), model_card="")
    found = read_checkpoint(tmp_path / "out")
    assert found.layers.keys() == layers.keys()
    assert all(same(found.layers[name], layers[name]) for name in layers)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    rest = {name for name in stored if not any(name.startswith(f"{layer}.") for layer in layers)}
    assert set(found.others) == rest | {f"{layer}.bias" for layer in layers}
    assert all(torch.equal(found.others[name], stored[name]) for name in found.others)


@pytest.mark.parametrize("max_shard_bytes", [2000, 5_000_000])
def test_every_kind_of_part_comes_back(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, max_shard_bytes: int
) -> None:
    """Mixed schemes, a per-tensor weight, an asymmetric one, one that uses −128, an int8 table; in one file or many."""
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    layers = quantize_linears(model, "w8a8") | quantize_linears(model, "w8a8_static", skip=("pooler", "attention"))
    inputs = layers[NAME]
    codes = torch.randint(-128, 128, (32, 64), dtype=torch.int8)
    codes[0, 0] = -128
    zero = torch.arange(32, dtype=torch.int8).reshape(32, 1)
    ones = torch.ones(32, 1)
    names = [f"encoder.layer.{i}.output.dense" for i in (0, 1)]
    layers[names[0]] = replace(inputs, qtensor=QTensor(codes, ones, zero, QuantSpec(symmetric=False)))
    layers[names[1]] = replace(inputs, qtensor=QTensor(codes, ones, None, QuantSpec(full_range=True)))
    narrow = torch.randint(-127, 128, (32, 32), dtype=torch.int8)
    per_tensor = QTensor(narrow, torch.full((1, 1), 0.5), None, QuantSpec(per_tensor=True))
    layers["encoder.layer.0.attention.self.key"] = replace(inputs, qtensor=per_tensor)
    table = QTensor(torch.randint(-127, 128, (60, 32), dtype=torch.int8), torch.rand(60, 1) + 0.1, None, QuantSpec())
    parts = QuantizedParts(lazy(layers), tables={"embeddings.word_embeddings": table})
    write_checkpoint(
        tiny_bert, tmp_path / "out", parts, names_of(model), model_card="", max_shard_bytes=max_shard_bytes
    )
    found = read_checkpoint(tmp_path / "out")
    assert found.layers.keys() == layers.keys()
    assert [name for name in layers if not same(found.layers[name], layers[name])] == []
    back = found.tables["embeddings.word_embeddings"]
    assert torch.equal(back.codes_NK, table.codes_NK)
    assert torch.equal(back.scale_NG, table.scale_NG)


def test_names_follow_the_model(tiny_classifier: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    base = transformers.AutoModel.from_pretrained(tiny_classifier)
    parts = QuantizedParts(lazy(quantize_linears(base)))
    write_checkpoint(tiny_classifier, tmp_path / "out", parts, names_of(base), model_card="")
    found = read_checkpoint(tmp_path / "out")
    assert found.layers.keys() == {f"bert.{name}" for name in parts.layers}
    whole = transformers.BertForSequenceClassification(base.config)
    assert for_model(found, names_of(base))[0].keys() == parts.layers.keys()
    assert for_model(found, names_of(whole))[0].keys() == found.layers.keys()
    with pytest.raises(CheckpointError, match="is not in the model"):
        for_model(found, ModelNames("bert", ("pooler.dense",), (), {}, {}))


def foreign(folder: Path, args: dict[str, Any], inputs: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as another tool writes it, with absent keys and its own conventions."""
    folder.mkdir()
    save_file(tensors | {"lm_head.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    scheme = {"targets": ["Linear"], "weights": args, "input_activations": inputs, "output_activations": None}
    config = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "global_compression_ratio": 1.5, "kv_cache_scheme": None, "ignore": ["lm_head"], "sparsity_config": {},
        "transform_config": {}, "version": "0.12.0", "config_groups": {"group_0": scheme},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    return folder


CODES = torch.tensor([[-128, 3], [127, 0]], dtype=torch.int8)
CHANNEL = {"num_bits": 8, "strategy": "channel", "observer": "minmax", "observer_kwargs": {}, "actorder": None}


def test_another_tools_dynamic_checkpoint(tmp_path: Path) -> None:
    """bf16 scales, codes of −128, an explicit zero point of zeros, `symmetric` and `type` left to their defaults."""
    tensors = {
        "m.weight": CODES, "m.weight_scale": torch.ones(2, 1, dtype=torch.bfloat16),
        "m.weight_zero_point": torch.zeros(2, 1, dtype=torch.int8),
    }  # fmt: skip
    folder = foreign(tmp_path / "x", CHANNEL, {"strategy": "token", "dynamic": True, "num_bits": 8}, tensors)
    layer = read_checkpoint(folder).layers["m"]
    assert layer.qtensor.spec == QuantSpec(full_range=True)
    assert layer.input_spec == QuantSpec(dynamic=True)
    assert torch.equal(layer.qtensor.dequantize(), CODES.float())


def test_another_tools_static_asymmetric_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "m.weight": CODES, "m.weight_scale": torch.ones(1), "m.input_scale": torch.tensor(0.5, dtype=torch.bfloat16),
        "m.input_zero_point": torch.tensor(-7, dtype=torch.int8),
    }  # fmt: skip
    folder = foreign(tmp_path / "x", {"num_bits": 8}, {"symmetric": False}, tensors)
    layer = read_checkpoint(folder).layers["m"]
    assert layer.qtensor.spec == QuantSpec(per_tensor=True, full_range=True)
    assert layer.input_spec == QuantSpec(symmetric=False, per_tensor=True)
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    assert (layer.input_scale.tolist(), layer.input_zero_point.tolist()) == ([0.5], [-7])


def load_all(folder: Path) -> dict[str, StoredLinear]:
    return dict(read_checkpoint(folder).layers)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


TENSOR_LIES: list[tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = [
    ("missing scale", lambda t: t.pop(f"{NAME}.weight_scale"), "holds codes, but"),
    ("missing codes", lambda t: t.pop(f"{NAME}.weight"), "weight is missing"),
    (
        "float codes",
        lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"].float()}),
        r"weight is torch.float32 .* expected torch.int8",
    ),
    (
        "integer scale",
        lambda t: t.update({f"{NAME}.weight_scale": torch.ones(32, 1, dtype=torch.int32)}),
        "torch.int32",
    ),
    ("NaN scale", lambda t: t[f"{NAME}.weight_scale"].fill_(torch.nan), "finite and positive"),
    ("negative scale", lambda t: t[f"{NAME}.weight_scale"].neg_(), "finite and positive"),
    ("zero scale", lambda t: t[f"{NAME}.weight_scale"].zero_(), "finite and positive"),
    (
        "short scale",
        lambda t: t.update({f"{NAME}.weight_scale": torch.ones(31, 1)}),
        r"weight_scale is torch.float32 \[31, 1\]; expected torch.float32 \[32, 1\]",
    ),
    (
        "one scale for all",
        lambda t: t.update({f"{NAME}.weight_scale": torch.ones(1)}),
        r"weight_scale is torch.float32 \[1\]",
    ),
    (
        "flat codes",
        lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"].flatten()}),
        r"weight is torch.int8 \[2048\]",
    ),
    ("zero point", lambda t: t.update({f"{NAME}.weight_zero_point": torch.ones(32, 1, dtype=torch.int8)}), "not zero"),
    ("stray input scale", lambda t: t.update({f"{NAME}.input_scale": torch.ones(1)}), "input_scale is unexpected"),
    (
        "packed",
        lambda t: t.update({f"{NAME}.weight_packed": torch.ones(1, dtype=torch.int32)}),
        "weight_packed is unexpected",
    ),
    ("orphan scale", lambda t: t.update({"nowhere.weight_scale": torch.ones(1)}), "nowhere: weight is missing"),
    ("orphan input", lambda t: t.update({"pooler.dense.input_scale": torch.ones(1)}), "unexpected"),
]


@pytest.mark.parametrize(("change", "message"), [lie[1:] for lie in TENSOR_LIES], ids=[lie[0] for lie in TENSOR_LIES])
def test_tensors_that_contradict_one_another(checkpoint: Path, change: Any, message: str) -> None:
    edit(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        load_all(checkpoint)


def group(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["config_groups"]["group_0"]
    return found


CONFIG_LIES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("method", lambda c: c.update(quant_method="awq"), "quant_method 'awq'"),
    ("format", lambda c: c.update(format="pack-quantized"), "weight_shape is missing"),
    ("no groups", lambda c: c.update(config_groups={}), "config_groups"),
    ("groups as a list", lambda c: c.update(config_groups=[]), "config_groups"),
    ("targets as a string", lambda c: group(c).update(targets="Linear"), "list of names"),
    ("no weights", lambda c: group(c).update(weights=None), "expected an object"),
    ("no inputs", lambda c: group(c).update(input_activations=7), "expected an object"),
    ("4-bit inputs", lambda c: group(c)["input_activations"].update(num_bits=4), "4-bit inputs"),
    ("5 bit", lambda c: group(c)["weights"].update(num_bits=5), "bits = 5"),
    ("bits as text", lambda c: group(c)["weights"].update(num_bits="8"), "8-bit int"),
    ("group of text", lambda c: group(c)["weights"].update(strategy="group", group_size="32"), "a number is needed"),
    ("group without size", lambda c: group(c)["weights"].update(strategy="group"), "group_size None"),
    ("columns in any order", lambda c: group(c)["weights"].update(actorder="group"), "actorder 'group'"),
    ("grid", lambda c: group(c)["weights"].update(grid="nf4"), "nf4"),
    ("transform", lambda c: group(c).update(input_transform=["scale"]), "of 'bitwright' alone"),
    ("unknown transform", lambda c: group(c).update(input_transform=["rotate"]), "known: shift, scale"),
    ("4 bit", lambda c: group(c)["weights"].update(num_bits=4), r"outside \[-8, 7\]"),
    ("fp8", lambda c: group(c)["weights"].update(type="float"), "8-bit float"),
    (
        "groups of 32",
        lambda c: group(c)["weights"].update(strategy="group", group_size=32),
        r"expected torch.float32 \[32, 2\]",
    ),
    ("dynamic weights", lambda c: group(c)["weights"].update(dynamic=True), "dynamic weights"),
    ("symmetric as text", lambda c: group(c)["weights"].update(symmetric="yes"), "must be true or false"),
    ("static tokens", lambda c: group(c)["input_activations"].update(dynamic=False), "per token"),
    ("static inputs", lambda c: group(c)["input_activations"].update(dynamic=False, strategy="tensor"), "is missing"),
    ("quantized outputs", lambda c: group(c).update(output_activations={"num_bits": 8}), "outputs"),
    ("kv cache", lambda c: c.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    ("ignored", lambda c: c.update(ignore=[NAME]), "ignores it"),
    ("untargeted", lambda c: group(c).update(targets=["re:.*attention.*"]), "no scheme"),
    ("named and absent", lambda c: group(c).update(targets=["Linear", "encoder.layer.7.x"]), "layer.7.x"),
    ("bad pattern", lambda c: c.update(ignore=["re:("]), "not a regular expression"),
    ("absent table", lambda c: c.update(quant_method="bitwright", embeddings={"targets": [WORDS]}), "no scale for it"),
    ("linear as table", lambda c: c.update(quant_method="bitwright", embeddings={"targets": [NAME]}), r"\(V, 1, H\)"),
]


@pytest.mark.parametrize(("change", "message"), [lie[1:] for lie in CONFIG_LIES], ids=[lie[0] for lie in CONFIG_LIES])
def test_configurations_that_contradict_the_file(checkpoint: Path, change: Any, message: str) -> None:
    edit_config(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        load_all(checkpoint)


def test_linears_are_loaded_when_asked_for(checkpoint: Path) -> None:
    """Damage in one linear's values is no matter of another's."""
    edit(checkpoint, lambda t: t[f"{NAME}.weight_scale"].fill_(torch.nan))
    found = read_checkpoint(checkpoint)
    assert found.layers.described[NAME].shape == (32, 64)
    for name in found.layers.keys() - {NAME}:
        assert found.layers[name].qtensor.spec == QuantSpec()
    with pytest.raises(CheckpointError, match=rf"{NAME}: every scale must be finite"):
        found.layers[NAME]
    with pytest.raises(KeyError):
        found.layers["nowhere"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "bert"}', "[" * 100_000, "\x00"])
def test_config_that_is_none(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_checkpoint(checkpoint)


def test_is_quantized(checkpoint: Path, tiny_bert: Path, tmp_path: Path) -> None:
    assert is_quantized(checkpoint)
    assert not is_quantized(tiny_bert)
    with pytest.raises(CheckpointError, match="no such file"):
        is_quantized(tmp_path / "nothing")


def test_stored_linear_checks_its_parts() -> None:
    weight = QTensor(torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 1), None, QuantSpec())
    static, dynamic = QuantSpec(symmetric=False, per_tensor=True), QuantSpec(dynamic=True)
    scale, zero = torch.ones(1), torch.zeros(1, dtype=torch.int8)
    StoredLinear(weight, static, scale, zero)
    for wrong in (
        (dynamic, scale, None), (dynamic, None, zero), (static, None, zero), (static, scale, None),
        (static, scale.double(), zero), (static, torch.ones(1, 1), zero), (static, -scale, zero),
        (static, scale * torch.inf, zero), (static, scale, zero.int()), (static, scale, zero.repeat(2)),
    ):  # fmt: skip
        with pytest.raises(NumericsError):
            StoredLinear(weight, *wrong)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle ran",))


def test_nothing_is_unpickled(checkpoint: Path, tiny_bert: Path, tmp_path: Path) -> None:
    for folder in (checkpoint, tiny_bert):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb()}, protocol=2))
    with pytest.raises(CheckpointError, match="safetensors only"):
        read_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        write_checkpoint(tiny_bert, tmp_path / "new", QuantizedParts({}), ModelNames("", (), (), {}, {}), model_card="")
