import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import CheckpointError, ModelError
from bitwright.families import architecture_of
from bitwright.files.directory import ModelDirectory
from bitwright.models.names import ModelNames, model_names
from bitwright.numerics.arrays import as_torch
from bitwright.numerics.linear import PendingLinear, QuantizedLinear, StaticGrid, ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.schemes import SCHEMES
from bitwright.numerics.spec import QuantSpec
from bitwright.runtime.generic import Linears, read_tables

Quantize = Callable[..., dict[str, QuantizedLinear]]
Parts = Callable[[QuantizedLinear], list[Any]]
Read = Callable[[Path], dict[str, QuantizedLinear]]
WORDS = "embeddings.word_embeddings"
NAME = "encoder.layer.0.output.dense"
# The tiny model's K are 32 and 64.
SCHEME_NAMES = [name for name, s in SCHEMES.items() if s.weight is not None and s.weight.group_size in (None, 32)]


def names_of(model: Any) -> ModelNames:
    return model_names(model, architecture_of(model.config.model_type))


def lazy(layers: dict[str, QuantizedLinear]) -> dict[str, PendingLinear]:
    return {name: ready(layer) for name, layer in layers.items()}


@pytest.fixture
def checkpoint(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> Path:
    """A dynamic W8A8 checkpoint."""
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    parts = QuantizedParts(lazy(quantize_linears(model)))
    write_checkpoint(ModelDirectory(tiny_bert), tmp_path / "out", parts, names_of(model), model_card="")
    return tmp_path / "out"


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_reading_gives_back_what_was_written(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, parts_of: Parts, scheme: str
) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    layers = quantize_linears(model, scheme)
    write_checkpoint(
        ModelDirectory(tiny_bert), tmp_path / "out", QuantizedParts(lazy(layers)), names_of(model), model_card=""
    )
    found = read_checkpoint(ModelDirectory(tmp_path / "out"))
    assert found.linears.keys() == layers.keys()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name, layer in layers.items():
        pending, linear = found.linears[name], found.linears[name].load()
        assert (pending.shape, pending.form) == (layer.shape, layer.form)
        assert parts_of(linear) == parts_of(layer)
        assert np.array_equal(linear.bias_N, stored[f"{name}.bias"])
    rest = {name for name in stored if not any(name.startswith(f"{layer}.") for layer in layers)}
    assert set(found.others) == rest | {f"{layer}.bias" for layer in layers}
    for name in found.others:
        tensor = as_torch(found.tensors[name])
        assert tensor.dtype == stored[name].dtype
        assert torch.equal(tensor, stored[name])


@pytest.mark.parametrize("max_shard_bytes", [2000, 5_000_000])
def test_every_kind_of_part_comes_back(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, parts_of: Parts, max_shard_bytes: int
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
    layers[names[0]] = replace(inputs, weight=QTensor(codes, ones, zero, QuantSpec(symmetric=False)))
    layers[names[1]] = replace(inputs, weight=QTensor(codes, ones, None, QuantSpec(full_range=True)))
    narrow = torch.randint(-127, 128, (32, 32), dtype=torch.int8)
    per_tensor = QTensor(narrow, torch.full((1, 1), 0.5), None, QuantSpec(per_tensor=True))
    layers["encoder.layer.0.attention.self.key"] = replace(inputs, weight=per_tensor)
    table = QTensor(torch.randint(-127, 128, (60, 32), dtype=torch.int8), torch.rand(60, 1) + 0.1, None, QuantSpec())
    parts = QuantizedParts(lazy(layers), tables={"embeddings.word_embeddings": table})
    write_checkpoint(
        ModelDirectory(tiny_bert),
        tmp_path / "out",
        parts,
        names_of(model),
        model_card="",
        max_shard_bytes=max_shard_bytes,
    )
    found = read_checkpoint(ModelDirectory(tmp_path / "out"))
    assert found.linears.keys() == layers.keys()
    assert [name for name in layers if parts_of(found.linears[name].load()) != parts_of(layers[name])] == []
    assert found.tables == (WORDS,)
    codes_VH, scale_V = found.table(WORDS)
    assert np.array_equal(codes_VH, table.codes_NK)
    assert np.array_equal(scale_V, table.scale_NG[:, 0])
    back = read_tables(found, names_of(model))[WORDS]
    assert torch.equal(back.codes_NK, table.codes_NK)
    assert torch.equal(back.scale_NG, table.scale_NG)


def test_names_follow_the_model(tiny_classifier: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    base = transformers.AutoModel.from_pretrained(tiny_classifier)
    parts = QuantizedParts(lazy(quantize_linears(base)))
    write_checkpoint(ModelDirectory(tiny_classifier), tmp_path / "out", parts, names_of(base), model_card="")
    found = read_checkpoint(ModelDirectory(tmp_path / "out"))
    assert found.linears.keys() == {f"bert.{name}" for name in parts.layers}
    whole = transformers.BertForSequenceClassification(base.config)
    assert Linears(found, names_of(base)).keys() == parts.layers.keys()
    assert Linears(found, names_of(whole)).keys() == found.linears.keys()
    with pytest.raises(CheckpointError, match="the model has no such module"):
        Linears(found, ModelNames("bert", ("pooler.dense",), (), {}, {}))


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
    layer = read_checkpoint(ModelDirectory(folder)).linears["m"].load()
    assert layer.weight.spec == QuantSpec(full_range=True)
    assert layer.input_spec == QuantSpec(dynamic=True)
    assert np.array_equal(layer.weight.dequantize(), CODES.float())


def test_another_tools_static_asymmetric_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "m.weight": CODES, "m.weight_scale": torch.ones(1), "m.input_scale": torch.tensor(0.5, dtype=torch.bfloat16),
        "m.input_zero_point": torch.tensor(-7, dtype=torch.int8),
    }  # fmt: skip
    folder = foreign(tmp_path / "x", {"num_bits": 8}, {"symmetric": False}, tensors)
    layer = read_checkpoint(ModelDirectory(folder)).linears["m"].load()
    assert layer.weight.spec == QuantSpec(per_tensor=True, full_range=True)
    assert layer.input_spec == QuantSpec(symmetric=False, per_tensor=True)
    assert layer.static == StaticGrid(0.5, -7)


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
        r"weight is F32 .* expected I8",
    ),
    (
        "integer scale",
        lambda t: t.update({f"{NAME}.weight_scale": torch.ones(32, 1, dtype=torch.int32)}),
        "weight_scale is I32",
    ),
    ("NaN scale", lambda t: t[f"{NAME}.weight_scale"].fill_(torch.nan), "finite and positive"),
    ("negative scale", lambda t: t[f"{NAME}.weight_scale"].neg_(), "finite and positive"),
    ("zero scale", lambda t: t[f"{NAME}.weight_scale"].zero_(), "finite and positive"),
    (
        "short scale",
        lambda t: t.update({f"{NAME}.weight_scale": torch.ones(31, 1)}),
        r"weight_scale is F32 \[31, 1\]; expected F32 \[32, 1\]",
    ),
    (
        "one scale for all",
        lambda t: t.update({f"{NAME}.weight_scale": torch.ones(1)}),
        r"weight_scale is F32 \[1\]",
    ),
    (
        "flat codes",
        lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"].flatten()}),
        r"weight is I8 \[2048\]",
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
def test_tensors_that_contradict_one_another(checkpoint: Path, read_linears: Read, change: Any, message: str) -> None:
    edit(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        read_linears(checkpoint)


def group(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["config_groups"]["group_0"]
    return found


CONFIG_LIES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("method", lambda c: c.update(quant_method="awql"), "quant_method 'awql'"),
    ("another method", lambda c: c.update(quant_method="awq"), "no tensor ends in qweight"),
    ("format", lambda c: c.update(format="pack-quantized"), "weight_shape is missing"),
    ("no groups", lambda c: c.update(config_groups={}), "config_groups"),
    ("groups as a list", lambda c: c.update(config_groups=[]), "config_groups"),
    ("targets as a string", lambda c: group(c).update(targets="Linear"), "list of names"),
    ("no weights", lambda c: group(c).update(weights=None), "expected an object"),
    ("no inputs", lambda c: group(c).update(input_activations=7), "expected an object"),
    ("inputs have 4 bits", lambda c: group(c)["input_activations"].update(num_bits=4), "inputs have 4 bits"),
    ("5 bit", lambda c: group(c)["weights"].update(num_bits=5), "5 bits in the format 'int-quantized'"),
    ("9 bit", lambda c: group(c)["weights"].update(num_bits=9), "bits = 9"),
    ("bits as text", lambda c: group(c)["weights"].update(num_bits="8"), "8-bit int"),
    ("group of text", lambda c: group(c)["weights"].update(strategy="group", group_size="32"), "must be a number"),
    ("group without size", lambda c: group(c)["weights"].update(strategy="group"), "group_size None"),
    ("columns in any order", lambda c: group(c)["weights"].update(actorder="group"), "weight_g_idx is missing"),
    ("grid", lambda c: group(c)["weights"].update(grid="nf4"), "nf4"),
    ("transform", lambda c: group(c).update(input_transform=["scale"]), "exist only in 'bitwright'"),
    ("unknown transform", lambda c: group(c).update(input_transform=["rotate"]), "known are shift, scale"),
    ("4 bit", lambda c: group(c)["weights"].update(num_bits=4), r"outside \[-8, 7\]"),
    ("fp8", lambda c: group(c)["weights"].update(type="float"), "I8, but must be F8_E4M3"),
    ("fp6", lambda c: group(c)["weights"].update(type="float", num_bits=6), "6-bit float"),
    ("kind", lambda c: group(c)["weights"].update(type="posit"), "8-bit posit"),
    (
        "groups of 32",
        lambda c: group(c)["weights"].update(strategy="group", group_size=32),
        r"expected F32 \[32, 2\]",
    ),
    ("weights cannot be dynamic", lambda c: group(c)["weights"].update(dynamic=True), "weights cannot be dynamic"),
    ("symmetric as text", lambda c: group(c)["weights"].update(symmetric="yes"), "must be true or false"),
    ("static tokens", lambda c: group(c)["input_activations"].update(dynamic=False), "per token"),
    ("static inputs", lambda c: group(c)["input_activations"].update(dynamic=False, strategy="tensor"), "is missing"),
    ("outputs are quantized", lambda c: group(c).update(output_activations={"num_bits": 8}), "outputs"),
    ("rotations", lambda c: c.update(transform_config={"config_groups": {}}), "transform_config"),
    ("ignored", lambda c: c.update(ignore=[NAME]), "ignores it"),
    ("untargeted", lambda c: group(c).update(targets=["re:.*attention.*"]), "no scheme"),
    ("named and absent", lambda c: group(c).update(targets=["Linear", "encoder.layer.7.x"]), "layer.7.x"),
    ("bad pattern", lambda c: c.update(ignore=["re:("]), "not a regular expression"),
    ("absent table", lambda c: c.update(quant_method="bitwright", embeddings={"targets": [WORDS]}), "no scale for it"),
    ("linear as table", lambda c: c.update(quant_method="bitwright", embeddings={"targets": [NAME]}), r"\(V, 1, H\)"),
]


@pytest.mark.parametrize(("change", "message"), [lie[1:] for lie in CONFIG_LIES], ids=[lie[0] for lie in CONFIG_LIES])
def test_configurations_that_contradict_the_file(
    checkpoint: Path, read_linears: Read, change: Any, message: str
) -> None:
    edit_config(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        read_linears(checkpoint)


def test_linears_are_loaded_when_asked_for(checkpoint: Path) -> None:
    """Damage in one linear's values is no matter of another's."""
    edit(checkpoint, lambda t: t[f"{NAME}.weight_scale"].fill_(torch.nan))
    found = read_checkpoint(ModelDirectory(checkpoint))
    assert found.linears[NAME].shape == (32, 64)
    for name in found.linears.keys() - {NAME}:
        assert found.linears[name].load().weight.spec == QuantSpec()
    with pytest.raises(CheckpointError, match=rf"{NAME}: every scale must be finite"):
        found.linears[NAME].load()
    assert "nowhere" not in found.linears


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "bert"}', "[" * 100_000, "\x00"])
def test_config_that_is_none(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises((CheckpointError, ModelError)):
        read_checkpoint(ModelDirectory(checkpoint))


def test_is_quantized(checkpoint: Path, tiny_bert: Path, tmp_path: Path) -> None:
    assert ModelDirectory(checkpoint).is_quantized
    assert not ModelDirectory(tiny_bert).is_quantized
    with pytest.raises(ModelError, match="no such directory"):
        ModelDirectory(tmp_path / "nothing")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle ran",))


def test_nothing_is_unpickled(checkpoint: Path, tiny_bert: Path, tmp_path: Path) -> None:
    for folder in (checkpoint, tiny_bert):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb()}, protocol=2))
    with pytest.raises(CheckpointError, match="only from safetensors"):
        read_checkpoint(ModelDirectory(checkpoint))
    with pytest.raises(CheckpointError, match="not a plain file of tensors, and Bitwright unpickles nothing else"):
        write_checkpoint(
            ModelDirectory(tiny_bert),
            tmp_path / "new",
            QuantizedParts({}),
            ModelNames("", (), (), {}, {}),
            model_card="",
        )
