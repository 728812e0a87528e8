"""`convert`: the same numbers in another format, everything else as it is, and no loss that is not allowed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitwright.checkpoints.convert import TARGETS, convert
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.checkpoints.linear_tensors import linear_tensors
from bitwright.checkpoints.quantization_config import make_quantization_config
from bitwright.errors import CheckpointError, InputError, NumericsError
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import Bf16, as_torch
from bitwright.numerics.linear import QuantizedLinear
from bitwright.numerics.qtensor import QTensor
from bitwright.numerics.spec import QuantSpec
from tests.checkpoints import other_tools as tools
from tests.checkpoints.other_tools import write_model
from tests.nested import rows
from tests.runtime.test_other_tools import SIZE

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
OTHERS = {
    "model.embed_tokens.weight": torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "model.norm.weight": torch.ones(64),
    "model.layers.0.self_attn.q_proj.weight": torch.ones(64, 64).bfloat16(),
    "mtp.layers.0.weight": torch.arange(6).reshape(2, 3).half(),
}
SIDES = {"tokenizer.json": '{"a": 1}', "chat_template.jinja": "{{ x }}", "generation_config.json": "{}",
         "1_Pooling/config.json": "{}", "LICENSE": "Apache License"}  # fmt: skip


def source(folder: Path, said: dict[str, Any], modules: dict[str, tools.Tensors]) -> ModelDirectory:
    tools.save(folder, {"dtype": "bfloat16", "vocab_size": 50, "quantization_config": said}, modules, **OTHERS)
    for name, content in SIDES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return ModelDirectory(folder)


def gptq(folder: Path, **how: Any) -> ModelDirectory:
    bits, group, sym = how.get("bits", 4), how.get("group", 32), how.get("sym", True)
    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "checkpoint_format": "gptq"}
    return source(folder, said, {name: tools.gptq(64, 64, seed=i, **how)[0] for i, name in enumerate((UP, DOWN))})


def numbers(folder: Path) -> dict[str, np.ndarray]:
    found = read_checkpoint(ModelDirectory(folder))
    return {name: pending.load().weight.dequantize() for name, pending in found.linears.items()}


@pytest.mark.parametrize("to", [*TARGETS])
@pytest.mark.parametrize(
    ("bits", "group", "sym"), [(4, 32, True), (4, 64, False), (8, 32, True), (3, 32, False), (2, 64, True)]
)
def test_every_number_and_everything_else_stays(tmp_path: Path, to: str, bits: int, group: int, sym: bool) -> None:
    before = gptq(tmp_path / "in", bits=bits, group=group, sym=sym)
    refused = {"bitnet": "2 × its weights are not ternary with one scale"}
    if bits != 4:
        refused["awq"] = f"2 × it has codes of {bits} bits; AutoAWQ's have 4"
    if to in refused:
        with pytest.raises(InputError, match=refused[to]):
            convert(before, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    done = convert(before, to, tmp_path / "out")
    assert (done.codes, done.losses, done.left_out) == (2, (), ())
    assert read_checkpoint(ModelDirectory(tmp_path / "out")).format == to
    expected, found = numbers(tmp_path / "in"), numbers(tmp_path / "out")
    assert found.keys() == expected.keys() == {UP, DOWN}
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert done.tensor_bytes == sum(tensor.nbytes for tensor in stored.values())
    for name, tensor in OTHERS.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)
    assert {name: (tmp_path / "out" / name).read_text() for name in SIDES} == SIDES
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 50
    back = convert(ModelDirectory(tmp_path / "out"), "gptq", tmp_path / "back")
    assert back.losses == ()
    again = load_file(tmp_path / "back" / "model.safetensors")
    first = load_file(tmp_path / "in" / "model.safetensors")
    assert again.keys() == first.keys()
    codes = [name for name in first if name.endswith(("qweight", "scales", "g_idx"))]
    assert all(torch.equal(again[name], first[name]) for name in codes)


def test_version_1_is_written_of_symmetric_codes_and_version_2_of_others(tmp_path: Path) -> None:
    for sym, version, word in ((True, "gptq", 0x77777777), (False, "gptq_v2", None)):
        folder = tmp_path / version
        convert(convert_to_ours(gptq(folder / "in", sym=sym), folder / "ours"), "gptq", folder / "out")
        config = json.loads((folder / "out" / "config.json").read_text())["quantization_config"]
        assert (config["checkpoint_format"], config["sym"], config["desc_act"]) == (version, sym, False)
        assert r"-:^(?:model\.)?layers\.0\.self_attn\.q_proj$" in config["dynamic"]
        zeros = load_file(folder / "out" / "model.safetensors")[f"{UP}.qzeros"]
        assert word is None or set(zeros.flatten().tolist()) == {word}


def convert_to_ours(directory: ModelDirectory, out: Path) -> ModelDirectory:
    convert(directory, "bitwright", out)
    return ModelDirectory(out)


def test_what_a_format_cannot_hold_is_named_and_becomes_floats_if_allowed(
    tmp_path: Path, make_linear: Callable[..., QuantizedLinear]
) -> None:
    w_NK = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    linears = {UP: make_linear(w_NK, "nf4_g64"), DOWN: in_16_bit(make_linear(w_NK, "ternary_g32"))}
    before = ours(tmp_path / "in", linears)
    with pytest.raises(InputError, match=r"1 × its levels are those of the nf4 grid, so it becomes.*--allow-loss"):
        convert(before, "gptq", tmp_path / "out")
    done = convert(before, "gptq", tmp_path / "out", allow_loss=True)
    assert [loss.module for loss in done.losses] == [UP]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored[f"{UP}.weight"], linears[UP].torch().weight.dequantize().half())
    assert np.array_equal(numbers(tmp_path / "out")[DOWN], linears[DOWN].weight.dequantize())


def test_floats_of_4_and_8_bits(tmp_path: Path) -> None:
    codes, values, raw = tools.fp4(64, 64, 16)
    scale = torch.tensor(raw % 40).view(torch.float8_e4m3fn)
    eight, expected = tools.fp8(64, 64, (64, 1))
    modules = {UP: {"weight": codes, "weight_scale": scale, "weight_scale_2": torch.tensor(0.5)}, DOWN: eight}
    before = source(tmp_path / "in", {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, modules)
    for allowed in (False, True):
        with pytest.raises(InputError, match=r"FP8.*fp4 grid, so it becomes 16-bit floats"):
            convert(before, "gptq", tmp_path / "out", allow_loss=allowed)
    done = convert(before, "bitwright", tmp_path / "out", allow_loss=True)
    assert [loss.module for loss in done.losses if loss.as_floats] == [DOWN]
    assert np.array_equal(numbers(tmp_path / "out")[UP], values * np.repeat(scale.float().numpy(), 16, axis=1) / 2)
    made = ModelDirectory(tmp_path / "out").tensors[f"{DOWN}.weight"]
    assert isinstance(made, Bf16)
    assert np.array_equal(made.widen(), expected)


def ours(folder: Path, linears: dict[str, QuantizedLinear]) -> ModelDirectory:
    """A checkpoint of these linears in our format."""
    stored = {name: linear_tensors(linear, guarded=True) for name, linear in linears.items()}
    modules = {name: {suffix: as_torch(x).clone() for suffix, x in part.items()} for name, part in stored.items()}
    for name, linear in linears.items():
        if linear.transform is not None:
            modules[name]["bias"] = torch.zeros(64)
    forms = {name: linear.form for name, linear in linears.items()}
    return source(folder, make_quantization_config(forms, (), (), "", portable=False), modules)


def in_16_bit(linear: QuantizedLinear) -> QuantizedLinear:
    """With scales that 16 bits hold."""
    weight = linear.torch().weight
    return replace(linear.torch(), weight=replace(weight, scale_NG=weight.scale_NG.half().float()))


def test_scales_that_16_bits_do_not_hold_are_a_loss(tmp_path: Path) -> None:
    tensors, _ = tools.gptq(64, 64)
    tensors["scales"] = tensors["scales"].float() + 1e-6
    small = tools.gptq(64, 64)[0]
    small["scales"] = small["scales"].float() * 1e-9
    before = source(tmp_path / "in", {"quant_method": "gptq", "bits": 4, "group_size": 32}, {UP: tensors, DOWN: small})
    with pytest.raises(InputError, match=r"1 × its scales are too large or too small.*1 × its scales are rounded"):
        convert(before, "awq", tmp_path / "out")
    done = convert(before, "awq", tmp_path / "out", allow_loss=True)
    assert done.codes == 1
    expected, found = numbers(tmp_path / "in")[UP], numbers(tmp_path / "out")[UP]
    assert not np.array_equal(found, expected)
    assert np.allclose(found, expected, rtol=2**-11, atol=0)
    convert(before, "compressed-tensors", tmp_path / "exact")
    assert np.array_equal(numbers(tmp_path / "exact")[DOWN], numbers(tmp_path / "in")[DOWN])


def test_inputs_that_are_rounded_and_transformed_are_losses(
    tmp_path: Path, make_linear: Callable[..., QuantizedLinear]
) -> None:
    w_NK = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    linears = {UP: in_16_bit(make_linear(w_NK, "w8a8")), DOWN: make_linear(w_NK, "w4a16_g64", transform=True)}
    before = ours(tmp_path / "in", linears)
    with pytest.raises(InputError, match=r"input is scaled or shifted first.*inputs are no longer rounded to 8 bits"):
        convert(before, "gptq", tmp_path / "out")
    convert(before, "gptq", tmp_path / "out", allow_loss=True)
    transform = linears[DOWN].torch().transform
    assert transform is not None
    wanted, shift = linears[DOWN].torch().weight.dequantize() / transform.scale_K, transform.shift_K
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored[f"{DOWN}.weight"], wanted.half())
    assert shift is not None
    assert torch.allclose(stored[f"{DOWN}.bias"], -(wanted @ shift), atol=1e-4)
    assert np.array_equal(numbers(tmp_path / "out")[UP], linears[UP].weight.dequantize())


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    before = gptq(tmp_path / "in")
    with pytest.raises(InputError, match="written as compressed-tensors, bitwright, gptq, awq"):
        convert(before, "mlx", tmp_path / "out")
    (tmp_path / "in2").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(before, "awq", tmp_path / "in2")
    float_model = tools.save(tmp_path / "float", {}, {}, **OTHERS)
    with pytest.raises(InputError, match="not quantized"):
        convert(ModelDirectory(float_model), "awq", tmp_path / "out")


def test_autoawq_takes_no_module_left_out_whose_name_is_inside_that_of_a_quantized_one(tmp_path: Path) -> None:
    """Its readers look for what is left out anywhere in a name: `mlp.up_proj` would leave `mlp.up_proj_2` out too."""
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    codes, others = tools.gptq(64, 64)[0], tools.gptq(64, 64, seed=1)[0]
    floats = {"weight": torch.ones(64, 64).bfloat16()}
    before = source(inside, said, {f"{UP}_2": codes, DOWN: others, UP: floats})
    message = rf"{UP} stays in floats, and AutoAWQ's readers would leave {UP}_2 so, too.*quantize both or neither"
    with pytest.raises(InputError, match=message):
        convert(before, "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(before, "gptq", tmp_path / "gptq")  # whose patterns have an end
    before = source(beside, said, {UP: codes, DOWN: others, f"{UP}_2": floats})  # the other way around
    convert(before, "awq", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert f"{UP}_2" in config["modules_to_not_convert"]
    assert numbers(tmp_path / "out").keys() == {UP, DOWN}


@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_zero_points_that_do_not_fit_are_refused(
    tmp_path: Path, make_linear: Callable[..., QuantizedLinear], to: str
) -> None:
    """Of one zero point for a whole tensor, a file has a byte."""
    weight = make_linear(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)), "w4a16_g32").weight
    spec, one = QuantSpec(4, symmetric=False, per_tensor=True), np.ones((1, 1), np.float32)
    linear = QuantizedLinear(QTensor(np.asarray(weight.codes_NK), one, np.full((1, 1), 20, np.int8), spec))
    before = ours(tmp_path / "in", {UP: linear})
    with pytest.raises(NumericsError, match=rf"{UP}: zero points lie in \[20, 20\], and 4 bits hold \[-8, 7\]"):
        convert(before, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_that_differs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gptq(tmp_path / "in")
    monkeypatch.setattr(
        "bitwright.checkpoints.convert.copy_file", lambda a, b: (b.parent.mkdir(exist_ok=True), b.write_text("x"))
    )
    with pytest.raises(CheckpointError, match="has not the bytes of its source"):
        convert(before, "awq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_autoawq_has_one_size_of_groups_and_larger_ones_are_split(tmp_path: Path) -> None:
    other, row = "model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj"
    modules = {UP: tools.gptq(64, 128, group=64)[0], DOWN: tools.gptq(64, 128, group=32, sym=False)[0],
               other: tools.gptq(64, 128, group=128)[0], row: tools.gptq(64, 96, group=96)[0]}  # fmt: skip
    own = {r"+:.*down": {"group_size": 32, "sym": False}, r"+:.*\.1\.": {"group_size": 128}}
    own |= {r"+:.*\.2\.": {"group_size": -1}}
    before = source(tmp_path / "in", {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": own}, modules)
    assert convert(before, "awq", tmp_path / "out").losses == ()
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["group_size"] == 32
    expected, found = numbers(tmp_path / "in"), numbers(tmp_path / "out")
    assert expected.keys() == found.keys() == modules.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in modules)
    odd = tools.gptq(64, 80, group=16)[0]
    said = {"quant_method": "gptq", "bits": 4, "group_size": 64, "dynamic": {"+:.*down": {"group_size": 16}}}
    uneven = source(tmp_path / "uneven", said, {UP: modules[UP], other: tools.gptq(64, 128, group=64)[0], DOWN: odd})
    with pytest.raises(InputError, match=r"1 × its groups are no multiples of 64"):
        convert(uneven, "awq", tmp_path / "none")


def test_transformers_reads_what_another_tool_wrote_once_it_is_converted(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    model = write_model(tiny_model("llama", tie_word_embeddings=False, **SIZE), tmp_path / "in", "gptq")
    convert(ModelDirectory(tmp_path / "in"), "compressed-tensors", tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].float(), tensor), name


def test_tables_of_int8_stay_in_our_format_and_become_floats_elsewhere(
    tmp_path: Path, make_linear: Callable[..., QuantizedLinear]
) -> None:
    linear = in_16_bit(make_linear(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)), "w4a16_g64"))
    stored = {suffix: as_torch(tensor).clone() for suffix, tensor in linear_tensors(linear, guarded=True).items()}
    codes, scale = torch.randint(-127, 128, (50, 1, 64), dtype=torch.int8), torch.rand(50, 1) + 0.5
    table = "model.embed_tokens"
    said = make_quantization_config({UP: linear.form}, (table,), (), "", portable=False)
    modules = {UP: stored, table: {"weight": codes, "weight_scale": scale}}
    tools.save(tmp_path / "in", {"quantization_config": said}, modules)
    before = ModelDirectory(tmp_path / "in")
    assert convert(before, "bitwright", tmp_path / "same").losses == ()
    found = read_checkpoint(ModelDirectory(tmp_path / "same"))
    assert found.tables == (table,)
    assert np.array_equal(found.table(table)[0], codes[:, 0])
    with pytest.raises(InputError, match="1 × an embedding table of int8"):
        convert(before, "gptq", tmp_path / "out")
    convert(before, "gptq", tmp_path / "out", allow_loss=True)
    values = load_file(tmp_path / "out" / "model.safetensors")[f"{table}.weight"]
    assert torch.equal(values, (codes[:, 0] * scale).half())


def test_a_transformer_in_a_folder_is_written_flat(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "0_Transformer"
    folder.parent.mkdir()
    gptq(folder)
    (folder / "1_Pooling").rename(folder.parent / "1_Pooling")
    modules = rows(("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))
    (folder.parent / "modules.json").write_text(json.dumps(modules))
    done = convert(ModelDirectory(folder.parent), "compressed-tensors", tmp_path / "out")
    assert (done.codes, done.losses, done.left_out) == (2, (), ())
    for name, content in SIDES.items():
        assert (tmp_path / "out" / name).read_text() == content
    assert json.loads((tmp_path / "out" / "modules.json").read_text()) == [modules[0] | {"path": ""}, modules[1]]
    assert ModelDirectory(tmp_path / "out").is_flat
    before, after = numbers(folder), numbers(tmp_path / "out")
    assert all((before[name] == after[name]).all() for name in (UP, DOWN))
