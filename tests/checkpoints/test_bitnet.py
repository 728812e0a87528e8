"""BitNet's ternary checkpoints: the numbers and the logits of transformers, both ways; and files that lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import bitwright
from bitwright.checkpoints.convert import convert
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import CheckpointError, InputError
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.linear import LinearForm
from bitwright.numerics.schemes import SCHEMES
from bitwright.recipe import make_recipe
from bitwright.runtime.generic import load_generic

# What transformers imports for this format.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

TinyModel = Callable[..., Path]
Change = Callable[[dict[str, torch.Tensor]], Any]
IDS = [2, 9, 40, 77, 5, 120, 33, 8, 64, 3]
SIZE = {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 96}
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
FORM = LinearForm(SCHEMES["ternary_a8_tensor"].weight, SCHEMES["ternary_a8_tensor"].input)  # type: ignore[arg-type]
CLASSES = {
    "bitlinear": {},  # as transformers' own default is
    "autobitlinear": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
}


def packed(codes: torch.Tensor) -> torch.Tensor:
    """Ternary codes (N, K) as uint8 (N/4, K), one row at a time."""
    rows = len(codes) // 4
    out = torch.zeros(rows, codes.shape[1], dtype=torch.uint8)
    for row, values in enumerate(codes):
        out[row % rows] += (values + 1).to(torch.uint8) * 4 ** (row // rows)
    return out


def write(source: Path, out: Path, kind: str, change: Change = lambda tensors: None, **said: Any) -> Path:
    """The model as BitNet's tools write it; `change` is made to the tensors."""
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    for name in [n.removesuffix(".weight") for n, t in tensors.items() if ".layers." in n and t.ndim == 2]:
        weight = tensors[f"{name}.weight"]
        if kind != "online":
            scale = weight.float().abs().mean().bfloat16()
            codes = (weight.float() / scale).round().clamp(-1, 1)
            tensors[f"{name}.weight"] = packed(codes)
            tensors[f"{name}.weight_scale"] = (1 / scale if kind == "bitlinear" else scale).reshape(1)
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", **CLASSES[kind], **said}
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture
def model(tiny_model: TinyModel) -> Path:
    return tiny_model("bitnet", **SIZE)


def of_transformers(folder: Path) -> tuple[np.ndarray, Any]:
    """The logits of a text and the model, whose helpers are compiled by nobody here."""
    with torch.compiler.set_stance("force_eager"), torch.inference_mode():
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return hf(torch.tensor([IDS])).logits[0].numpy(), hf


def apart(found: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(found - want) / np.linalg.norm(want - want.mean(axis=1, keepdims=True)))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_logits_are_those_of_transformers(model: Path, tmp_path: Path, kind: str) -> None:
    folder = write(model, tmp_path / "m", kind)
    want, _ = of_transformers(folder)
    checkpoint = read_checkpoint(ModelDirectory(folder))
    assert checkpoint.format == "bitnet"
    assert len(checkpoint.linears) == 2 * 7
    assert {pending.form for pending in checkpoint.linears.values()} == {FORM}
    generic = load_generic(ModelDirectory(folder), compute="float32")
    with torch.inference_mode():
        found = generic.hf(torch.tensor([IDS])).logits[0].numpy()
    assert apart(found, want) < 2e-3  # an input at the edge between two codes takes the other one


@pytest.mark.parametrize("kind", CLASSES)
def test_each_weight_is_what_transformers_multiplies(model: Path, tmp_path: Path, kind: str) -> None:
    folder = write(model, tmp_path / "m", kind)
    _, hf = of_transformers(folder)
    for name, pending in read_checkpoint(ModelDirectory(folder)).linears.items():
        module, linear = hf.get_submodule(name), pending.load()
        assert linear.form == pending.form
        if kind == "bitlinear":
            from transformers.integrations.bitnet import unpack_weights

            with torch.compiler.set_stance("force_eager"):
                want = unpack_weights(module.weight, torch.float32) / module.weight_scale
        elif kind == "autobitlinear":
            want = module.weight * module.weight_scale
        else:
            scale = module.weight.abs().mean()
            want = (module.weight / scale).round().clamp(-1, 1) * scale
        np.testing.assert_allclose(linear.weight.dequantize(), want.detach().numpy(), rtol=1e-6)


def test_a_scale_of_the_other_class_is_another_model(model: Path, tmp_path: Path) -> None:
    """Of the same bytes one class divides, the other multiplies."""
    folder = write(model, tmp_path / "m", "bitlinear")
    config = json.loads((folder / "config.json").read_text())
    one = read_checkpoint(ModelDirectory(folder)).linears[Q].load().weight.scale_NG
    config["quantization_config"]["linear_class"] = "autobitlinear"
    (folder / "config.json").write_text(json.dumps(config))
    other = read_checkpoint(ModelDirectory(folder)).linears[Q].load().weight.scale_NG
    assert one * other == pytest.approx(1)
    assert not np.allclose(one, other)


def test_what_is_not_converted_stays_float(model: Path, tmp_path: Path) -> None:
    kept = ["lm_head", r"model.layers.1.mlp", "layers.0.self_attn.q_proj"]
    folder = write(model, tmp_path / "m", "online", modules_to_not_convert=kept)
    want, _ = of_transformers(folder)
    checkpoint = read_checkpoint(ModelDirectory(folder))
    assert len(checkpoint.linears) == 2 * 7 - 4
    assert {f"{Q}.weight", f"{DOWN}.weight", "lm_head.weight"} <= checkpoint.others
    generic = load_generic(ModelDirectory(folder), compute="float32")
    with torch.inference_mode():
        assert apart(generic.hf(torch.tensor([IDS])).logits[0].numpy(), want) < 2e-3


