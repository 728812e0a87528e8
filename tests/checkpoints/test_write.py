import json
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.errors import CheckpointError, InputError, ModelError
from bitwright.families import architecture_of
from bitwright.files.directory import ModelDirectory
from bitwright.models.names import ModelNames, model_names
from bitwright.numerics.linear import PendingLinear, QuantizedLinear, ready
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from bitwright.record import Record, write_record

Quantize = Callable[..., dict[str, QuantizedLinear]]


def names_of(model: Any) -> ModelNames:
    return model_names(model, architecture_of(model.config.model_type))


def lazy(layers: dict[str, QuantizedLinear]) -> dict[str, PendingLinear]:
    return {name: ready(layer) for name, layer in layers.items()}


def write(
    source: Path, out: Path, quantize: Quantize, scheme: str = "w8a8", **options: Any
) -> transformers.PreTrainedModel:
    model = transformers.AutoModel.from_pretrained(source)
    parts = QuantizedParts(lazy(quantize(model, scheme)), half=("pooler.dense",))
    write_checkpoint(ModelDirectory(source), out, parts, names_of(model), model_card="our card\n", **options)
    return model


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_config_says_what_is_quantized(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    write(tiny_bert, tmp_path / "out", quantize_linears)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((tiny_bert / "config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
                "input_activations": {
                    "num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True,
                },
            }
        },
        "ignore": ["re:(?:bert\\.)?pooler\\.dense$"],
        "dequantize": True,
    }  # fmt: skip
    assert config.pop("dtype") == "float32"
    assert config == {key: value for key, value in source.items() if key != "dtype"}


