"""`enable()`: AutoModel loads our checkpoints with our linears; `disable()` leaves transformers as it was."""

import copy
import json
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from bitwright.errors import BitwrightError, CheckpointError, InputError
from bitwright.integrations.transformers import disable, enable
from bitwright.kernels import dispatch
from bitwright.kernels.linear import QuantLinear
from bitwright.runtime.load import load
from tests.families import DECODERS, ENCODERS
from tests.nested import FOLDER, rows

pytestmark = pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built")
Quantized = Callable[..., Path]
IDS = torch.randint(5, 200, (2, 11), generator=torch.Generator().manual_seed(2))
TABLES = AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING


@pytest.fixture
def enabled() -> Iterator[None]:
    assert enable()
    yield
    disable()


def linears(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def outputs(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        out = model(input_ids=IDS)
    found: torch.Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found


@pytest.mark.parametrize(
    ("family", "scheme", "task", "transformed"),
    [
        ("bert", "w8a8", None, True),
        ("bert", "w8a8_symmetric", "sequence-classification", False),
        ("gpt2", "w4a16_g32", None, False),
        ("llama", "nf4_g32", None, False),
        ("mixtral", "w4a16_g32", None, False),
        ("qwen3", "w4a16_g32", None, False),
    ],
)
def test_loads_what_the_generic_path_loads(
    enabled: None, quantized: Quantized, family: str, scheme: str, task: str | None, transformed: bool
) -> None:
    path = quantized(family, scheme, task, transformed=transformed)
    ours = load(path, compute="float32").hf
    auto = {None: "AutoModel" if family == "bert" else "AutoModelForCausalLM"}
    auto_class = getattr(transformers, auto.get(task, "AutoModelForSequenceClassification"))
    model, told = auto_class.from_pretrained(path, output_loading_info=True)
    assert linears(model) == linears(ours) != set()
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert not model.training
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(outputs(model), outputs(ours), rtol=2e-5, atol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_every_family_is_loaded_and_saved(enabled: None, quantized: Quantized, tmp_path: Path, family: str) -> None:
    own = {"head_dim": 8} if family == "deepseek_v3" else {}
    path = quantized(family, "w8a8" if family in (*ENCODERS, "deepseek_v3") else "w4a16_g32", **own)
    auto_class = transformers.AutoModelForCausalLM if family in DECODERS else transformers.AutoModel
    model, told = auto_class.from_pretrained(path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    ours = load(path, compute="float32").hf
    assert linears(model) == linears(ours) != set()
    torch.testing.assert_close(outputs(model), outputs(ours), rtol=2e-5, atol=2e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(auto_class.from_pretrained(tmp_path)), outputs(model))
    before, after = load_file(path / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()


def test_the_integer_kernels_run(enabled: None, quantized: Quantized) -> None:
    model = transformers.AutoModel.from_pretrained(quantized("bert", "w8a8"))
    before = dispatch.kernel_calls()
    outputs(model)
    assert dispatch.kernel_calls() - before == len(linears(model)) == 12


# What stays in 16 bit beside codes: where transformers merges experts, and where it has a Conv1D; a table of int8.
MIXED = [
    ("bert", {"half": ("encoder.layer.1.output.dense",), "tables": True}),
    ("gpt2", {"half": ("transformer.h.0.mlp.c_proj", "transformer.h.1.attn.c_attn")}),
    ("llama", {"half": ("model.layers.1.mlp.down_proj",)}),
    ("mixtral", {"half": ("model.layers.1.mlp.experts.2.down_proj",)}),
]


@pytest.mark.parametrize(("family", "how"), MIXED)
def test_what_stays_in_16_bit(enabled: None, quantized: Quantized, family: str, how: dict[str, Any]) -> None:
    path = quantized(family, "w8a8" if family == "bert" else "w4a16_g32", **how)
    auto_class = transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM
    model, told = auto_class.from_pretrained(path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    linear = model.get_submodule(how["half"][0])
    assert isinstance(linear, nn.Linear)
    assert torch.equal(linear.weight, linear.weight.bfloat16().float())
    wanted = outputs(load(path, compute="float32").hf)
    assert (outputs(model) - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize(("family", "how"), MIXED)
def test_saved_again_it_is_the_same_checkpoint(
    enabled: None, quantized: Quantized, tmp_path: Path, family: str, how: dict[str, Any]
) -> None:
    path = quantized(family, "w8a8" if family == "bert" else "w4a16_g32", transformed=family == "bert", **how)
    auto_class = transformers.AutoModel if family == "bert" else transformers.AutoModelForCausalLM
    model = auto_class.from_pretrained(path)
    model.save_pretrained(tmp_path)
    before, after = load_file(path / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (path, tmp_path)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert torch.equal(outputs(auto_class.from_pretrained(tmp_path)), outputs(model))


def test_copied_and_pickled(enabled: None, quantized: Quantized, tmp_path: Path) -> None:
    path = quantized("bert", "w8a8", transformed=True)
    model = transformers.AutoModel.from_pretrained(path)
    copied, unpickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert torch.equal(outputs(copied), outputs(model))
    assert torch.equal(outputs(unpickled), outputs(model))
    copied.save_pretrained(tmp_path / "copied")
    assert torch.equal(outputs(transformers.AutoModel.from_pretrained(tmp_path / "copied")), outputs(model))
    with pytest.raises(InputError, match="unpickled"):
        unpickled.save_pretrained(tmp_path / "unpickled")


def test_generates(enabled: None, quantized: Quantized) -> None:
    path = quantized("llama", "w4a16_g32", tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ours = load(path, compute="float32").hf
    how = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(IDS, **how), ours.generate(IDS, **how))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(enabled: None, quantized: Quantized, dtype: torch.dtype) -> None:
    path = quantized("llama", "w4a16_g32")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    codes = [module.weight for module in model.modules() if isinstance(module, QuantLinear)]
    assert {code.dtype for code in codes} == {torch.int8}
    assert model.dtype == outputs(model).dtype == dtype
    exact = outputs(transformers.AutoModelForCausalLM.from_pretrained(path))
    assert (outputs(model).float() - exact).norm() < 0.05 * exact.norm()


def test_a_base_model_of_a_language_model_and_a_new_head(enabled: None, quantized: Quantized) -> None:
    path = quantized("llama", "w4a16_g32")
    base = transformers.AutoModel.from_pretrained(path)
    whole = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(outputs(base), whole.model(IDS).last_hidden_state)
    _, told = transformers.AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
    assert set(told["missing_keys"]) == {"score.weight"}


def test_a_quantized_head(enabled: None, quantized: Quantized) -> None:
    path = quantized("llama", "w4a16_g32", heads=("lm_head",), tie_word_embeddings=False)
    whole, ours = transformers.AutoModelForCausalLM.from_pretrained(path), load(path, compute="float32").hf
    assert "lm_head" in linears(whole)
    torch.testing.assert_close(outputs(whole), outputs(ours), rtol=2e-5, atol=2e-5)
    base = transformers.AutoModel.from_pretrained(path)  # which has no head
    assert torch.equal(outputs(base), whole.model(IDS).last_hidden_state)


def test_sentence_transformers_loads_through_it(enabled: None, quantized: Quantized, texts: list[str]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = quantized("bert", "w8a8", transformed=True, pooling="mean_tokens")
    model = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    assert linears(model)
    wanted = load(path, compute="float32").encode(texts[:5])
    torch.testing.assert_close(model.encode(texts[:5]), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_maps_of_the_cpu(enabled: None, quantized: Quantized, device_map: Any) -> None:
    pytest.importorskip("accelerate")
    model = transformers.AutoModel.from_pretrained(quantized(), device_map=device_map)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_other_devices_are_refused(enabled: None, quantized: Quantized) -> None:
    with pytest.raises(InputError, match="run on the CPU"):
        transformers.AutoModel.from_pretrained(quantized(), device_map="cuda:0")


def test_disable_restores(quantized: Quantized) -> None:
    before = [dict(table) for table in TABLES]
    enable()
    enable()  # once more changes nothing
    assert [dict(table) for table in TABLES] != before
    disable()
    disable()
    assert [dict(table) for table in TABLES] == before
    pytest.importorskip("compressed_tensors")
    path = quantized("bert", "w8a8_symmetric")
    model = transformers.AutoModel.from_pretrained(path)
    assert not linears(model)
    assert isinstance(model.encoder.layer[0].output.dense, nn.Linear)


def test_another_release_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [dict(table) for table in TABLES]
    monkeypatch.setattr("bitwright.integrations.transformers._MAJOR", 4)
    with pytest.warns(UserWarning, match=r"knows transformers 4, and 5\..* is installed"):
        assert not enable()
    assert [dict(table) for table in TABLES] == before


def test_what_we_do_not_read_is_left_to_transformers(enabled: None) -> None:
    pytest.importorskip("compressed_tensors")
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "nothing"}}
    said = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    with pytest.warns(UserWarning, match="left to transformers' own"), pytest.raises(ValueError, match="strategy"):
        AUTO_QUANTIZATION_CONFIG_MAPPING["compressed-tensors"].from_dict(said)
    with pytest.raises(CheckpointError):
        AUTO_QUANTIZATION_CONFIG_MAPPING["bitwright"].from_dict(said | {"quant_method": "bitwright"})


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


CODES = "encoder.layer.0.attention.self.query.weight"
SCALE = f"{CODES}_scale"


def without(header: dict[str, Any], body: bytes, *names: str) -> tuple[dict[str, Any], bytes]:
    """The file without these tensors."""
    kept, parts, at = {}, [], 0
    for name, entry in header.items():
        if name in names or name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        kept[name] = entry | {"data_offsets": [at, at + end - start]}
        parts.append(body[start:end])
        at += end - start
    return kept, b"".join(parts)


def nan_scale(header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    start = header[SCALE]["data_offsets"][0]
    return header, body[:start] + struct.pack("<f", float("nan")) + body[start + 4 :]


LIES: dict[str, Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]] = {
    "no scale": lambda h, b: without(h, b, SCALE),
    "no codes": lambda h, b: without(h, b, CODES),
    "no linear": lambda h, b: without(h, b, *(name for name in h if name.startswith(CODES.removesuffix("weight")))),
    "no norm": lambda h, b: without(h, b, "encoder.layer.1.output.LayerNorm.weight"),
    "scale of NaN": nan_scale,
    "codes as floats": lambda h, b: (h | {CODES: h[CODES] | {"dtype": "F8_E4M3"}}, b),
    "codes of another shape": lambda h, b: (h | {CODES: h[CODES] | {"shape": [32, 1, 128]}}, b),
    "a linear that the model lacks": lambda h, b: (
        {name.replace("layer.1.", "layer.7."): entry for name, entry in h.items()}, b),
    "cut off": lambda h, b: (h, b[:-1]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_checkpoint_that_lies_is_refused(enabled: None, quantized: Quantized, tmp_path: Path, lie: str) -> None:
    source = quantized("bert", "w8a8", transformed=True)
    assert json.loads((source / "config.json").read_text())["quantization_config"]["quant_method"] == "bitwright"
    path = tmp_path / "lie"
    shutil.copytree(source, path)
    write(path / "model.safetensors", *LIES[lie](*header_of(path / "model.safetensors")))
    with pytest.raises(CheckpointError):
        transformers.AutoModel.from_pretrained(path)


CONFIGS: dict[str, dict[str, Any]] = {
    "no groups": {"quant_method": "bitwright"},
    "groups in a list": {"quant_method": "bitwright", "config_groups": []},
    "a pattern that takes for ever": {"quant_method": "bitwright", "config_groups": {"g": {
        "targets": ["re:(a+)+b"], "weights": {"num_bits": 8, "strategy": "channel"}}}},
    "a table that is none": {"quant_method": "bitwright", "config_groups": {}, "embeddings": {"targets": ["x.y"]}},
}  # fmt: skip


@pytest.mark.parametrize("lie", CONFIGS)
def test_a_config_that_lies_is_refused(enabled: None, quantized: Quantized, tmp_path: Path, lie: str) -> None:
    path = tmp_path / "lie"
    shutil.copytree(quantized("bert", "w8a8", transformed=True), path)
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": CONFIGS[lie]}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        transformers.AutoModel.from_pretrained(path)


def test_nothing_is_unpickled(enabled: None, quantized: Quantized, tmp_path: Path) -> None:
    path, mark = tmp_path / "lie", tmp_path / "mark"
    shutil.copytree(quantized("bert", "w8a8", transformed=True), path)
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {mark}'\ntR.".encode())
    with pytest.raises((BitwrightError, OSError)):
        transformers.AutoModel.from_pretrained(path)
    assert not mark.exists()


def test_linears_come_from_the_files_that_transformers_reads(
    enabled: None, quantized: Quantized, tmp_path: Path
) -> None:
    """Which are not those that modules.json names, if it names a folder; that is for sentence-transformers."""
    path = Path(shutil.copytree(quantized("bert", "w8a8"), tmp_path / "both"))
    shutil.copytree(quantized("bert", "w8a8"), path / FOLDER)
    (path / "modules.json").write_text(json.dumps(rows(("Transformer", FOLDER))))
    with pytest.raises(CheckpointError, match=f"modules.json puts the model into {path / FOLDER}"):
        transformers.AutoModel.from_pretrained(path)
    assert transformers.AutoModel.from_pretrained(path, subfolder=FOLDER).config.model_type == "bert"


def test_nothing_outside_the_directory_is_read(enabled: None, quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "lie"
    shutil.copytree(quantized("bert", "w8a8", transformed=True), path)
    (path / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = header_of(tmp_path / "outside.safetensors")[0].keys() - {"__metadata__"}
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../outside.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the directory"):
        transformers.AutoModel.from_pretrained(path)


def test_code_beside_the_weights_is_not_run(enabled: None, quantized: Quantized, tmp_path: Path) -> None:
    path, mark = tmp_path / "lie", tmp_path / "mark"
    shutil.copytree(quantized("bert", "w8a8", transformed=True), path)
    (path / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass BertModel: pass\n")
    config = json.loads((path / "config.json").read_text()) | {"auto_map": {"AutoModel": "evil.BertModel"}}
    (path / "config.json").write_text(json.dumps(config))
    assert linears(transformers.AutoModel.from_pretrained(path))
    assert not mark.exists()