def test_quantized_here_and_written_for_transformers(model: Path, tmp_path: Path) -> None:
    """The codes and scales that were chosen here, and the logits that follow from them, in the user's library."""
    recipe = make_recipe({"scheme": "ternary_a8_tensor", "method": "rtn"})
    bitwright.quantize(model, out=tmp_path / "ours", recipe=recipe, samples=8, judged=False)
    done = convert(ModelDirectory(tmp_path / "ours"), "bitnet", tmp_path / "bitnet")
    assert (done.codes, done.losses) == (14, ())
    convert(ModelDirectory(tmp_path / "bitnet"), "bitwright", tmp_path / "again")
    linears = [read_checkpoint(ModelDirectory(tmp_path / part)).linears for part in ("ours", "bitnet", "again")]
    for name, pending in linears[0].items():
        want = pending.load().weight
        for others in linears[1:]:
            found = others[name].load().weight
            assert np.array_equal(found.codes_NK, want.codes_NK)
            assert np.array_equal(found.scale_NG, want.scale_NG)
    ours, again = (load_file(tmp_path / part / "model.safetensors") for part in ("ours", "again"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    generic = load_generic(ModelDirectory(tmp_path / "ours"), compute="float32")
    with torch.inference_mode():
        found = generic.hf(torch.tensor([IDS])).logits[0].numpy()
    assert apart(found, of_transformers(tmp_path / "bitnet")[0]) < 2e-3


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_stays_what_it_is_in_transformers(tiny_model: TinyModel, tmp_path: Path, tied: bool) -> None:
    folder = write(tiny_model("bitnet", **SIZE, tie_word_embeddings=tied), tmp_path / "m", "autobitlinear")
    convert(ModelDirectory(folder), "bitnet", tmp_path / "out")
    (want, _), (found, hf) = of_transformers(folder), of_transformers(tmp_path / "out")
    assert type(hf.lm_head) is torch.nn.Linear
    assert apart(found, want) < 2e-3


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("ternary_a8_channel", "its weights are not ternary with one scale for all"),
        ("w4a8_channel", "its weights are not ternary with one scale for all"),
        ("ternary_tensor", "its inputs are rounded to 8 bits with a scale for each token"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(model: Path, tmp_path: Path, scheme: str, why: str) -> None:
    recipe = make_recipe({"scheme": scheme, "method": "rtn"})
    bitwright.quantize(model, out=tmp_path / "ours", recipe=recipe, samples=8, judged=False)
    with pytest.raises(InputError, match=why):
        convert(ModelDirectory(tmp_path / "ours"), "bitnet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def load_all(folder: Path) -> None:
    for pending in read_checkpoint(ModelDirectory(folder)).linears.values():
        pending.load()


def put(name: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            put(f"{Q}.weight_scale", torch.zeros(1)),
            r"model\.safetensors: .*q_proj\.weight_scale is 0, but it and",
        ),
        (
            put(f"{Q}.weight_scale", -torch.ones(1)),
            r"q_proj\.weight_scale is -1, but it and its reciprocal must",
        ),
        (put(f"{Q}.weight_scale", torch.full((1,), 1e-42)), r"q_proj\.weight_scale is 1.*e-42, but it and"),
        (put(f"{Q}.weight_scale", torch.tensor([torch.nan])), r"q_proj\.weight_scale is nan, but it and"),
        (put(f"{Q}.weight_scale", torch.ones(2)), r"q_proj\.weight_scale has the shape \[2\], but \[1\] is expected"),
        (put(f"{Q}.weight_scale", torch.ones(1, dtype=torch.int32)), r"q_proj\.weight_scale is I32, but must be F16"),
        (lambda tensors: tensors.pop(f"{Q}.weight_scale"), r"q_proj\.weight_scale is missing"),
        (lambda tensors: tensors.pop(f"{Q}.weight"), r"q_proj\.weight is missing"),
        (put(f"{Q}.weight", torch.ones(64, 64)), r"q_proj\.weight is F32, but must be U8"),
        (put(f"{Q}.weight", torch.zeros(0, 64, dtype=torch.uint8)), r"q_proj\.weight has the shape \[0, 64\]"),
        (put(f"{Q}.weight", torch.full((16, 64), 255, dtype=torch.uint8)), r"q_proj\.weight holds 3 in two bits"),
        (put(f"{Q}.bias", torch.ones(63)), r"q_proj\.bias has the shape \[63\], but \(64,\) is expected"),
        (put("lm_head.weight_scale", torch.ones(1)), r"lm_head\.weight is F32, but must be U8"),
    ],
)
def test_files_that_lie_are_refused(model: Path, tmp_path: Path, change: Change, what: str) -> None:
    folder = write(model, tmp_path / "m", "bitlinear", change)
    with pytest.raises(CheckpointError, match=what):
        load_all(folder)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"linear_class": "linear"}, r"config\.json: quantization_config: linear_class 'linear'"),
        ({"linear_class": ["bitlinear"]}, "linear_class"),
        ({"quantization_mode": 3}, "quantization_mode 3"),
        ({"use_rms_norm": True}, "use_rms_norm is set"),
        ({"use_rms_norm": "no"}, "use_rms_norm = 'no', but it must be true or false"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert must be a list of names"),
        ({"modules_to_not_convert": ["(a+)+b"]}, "could take for ever"),
        ({"modules_to_not_convert": ["lm_head", Q]}, r"q_proj\.weight holds codes, but modules_to_not_convert"),
    ],
)
def test_settings_that_nothing_reads_are_refused(model: Path, tmp_path: Path, said: dict[str, Any], what: str) -> None:
    folder = write(model, tmp_path / "m", "bitlinear", **said)
    with pytest.raises(CheckpointError, match=what):
        read_checkpoint(ModelDirectory(folder))