def test_tensors_by_name_dtype_and_value(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    model = write(tiny_bert, tmp_path / "out", quantize_linears, "w8a8_static")
    layers = quantize_linears(model, "w8a8_static")
    source, out = load_file(tiny_bert / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, layer in layers.items():
        assert torch.equal(out.pop(f"{name}.weight"), layer.weight.codes_NK)
        assert torch.equal(out.pop(f"{name}.weight_scale"), layer.weight.scale_NG)
        assert layer.static is not None
        assert torch.equal(out.pop(f"{name}.input_scale"), torch.tensor([layer.static.scale]))
        assert torch.equal(out.pop(f"{name}.input_zero_point"), torch.tensor([-3], dtype=torch.int8))
        del source[f"{name}.weight"]
    assert out.keys() == source.keys()
    for name, tensor in source.items():
        half = "embeddings.weight" in name or name == "pooler.dense.weight"
        assert out[name].dtype == (torch.bfloat16 if half else torch.float32), name
        assert torch.equal(out[name], tensor.to(out[name].dtype)), name


def test_every_other_file_is_the_sources(sentence_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    extra = {"recipe.yaml": "scheme: w8a8\n", "report.html": b"<html>"}
    write(sentence_bert, tmp_path / "out", quantize_linears, extra_files=extra)
    source, out = files_of(sentence_bert), files_of(tmp_path / "out")
    assert out.pop("README.md") == b"our card\n"
    assert out.pop("recipe.yaml") == b"scheme: w8a8\n"
    assert out.pop("report.html") == b"<html>"
    assert out.keys() == source.keys() - {"README.md"}
    differing = {name for name in out if out[name] != source[name]}
    assert differing == {"config.json", "model.safetensors"}


def test_the_same_input_gives_the_same_bytes(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    write(tiny_bert, tmp_path / "a", quantize_linears)
    write(tiny_bert, tmp_path / "b", quantize_linears)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("max_shard_bytes", [1, 5000])
def test_shards_hold_what_one_file_holds(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, max_shard_bytes: int
) -> None:
    write(tiny_bert, tmp_path / "one", quantize_linears)
    write(tiny_bert, tmp_path / "many", quantize_linears, max_shard_bytes=max_shard_bytes)
    one = load_file(tmp_path / "one" / "model.safetensors")
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    many = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    assert len(shards) > 1
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == one.keys()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bin_source_gives_the_tensors_of_a_safetensors_source(
    tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize, legacy: bool
) -> None:
    write(tiny_bert, tmp_path / "a", quantize_linears)
    tensors = load_file(tiny_bert / "model.safetensors")
    torch.save(tensors, tiny_bert / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (tiny_bert / "model.safetensors").unlink()
    write(tiny_bert, tmp_path / "b", quantize_linears)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_an_fp16_source_keeps_fp16(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    half = {name: tensor.half() for name, tensor in load_file(tiny_bert / "model.safetensors").items()}
    save_file(half, tiny_bert / "model.safetensors", {"format": "pt"})
    write(tiny_bert, tmp_path / "out", quantize_linears)
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in out.values()} == {torch.float16, torch.int8, torch.float32}
    assert torch.equal(out["embeddings.word_embeddings.weight"], half["embeddings.word_embeddings.weight"])


def test_names_on_disk_are_the_sources(tiny_classifier: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    """The base model says "encoder…", the file "bert.encoder…"; the other way round for a head on a plain file."""
    model = write(tiny_classifier, tmp_path / "out", quantize_linears)
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name in quantize_linears(model):
        assert out[f"bert.{name}.weight"].dtype == torch.int8
    assert out["bert.pooler.dense.weight"].dtype == torch.bfloat16
    ignore = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert ignore == ["re:(?:bert\\.)?classifier$", "re:(?:bert\\.)?pooler\\.dense$"]

    plain = {
        name.removeprefix("bert."): tensor for name, tensor in load_file(tiny_classifier / "model.safetensors").items()
    }
    save_file(plain, tiny_classifier / "model.safetensors", {"format": "pt"})
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_classifier)
    parts = QuantizedParts(lazy(quantize_linears(whole)), half=("bert.pooler.dense", "classifier"))
    write_checkpoint(ModelDirectory(tiny_classifier), tmp_path / "plain", parts, names_of(whole), model_card="")
    codes = load_file(tmp_path / "plain" / "model.safetensors")["encoder.layer.0.output.dense.weight"]
    assert torch.equal(codes, parts.layers["bert.encoder.layer.0.output.dense"].load().weight.codes_NK)


def test_a_tied_weight_is_written_once(tmp_path: Path, quantize_linears: Quantize) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "source")
    both = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(both, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    parts = QuantizedParts(lazy(quantize_linears(model, skip=("cls",))))
    write_checkpoint(ModelDirectory(tmp_path / "source"), tmp_path / "out", parts, names_of(model), model_card="")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert "bert.embeddings.word_embeddings.weight" in out
    assert "cls.predictions.decoder.weight" not in out
    for name in ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"):
        changed = QuantizedParts({}, changed={name: lambda: torch.ones(20, 16)})
        with pytest.raises(CheckpointError, match=f"{name}: another module has the same weight"):
            write_checkpoint(
                ModelDirectory(tmp_path / "source"), tmp_path / "no", changed, names_of(model), model_card=""
            )
    tied = quantize_linears(model, skip=("transform", "encoder"))
    with pytest.raises(CheckpointError, match="shares its weight"):
        write_checkpoint(
            ModelDirectory(tmp_path / "source"),
            tmp_path / "no",
            QuantizedParts(lazy(tied)),
            names_of(model),
            model_card="",
        )


def test_several_schemes_name_their_modules(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    layers = quantize_linears(model, "w8a8") | quantize_linears(model, "w8a8_static", skip=("pooler", "attention"))
    write_checkpoint(
        ModelDirectory(tiny_bert), tmp_path / "out", QuantizedParts(lazy(layers)), names_of(model), model_card=""
    )
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert len(groups) == 2
    for name, layer in layers.items():
        matching = [
            group
            for group in groups.values()
            for target in group["targets"]
            if re.match(target.removeprefix("re:"), name) and re.match(target.removeprefix("re:"), f"bert.{name}")
        ]
        assert layer.input_spec is not None
        assert [group["input_activations"]["dynamic"] for group in matching] == [layer.input_spec.dynamic], name
    targets = [target for group in groups.values() for target in group["targets"]]
    assert not any(re.match(target.removeprefix("re:"), "pooler.dense") for target in targets)


def test_int8_tables_change_the_quant_method(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    table = QTensor(torch.ones(60, 32, dtype=torch.int8), torch.full((60, 1), 0.5), None, QuantSpec())
    parts = QuantizedParts(lazy(quantize_linears(model)), tables={"embeddings.word_embeddings": table})
    write_checkpoint(ModelDirectory(tiny_bert), tmp_path / "out", parts, names_of(model), model_card="")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "bitwright"
    assert config["embeddings"]["targets"] == ["embeddings.word_embeddings"]
    assert load_file(tmp_path / "out" / "model.safetensors")["embeddings.word_embeddings.weight"].shape == (60, 1, 32)


def test_all_in_16_bit_is_a_plain_model(tiny_bert: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    parts = QuantizedParts({}, half=names_of(model).linears)
    write_checkpoint(ModelDirectory(tiny_bert), tmp_path / "out", parts, names_of(model), model_card="")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.pooler.dense.weight, model.pooler.dense.weight.bfloat16().float())


def test_what_does_not_fit_is_refused(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    names, layers = names_of(model), quantize_linears(model)
    layer = layers["encoder.layer.0.output.dense"]

    def attempt(layers: dict[str, QuantizedLinear], names: ModelNames = names) -> None:
        write_checkpoint(
            ModelDirectory(tiny_bert), tmp_path / "out", QuantizedParts(lazy(layers)), names, model_card=""
        )

    with pytest.raises(CheckpointError, match=r"there is no 'encoder.layer.9.*nearest"):
        attempt({"encoder.layer.9.output.dense": layer})
    with pytest.raises(CheckpointError, match=r"shape \[64, 32\], but the quantized tensor has \[32, 64\]"):
        attempt({"encoder.layer.0.intermediate.dense": layer})
    four = QuantSpec(bits=4, dynamic=True)
    with pytest.raises(CheckpointError, match=r"output.dense: inputs with .*bits=4"):
        attempt({"encoder.layer.0.output.dense": QuantizedLinear(layer.weight, None, four)})
    attempt(layers)
    with pytest.raises(ModelError, match="already quantized"):
        write_checkpoint(ModelDirectory(tmp_path / "out"), tmp_path / "again", QuantizedParts({}), names, model_card="")
    with pytest.raises(InputError, match="--overwrite"):
        attempt(layers)


def test_overwrite_leaves_nothing_of_the_old(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    write(tiny_bert, tmp_path / "out", quantize_linears, extra_files={"stale.txt": "x"})
    write_record(Record(), tmp_path / "out" / "record.json")
    write(tiny_bert, tmp_path / "out", quantize_linears, overwrite=True)
    assert not (tmp_path / "out" / "stale.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_killed_while_writing_tensors(tiny_bert: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the weights: there is no output."""
    script = f"""
import time
from pathlib import Path
from bitwright.checkpoints import write
from bitwright.files.directory import ModelDirectory
from bitwright.models.names import ModelNames
original = write.TensorFiles.values_at
def slow(self, name, *place):
    print("reading", name, flush=True)
    time.sleep(30)
    return original(self, name, *place)
write.TensorFiles.values_at = slow
names = ModelNames("bert", (), (), {{}}, {{}})
write.write_checkpoint(
    ModelDirectory(Path({str(tiny_bert)!r})), Path({str(tmp_path / "out")!r}), write.QuantizedParts({{}}), names,
    model_card="",
)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("reading")
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "out").exists()


def test_a_linear_is_loaded_once_and_alone(tiny_bert: Path, tmp_path: Path, quantize_linears: Quantize) -> None:
    """Whatever the shards: one linear is in memory at a time, and none is loaded twice."""
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    layers = quantize_linears(model, "w4a16_g32_asym")
    for name, max_shard_bytes in (("one", 5_000_000), ("many", 1)):
        loaded: list[str] = []
        alive: list[weakref.ref[torch.Tensor]] = []

        def load(
            module: str,
            loaded: list[str] = loaded,
            alive: list[weakref.ref[torch.Tensor]] = alive,
        ) -> QuantizedLinear:
            loaded.append(module)
            assert sum(reference() is not None for reference in alive) == 0
            layer = layers[module]
            weight = QTensor(
                layer.weight.codes_NK.clone(),
                layer.weight.scale_NG,
                layer.weight.zero_point_NG,
                layer.weight.spec,
            )
            alive.append(weakref.ref(weight.codes_NK))
            return QuantizedLinear(weight, None, layer.input_spec)

        parts = {name: ready(layer)._replace(load=partial(load, name)) for name, layer in layers.items()}
        write_checkpoint(
            ModelDirectory(tiny_bert), tmp_path / name, QuantizedParts(parts), names_of(model), model_card="",
            max_shard_bytes=max_shard_bytes,
        )  # fmt: skip
        assert sorted(loaded) == sorted(layers)


def test_a_change_of_what_is_not_there_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    parts = QuantizedParts({}, changed={"encoder.layer.0.output.dense.offset": lambda: torch.ones(32)})
    with pytest.raises(CheckpointError, match=r"there is no 'encoder.layer.0.output.dense.offset'.*nearest"):
        write_checkpoint(ModelDirectory(tiny_bert), tmp_path / "out", parts, names_of(model), model_card="")


def test_transforms_change_the_quant_method(
    tiny_bert: Path, tmp_path: Path, make_linear: Callable[..., QuantizedLinear], quantize_linears: Quantize
) -> None:
    """Every linear is guarded then, and groups say which transform theirs has."""
    model = transformers.AutoModel.from_pretrained(tiny_bert)
    layers = quantize_linears(model)
    changed = "encoder.layer.0.intermediate.dense"
    layers[changed] = make_linear(model.get_parameter(f"{changed}.weight").detach(), "w8a8", transform=True)
    write_checkpoint(
        ModelDirectory(tiny_bert), tmp_path / "out", QuantizedParts(lazy(layers)), names_of(model), model_card=""
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "bitwright"
    groups = {
        group.get("input_transform", ["none"])[-1]: group["targets"] for group in config["config_groups"].values()
    }
    assert groups["scale"] == ["re:(?:bert\\.)?encoder\\.layer\\.0\\.intermediate\\.dense$"]
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, layer in layers.items():
        assert torch.equal(out[f"{name}.weight"].squeeze(1), layer.weight.codes_NK)
        assert out[f"{name}.weight"].ndim == 3
    assert torch.equal(out[f"{changed}.input_scale_K"], torch.linspace(0.5, 2.0, 32))
    assert torch.equal(out[f"{changed}.input_shift_K"], torch.linspace(-1.0, 1.0, 32))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
