"""What GPTQModel, AutoAWQ, AutoRound, llm-compressor, ModelOpt, MLX and model vendors write is read right.

One file although long: each format has its file written here, and all are held to the same reading.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright.checkpoints.checkpoint import Checkpoint
from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import CheckpointError
from bitwright.files.directory import ModelDirectory
from bitwright.numerics.arrays import Bf16
from bitwright.numerics.spec import QuantSpec
from tests.checkpoints import other_tools as tools

M = "model.layers.0.mlp.up_proj"


def opened(folder: Path) -> Checkpoint:
    return read_checkpoint(ModelDirectory(folder))


def number(checkpoint: Checkpoint, name: str = M) -> Any:
    """What a linear's codes stand for, quantized or dequantized."""
    if name in checkpoint.linears:
        pending = checkpoint.linears[name]
        linear = pending.load()
        assert (linear.shape, linear.form._replace(weight=pending.form.weight)) == (pending.shape, pending.form)
        return linear.weight.dequantize()
    pending_float = checkpoint.dequantized[name]
    values = pending_float.load()
    assert values.shape == pending_float.shape
    assert pending_float.dtype == ("bfloat16" if isinstance(values, Bf16) else "float32")
    return values.widen() if isinstance(values, Bf16) else values


def gptq_config(**said: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, **said}}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("sym", "version"), [(True, "gptq"), (True, "gptq_v2"), (False, "gptq"), (False, "gptq_v2")])
def test_gptq(tmp_path: Path, bits: int, sym: bool, version: str) -> None:
    tensors, expected = tools.gptq(64, 96, bits=bits, sym=sym, less_one=version == "gptq", index=bits != 2)
    config = gptq_config(bits=bits, sym=sym, checkpoint_format=version)
    found = opened(tools.save(tmp_path, config, {M: tensors | {"bias": torch.arange(64).half()}}))
    assert found.linears[M].form.weight == QuantSpec(bits=bits, symmetric=sym, group_size=32)
    assert np.array_equal(number(found), expected)
    bias = found.linears[M].load().bias_N
    assert bias is not None
    assert bias.tolist() == list(range(64))
    assert found.format == "gptq"


def test_gptq_of_a_row_and_of_other_bits_for_one_module(tmp_path: Path) -> None:
    other = "model.layers.1.mlp.up_proj"
    a, whole = tools.gptq(32, 64, group=64)
    b, eight = tools.gptq(32, 64, bits=8, group=32, sym=False)
    own = {"bits": 8, "group_size": 32, "sym": False}
    config = gptq_config(group_size=-1, dynamic={r"+:model\.layers\.1\..*": own, "-:lm_head": {}})
    found = opened(tools.save(tmp_path, config, {M: a, other: b}))
    assert found.linears[M].form.weight == QuantSpec(bits=4)
    assert np.array_equal(number(found), whole)
    assert found.linears[other].form.weight == QuantSpec(bits=8, symmetric=False, group_size=32)
    assert np.array_equal(number(found, other), eight)


def test_a_zero_point_that_ran_over_comes_back_from_whole_words(tmp_path: Path) -> None:
    """GPTQModel takes 0x11111111 off a word: a zero point of 0 borrows from the next one, and gets it back."""
    tensors, _ = tools.gptq(8, 32, sym=False, less_one=False)
    stored = tensors["qzeros"].numpy().view(np.uint32) & np.uint32(0xFFFF0FF0)
    for version, words in (("gptq_v2", stored), ("gptq", stored - np.uint32(0x11111111))):
        changed = tensors | {"qzeros": torch.tensor(words.view(np.int32))}
        found = opened(tools.save(tmp_path / version, gptq_config(sym=False, checkpoint_format=version), {M: changed}))
        zero = found.linears[M].load().weight.zero_point_NG
        assert zero is not None
        assert [int(z) + 8 for z in zero[:, 0]] == [int(stored[0, 0]) >> 4 * i & 15 for i in range(8)]


@pytest.mark.parametrize("sym", [True, False])
def test_gptq_in_the_order_of_activations_is_read_as_floats(tmp_path: Path, sym: bool) -> None:
    tensors, expected = tools.gptq(32, 96, sym=sym, order=True)
    found = opened(tools.save(tmp_path, gptq_config(sym=sym, desc_act=True), {M: tensors}))
    assert not found.linears
    assert np.array_equal(number(found), expected)
    assert found.remarks == ("1 × int4 in the order of activations run as floats",)


@pytest.mark.parametrize("keys", [("bits", "group_size"), ("w_bit", "q_group_size")])
def test_awq(tmp_path: Path, keys: tuple[str, str]) -> None:
    tensors, expected = tools.awq(40, 64)
    config = {"quant_method": "awq", keys[0]: 4, keys[1]: 32, "zero_point": True, "version": "GEMM"}
    found = opened(tools.save(tmp_path, {"quantization_config": config}, {M: tensors}))
    assert found.linears[M].form.weight == QuantSpec(bits=4, symmetric=False, group_size=32)
    assert np.array_equal(number(found), expected)


def test_autoawq_leaves_parts_of_names_to_the_files(tmp_path: Path) -> None:
    """AutoAWQ finds "mlp.gate" in "mlp.gate_proj", transformers does not: codes are codes, and floats are floats."""
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": ["mlp.gate", "lm_head"]}
    linear, expected = tools.awq(40, 64)
    gate = "model.layers.0.mlp.gate_proj"
    others = {"model.layers.0.mlp.gate.weight": torch.ones(4, 64), "lm_head.weight": torch.ones(8, 64)}
    found = opened(tools.save(tmp_path, {"quantization_config": config}, {gate: linear}, **others))
    assert np.array_equal(number(found, gate), expected)
    assert others.keys() <= found.others


@pytest.mark.parametrize(
    ("said", "name", "bits"),
    [
        ({r"\.1\.": 8}, "model.layers.1.mlp.up_proj", 8),  # anywhere in a name
        ({"up_proj": 8}, "model.layers.1.mlp.up_proj", 8),
        ({"model.layers.1.mlp": 8, "up_proj": 2}, "model.layers.1.mlp.up_proj", 8),  # the first counts
        ({"model.layers.1.mlp.up_proj": 8, "up_proj": 4}, "model.layers.1.mlp.up_proj", 8),  # a whole name comes first
        ({"model.layers.0.mlp.up_proj": 8}, "model.layers.1.mlp.up_proj", 4),
    ],
)
def test_auto_round_matches_anywhere(tmp_path: Path, said: dict[str, int], name: str, bits: int) -> None:
    """As `_expand_regex_config` of AutoRound 0.16."""
    own = {key: {"bits": bits_} for key, bits_ in said.items()}
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": True, "extra_config": own}
    tensors, expected = tools.gptq(32, 64, bits=bits)
    eight, _ = tools.gptq(32, 64, bits=said.get(M, 4))
    modules = {name: tensors} | ({M: eight} if M in said else {})
    found = opened(tools.save(tmp_path, {"quantization_config": config}, modules))
    assert np.array_equal(number(found, name), expected)


@pytest.mark.parametrize(
    ("packing", "less_one"),
    [
        ("auto_round:auto_gptq", True),
        ("auto_round", False),
        ("auto_round:gptqmodel", False),
        ("auto_round:auto_awq", 0),
    ],
)
def test_auto_round(tmp_path: Path, packing: str, less_one: bool) -> None:
    other = "model.layers.1.mlp.up_proj"
    awq = packing.endswith("awq")
    made = [
        tools.awq(32, 64, group=group)
        if awq
        else tools.gptq(32, 64, group=group, sym=False, less_one=less_one, index=False)
        for group in (32, 16)
    ]
    own = {r".*layers\.1\..*": {"group_size": 16}, "lm_head": {"bits": 16}}
    config = {"quant_method": "auto-round", "packing_format": packing, "bits": 4, "group_size": 32, "sym": False,
              "data_type": "int", "extra_config": own}  # fmt: skip
    found = opened(tools.save(tmp_path, {"quantization_config": config}, {M: made[0][0], other: made[1][0]}))
    assert np.array_equal(number(found), made[0][1])
    assert np.array_equal(number(found, other), made[1][1])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(tmp_path: Path, bits: int) -> None:
    table = "model.embed_tokens"
    tensors, expected = tools.mlx(16, 96, bits=bits)
    words, rows = tools.mlx(20, 64, bits=4, group=64)
    config = {"quantization": {"bits": bits, "group_size": 32, table: {"bits": 4, "group_size": 64}, "lm_head": False}}
    found = opened(
        tools.save(tmp_path, config | {"quantization_config": config["quantization"]}, {M: tensors, table: words})
    )
    assert found.format == "mlx"
    assert found.linears[M].form.has_minimum
    assert np.allclose(number(found), expected, rtol=1e-6, atol=1e-6)
    assert np.allclose(number(found, table), rows, rtol=2**-8, atol=2**-8)
    assert set(found.dequantized) == {table}


@pytest.mark.parametrize(("mode", "group"), [("mxfp4", 32), ("nvfp4", 16)])
def test_mlx_of_4_bit_floats(tmp_path: Path, mode: str, group: int) -> None:
    codes, values, raw = tools.fp4(8, 64, group)
    tensors = {"weight": codes.view(torch.int32).view(torch.uint32), "scales": torch.tensor(raw)}
    said = {"quantization": {"bits": 4, "group_size": group, "mode": mode}}
    found = opened(tools.save(tmp_path, said, {M: tensors}))
    as_e4m3 = torch.tensor(raw).view(torch.float8_e4m3fn).float().numpy()
    scale = 2.0 ** (raw.astype(int) - 127) if mode == "mxfp4" else as_e4m3
    assert np.array_equal(number(found), values * np.repeat(scale, group, axis=1))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (96,), (96, 1), "blocks"])
def test_fp8(tmp_path: Path, shape: Any) -> None:
    blocks = (40, 32) if shape == "blocks" else None
    tensors, expected = tools.fp8(96, 72, (3, 3) if blocks else shape, blocks)
    vendor = {"quant_method": "fp8", "fmt": "e4m3"} | ({"weight_block_size": [40, 32]} if blocks else {})
    name = "weight_scale_inv" if blocks else "weight_scale"
    ours = {"weight": tensors["weight"], name: tensors["weight_scale"]}
    strategy = "block" if blocks else "channel"
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "block_structure": [40, 32] if blocks else None}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "type": "float"}}
    compressed = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
    }
    for said, part in ((vendor, ours), (compressed, tensors)):
        found = opened(tools.save(tmp_path / str(said["quant_method"]), {"quantization_config": said}, {M: part}))
        assert np.array_equal(number(found), expected)
        assert any("inputs stay floats" in remark for remark in found.remarks)


def test_every_byte_of_fp8(tmp_path: Path) -> None:
    bytes_ = torch.arange(256).to(torch.uint8).reshape(2, 128)
    bytes_[bytes_ & 0x7F == 0x7F] = 0
    weight = bytes_.view(torch.float8_e4m3fn)
    said = {"quantization_config": {"quant_method": "fp8"}}
    found = opened(tools.save(tmp_path, said, {M: {"weight": weight, "weight_scale": torch.ones(1)}}))
    assert np.array_equal(number(found), weight.float().numpy())


def test_mxfp4_and_nvfp4_keep_every_number(tmp_path: Path) -> None:
    codes, values, raw = tools.fp4(8, 64, 32)
    raw[0, 0] = 0
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}}
    config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {"g": group}}
    part = {"weight_packed": codes, "weight_scale": torch.tensor(raw)}
    found = opened(tools.save(tmp_path / "mx", {"quantization_config": config}, {M: part}))
    assert found.linears[M].form.weight == QuantSpec(bits=4, grid="fp4", group_size=32)
    assert np.array_equal(number(found), values * np.repeat(2.0 ** (raw.astype(int) - 127), 32, axis=1))

    codes, values, raw = tools.fp4(8, 64, 16)
    raw[1, 1] = 0
    scale = torch.tensor(raw).view(torch.float8_e4m3fn)
    wide = np.repeat(scale.float().numpy(), 16, axis=1)
    inputs = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    group = {"targets": ["Linear"], "weights": inputs, "input_activations": inputs}
    config = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g": group}}
    part = {"weight_packed": codes, "weight_scale": scale, "weight_global_scale": torch.tensor([8.0]),
            "input_global_scale": torch.tensor([3.0])}  # fmt: skip
    divided = opened(tools.save(tmp_path / "ct", {"quantization_config": config}, {M: part}))
    assert np.array_equal(number(divided), values * wide / 8)
    part = {
        "weight": codes,
        "weight_scale": scale,
        "weight_scale_2": torch.tensor(0.125),
        "input_scale": torch.tensor(1.0),
    }
    folder = tools.save(tmp_path / "opt", {}, {M: part, "model.layers.0.self_attn.k_proj": {"k_scale": torch.ones(())}})
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))
    multiplied = opened(folder)
    assert multiplied.format == "modelopt"
    assert np.array_equal(number(multiplied), values * wide / 8)
    assert len(multiplied.remarks) == 2


def e4m3(n: int, k: int) -> torch.Tensor:
    """Every number of E4M3, (n, k)."""
    bytes_ = torch.arange(n * k).to(torch.uint8).reshape(n, k)
    return torch.where(bytes_ & 0x7F == 0x7F, 0, bytes_).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("tool", ["compressed-tensors", "modelopt", "mlx"])
def test_mxfp8_keeps_every_number(tmp_path: Path, tool: str) -> None:
    codes, raw = e4m3(16, 64), np.random.default_rng(0).integers(60, 200, (16, 2)).astype(np.uint8)
    expected = codes.float().numpy() * np.repeat(2.0 ** (raw.astype(int) - 127), 32, axis=1)
    weights = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}
    groups = {"g": {"targets": ["Linear"], "weights": weights, "input_activations": weights}}
    said: dict[str, Any] = {"quantization_config": {
        "compressed-tensors": {"quant_method": tool, "format": "mxfp8-quantized", "config_groups": groups},
        "modelopt": {"quant_method": tool, "quant_algo": "MXFP8", "group_size": 32},
    }.get(tool)}  # fmt: skip
    part = {"weight": codes, "weight_scale": torch.tensor(raw)}
    if tool == "mlx":
        said = {"quantization": {"bits": 8, "group_size": 32, "mode": "mxfp8"}}
        part = {"weight": codes.view(torch.uint32), "scales": torch.tensor(raw)}
    found = opened(tools.save(tmp_path, said, {M: part}))
    assert found.dequantized[M].fp8
    assert np.array_equal(number(found), expected)


def test_mxfp6_keeps_every_number_as_8_bit_integers(tmp_path: Path) -> None:
    """Bits by hand: a sign, two of the exponent, three of the mantissa, from the lowest bit on."""
    random = np.random.default_rng(0)
    stored, raw = random.permutation(np.arange(8 * 64) % 64).reshape(8, 64), random.integers(100, 140, (8, 2))
    text = ["".join(f"{code:06b}"[::-1] for code in row) for row in stored]
    packed = [[int(row[i : i + 8][::-1], 2) for i in range(0, len(row), 8)] for row in text]
    sign, exponent, mantissa = stored >> 5, stored >> 3 & 3, stored & 7
    size = np.where(exponent == 0, mantissa / 8, (1 + mantissa / 8) * 2.0 ** (exponent - 1))
    expected = np.where(sign == 1, -size, size) * np.repeat(2.0 ** (raw - 127), 32, axis=1)
    weights = {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}
    config = {"quant_method": "compressed-tensors", "format": "mxfp6-pack-quantized",
              "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip
    part = {
        "weight_packed": torch.tensor(packed, dtype=torch.uint8),
        "weight_scale": torch.tensor(raw.astype(np.uint8)),
    }
    found = opened(tools.save(tmp_path, {"quantization_config": config}, {M: part}))
    assert found.linears[M].form.weight == QuantSpec(bits=8, group_size=32)
    assert np.array_equal(number(found), expected)


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("ordered", [True, False])
def test_compressed_tensors_with_an_index_and_of_6_bits(tmp_path: Path, bits: int, ordered: bool) -> None:
    n, k, group = 16, 64, 32
    codes, _, scale = tools.random_codes(n, k, bits, k // group)
    group_of = np.arange(k) // group
    group_of = group_of if ordered else np.random.default_rng(5).permutation(group_of)
    part = {
        "weight_packed": torch.tensor([tools.words(row.tolist(), bits) for row in codes], dtype=torch.int32),
        "weight_scale": torch.tensor(scale).half(),
        "weight_shape": torch.tensor([n, k]),
        "weight_g_idx": torch.tensor(group_of, dtype=torch.int32),
    }
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, "actorder": "group"}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized",
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip
    found = opened(tools.save(tmp_path, {"quantization_config": config}, {M: part}))
    assert (M in found.linears) == ordered
    zeros = np.full((n, k // group), 1 << bits - 1)
    assert np.array_equal(number(found), tools.numbers(codes, zeros, scale, group_of))


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_negative_scales_are_codes_the_other_way_round(tmp_path: Path, sym: bool, bits: int) -> None:
    """AutoRound's symmetric grid has 8 · |s|, and not −8 · |s|, where the largest weight is positive."""
    tensors, expected = tools.gptq(32, 64, bits=bits, sym=sym)
    tensors["scales"][0] *= -1
    expected[:, :32] *= -1
    found = opened(tools.save(tmp_path / "gptq", gptq_config(bits=bits, sym=sym), {M: tensors}))
    assert np.array_equal(number(found), expected)
    if (sym, bits) != (False, 4):
        return
    tensors, expected = tools.awq(32, 64)
    tensors["scales"][0] *= -1
    expected[:, :32] *= -1
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}
    assert np.array_equal(number(opened(tools.save(tmp_path / "awq", config, {M: tensors}))), expected)


def test_a_scale_of_0_is_a_group_of_zeros(tmp_path: Path) -> None:
    tensors, expected = tools.gptq(32, 64, sym=False)
    tensors["scales"][1, 3] = 0
    expected[3, 32:] = 0
    found = opened(tools.save(tmp_path, gptq_config(sym=False), {M: tensors}))
    assert np.array_equal(number(found), expected)


def change(tensors: tools.Tensors, **changed: torch.Tensor | None) -> tools.Tensors:
    return {name: tensor for name, tensor in (tensors | changed).items() if tensor is not None}  # type: ignore[operator]


GPTQ = tools.gptq(32, 64)[0]
ASYM = tools.gptq(32, 64, sym=False)[0]
ORDER = tools.gptq(32, 64, order=True)[0]["g_idx"]
AWQ = tools.awq(32, 64)[0]
MLX = tools.mlx(32, 64)[0]
FP8 = tools.fp8(32, 64, (32, 1))[0]
NVFP4 = {"weight": tools.fp4(32, 64, 16)[0], "weight_scale": torch.ones(32, 4).to(torch.float8_e4m3fn),
         "weight_scale_2": torch.tensor(1.0)}  # fmt: skip
SAID: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4, "group_size": 32, "sym": True},
    "awq": {"bits": 4, "group_size": 32, "version": "gemm"},
    "auto-round": {"bits": 4, "group_size": 32, "sym": True, "packing_format": "auto_round:auto_gptq"},
    "mlx": {"bits": 4, "group_size": 32},
    "fp8": {},
    "modelopt": {"quant_algo": "NVFP4"},
}
BYTES = torch.full((16, 2), 120, dtype=torch.uint8)
MXFP8 = {"weight": e4m3(16, 64), "weight_scale": BYTES}
# What is wrong -> the format, its tensors, and what its config says; the tensor or the key that the message names.
LIES: dict[str, tuple[str, tools.Tensors, dict[str, Any], str]] = {
    "gptq, no scales": ("gptq", change(GPTQ, scales=None), {}, "scales is missing"),
    "gptq, no zero points": ("gptq", change(GPTQ, qzeros=None), {}, "qzeros is missing"),
    "gptq, no codes": ("gptq", change(GPTQ, qweight=None), {}, "no tensor ends in qweight"),
    "gptq, codes of floats": ("gptq", change(GPTQ, qweight=GPTQ["qweight"].float()), {}, "qweight is F32"),
    "gptq, codes of 1 axis": ("gptq", change(GPTQ, qweight=GPTQ["qweight"].flatten()), {}, "qweight has the shape"),
    "gptq, nothing": ("gptq", change(GPTQ, qweight=GPTQ["qweight"][:0]), {}, "qweight has the shape"),
    "gptq, scales of whole numbers": ("gptq", change(GPTQ, scales=GPTQ["scales"].int()), {}, "scales is I32"),
    "gptq, few scales": ("gptq", change(GPTQ, scales=GPTQ["scales"][:1]), {}, "scales has the shape"),
    "gptq, NaN": ("gptq", change(GPTQ, scales=GPTQ["scales"] * torch.nan), {}, "scales holds NaN"),
    "gptq, a group too large": ("gptq", GPTQ, {"group_size": 64}, "scales has the shape"),
    "gptq, a group of 0": ("gptq", GPTQ, {"group_size": 0}, "group_size = 0"),
    "gptq, a group of -2": ("gptq", GPTQ, {"group_size": -2}, "group_size = -2"),
    "gptq, a huge group": ("gptq", GPTQ, {"group_size": 1 << 70}, "scales has the shape"),
    "gptq, a group of text": ("gptq", GPTQ, {"group_size": "32"}, "group_size = '32'"),
    "gptq, other bits": ("gptq", GPTQ, {"bits": 8}, "g_idx|qweight"),
    "gptq, 7 bits": ("gptq", GPTQ, {"bits": 7}, "bits = 7"),
    "gptq, true bits": ("gptq", GPTQ, {"bits": True}, "bits = True"),
    "gptq, sym of text": ("gptq", GPTQ, {"sym": "yes"}, "sym = 'yes'"),
    "gptq, not sym": ("gptq", ASYM, {}, "qzeros holds zero points other than 8"),
    "gptq, of version 2": ("gptq", GPTQ, {"checkpoint_format": "gptq_v2"}, "qzeros holds zero points other than 8"),
    "gptq, of version 3": ("gptq", GPTQ, {"checkpoint_format": "gptq_v3"}, "checkpoint_format 'gptq_v3'"),
    "gptq, as Marlin has it": ("gptq", GPTQ, {"is_marlin_format": True}, "checkpoint_format 'marlin'"),
    "gptq, group 2 of 2": ("gptq", change(GPTQ, g_idx=ORDER + 1), {}, "g_idx names groups from 1 to 2"),
    "gptq, group -1": ("gptq", change(GPTQ, g_idx=ORDER - 1), {}, "g_idx names groups from -1"),
    "gptq, a short index": ("gptq", change(GPTQ, g_idx=ORDER[:32]), {}, "qweight has the shape"),
    "gptq, an index of floats": ("gptq", change(GPTQ, g_idx=ORDER.float()), {}, "g_idx is F32"),
    "gptq, a weight too": ("gptq", GPTQ | {"weight": torch.ones(32, 64)}, {}, r"weight is unexpected"),
    "gptq, a stranger's scale": ("gptq", GPTQ | {"weight_scale": torch.ones(1)}, {}, "weight_scale is unexpected"),
    "gptq, dynamic of a list": ("gptq", GPTQ, {"dynamic": [1]}, "dynamic must map"),
    "gptq, codes of what it leaves": ("gptq", GPTQ, {"dynamic": {"-:.*up_proj": {}}}, "leaves .*up_proj in floats"),
    "awq, codes of what it leaves": ("awq", AWQ, {"modules_to_not_convert": ["up_proj"]}, "leaves .*up_proj in floats"),
    "awq, a list of numbers": ("awq", AWQ, {"modules_to_not_convert": [1]}, "modules_to_not_convert must list"),
    "gptq, a pattern without end": ("gptq", GPTQ, {"dynamic": {"+:(a*)*b": {}}}, "could take for ever"),
    "awq, gemv": ("awq", AWQ, {"version": "gemv"}, "version 'gemv'"),
    "awq, 3 bits": ("awq", AWQ, {"bits": 3}, "bits = 3"),
    "awq, few zero points": ("awq", change(AWQ, qzeros=AWQ["qzeros"][:1]), {}, "qzeros has the shape"),
    "awq, no group size": ("awq", AWQ, {"group_size": None}, "group_size = None"),
    "awq, an uneven group": ("awq", AWQ, {"group_size": 48}, "not a multiple of group_size = 48"),
    "awq, an index": ("awq", AWQ | {"g_idx": ORDER}, {}, "g_idx is unexpected"),
    "auto-round, mx_fp": ("auto-round", GPTQ, {"data_type": "mx_fp"}, "data_type 'mx_fp'"),
    "auto-round, 8-bit inputs": ("auto-round", GPTQ, {"act_bits": 8}, "act_bits 8"),
    "auto-round, packed otherwise": ("auto-round", GPTQ, {"packing_format": "x"}, "packing_format 'x'"),
    "auto-round, extra of a list": ("auto-round", GPTQ, {"extra_config": ["x"]}, "extra_config must map"),
    "mlx, no biases": ("mlx", change(MLX, biases=None), {}, "biases is missing"),
    "mlx, signed words": ("mlx", change(MLX, weight=MLX["weight"].view(torch.int32)), {}, "weight is I32"),
    "mlx, a group too small": ("mlx", MLX, {"group_size": 16}, "scales has the shape"),
    "mlx, 7 bits": ("mlx", MLX, {"bits": 7}, "bits = 7"),
    "mlx, another mode": ("mlx", MLX, {"mode": "mxfp6"}, "mode 'mxfp6'"),
    "mlx, mxfp8 with floats as scales": ("mlx", MLX, {"mode": "mxfp8"}, "scales is F16, but must be U8"),
    "mlx, huge scales": ("mlx", change(MLX, scales=MLX["scales"].float().sign() * 3e38), {}, "every minimum must"),
    "gptq, huge scales": (
        "gptq", change(GPTQ, scales=torch.full((2, 32), 3e38), g_idx=ORDER), {}, "a scale is not finite, or so large",
    ),
    "fp8, huge scales": ("fp8", change(FP8, weight_scale=torch.full((1,), 3e38)), {}, "a scale is so large"),
    "fp8, no scale": ("fp8", change(FP8, weight_scale=None), {}, "no tensor ends in"),
    "fp8, a whole scale": ("fp8", change(FP8, weight_scale=FP8["weight_scale"].int()), {}, "weight_scale is I32"),
    "fp8, blocks that it does not say": ("fp8", change(FP8, weight_scale=torch.ones(2, 2)), {}, "weight_scale has the"),
    "fp8, no block": ("fp8", FP8, {"weight_block_size": [0, 128]}, "weight_block_size must be two sizes"),
    "fp8, codes of floats": ("fp8", change(FP8, weight=torch.ones(32, 64)), {}, "weight is F32"),
    "fp8, NaN": ("fp8", change(FP8, weight=(FP8["weight"].float() * torch.nan).to(torch.float8_e4m3fn)), {}, "NaN"),
    "fp8, another": ("fp8", FP8, {"fmt": "e5m2"}, "fmt 'e5m2'"),
    "modelopt, another": ("modelopt", NVFP4, {"quant_algo": "W4A8_AWQ"}, "quant_algo 'W4A8_AWQ'"),
    "modelopt, two scales": ("modelopt", change(NVFP4, weight_scale_2=torch.ones(2)), {}, "weight_scale_2 must be one"),
    "modelopt, a scale of -1": ("modelopt", change(NVFP4, weight_scale_2=-torch.ones(1)), {}, "weight_scale_2 is -1"),
    "modelopt, few scales": ("modelopt", change(NVFP4, weight_scale=NVFP4["weight_scale"][:9]), {}, "weight_scale has"),
    "modelopt, mxfp8 with a power that is no number": ("modelopt", change(MXFP8, weight_scale=BYTES | 255),
                                                       {"quant_algo": "MXFP8"}, "every scale must be a number"),
    "modelopt, mxfp8 with few powers": ("modelopt", change(MXFP8, weight_scale=BYTES[:, :1].clone()),
                                        {"quant_algo": "MXFP8"}, "weight_scale has the shape"),
    "modelopt, mxfp8 of half a group": ("modelopt", change(MXFP8, weight=MXFP8["weight"][:, :48].contiguous()),
                                        {"quant_algo": "MXFP8"}, "no multiple of MX's groups"),
    "modelopt, mxfp8 too large": ("modelopt", change(MXFP8, weight_scale=BYTES | 254),
                                  {"quant_algo": "MXFP8"}, "a scale is so large"),
    "modelopt, no codes": ("modelopt", change(MXFP8, weight=None), {"quant_algo": "MXFP8"}, "weight is missing"),
    "modelopt, scaled inputs": ("modelopt", NVFP4 | {"pre_quant_scale": torch.ones(64)}, {}, "pre_quant_scale is unex"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_by_name(tmp_path: Path, lie: str) -> None:
    method, tensors, said, message = LIES[lie]
    config = {"quantization_config": {"quant_method": method, **SAID[method], **said}}
    folder = tools.save(tmp_path, config, {M: tensors})
    with pytest.raises(CheckpointError, match=message) as raised:
        number(opened(folder))
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "mlx", "fp8", "modelopt"])
def test_the_honest_ones_are_read(tmp_path: Path, method: str) -> None:
    tensors = {"gptq": GPTQ, "awq": AWQ, "mlx": MLX, "fp8": FP8, "modelopt": NVFP4}[method]
    folder = tools.save(tmp_path, {"quantization_config": {"quant_method": method, **SAID[method]}}, {M: tensors})
    assert np.isfinite(number(opened(folder))).all()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        opened(folder)


def scheme_of(format_: str, **weights: Any) -> tuple[Any, dict[str, Any]]:
    """The library's scheme of a weight, and the config that says it."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    group = {"targets": ["Linear"], "weights": weights, "format": format_}
    said = {"quant_method": "compressed-tensors", "format": format_, "config_groups": {"group_0": group}}
    return quantization.QuantizationScheme(**group), {"quantization_config": said}


@pytest.mark.parametrize(
    ("format_", "weights"),
    [
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]}),
        ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
        ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
        ("mxfp6-pack-quantized", {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}),
        ("mxfp8-quantized", {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
        *(("pack-quantized", {"num_bits": bits, "strategy": "group", "group_size": 32, "symmetric": sym})
          for bits, sym in ((2, True), (3, False), (4, False), (5, False), (6, True), (7, False), (8, False))),
    ],
)  # fmt: skip
def test_what_compressed_tensors_itself_writes(tmp_path: Path, format_: str, weights: dict[str, Any]) -> None:
    """Its compressor writes a random weight, its decompressor says what was written."""
    scheme, said = scheme_of(format_, **weights)
    compressor = pytest.importorskip("compressed_tensors.compressors").BaseCompressor.get_value_from_registry(format_)
    generator, (n, k) = torch.Generator().manual_seed(0), (64, 96)
    groups = k // weights.get("group_size", k)
    shape = {"tensor": (1,), "block": (2, 3)}.get(weights["strategy"], (n, groups))
    scale = torch.rand(shape, generator=generator) * 0.1 + 0.02
    scale = torch.exp2(torch.floor(torch.log2(scale))) if format_.startswith("mx") else scale
    state = {"weight": torch.randn(n, k, generator=generator), "weight_scale": scale}
    if format_.startswith("nv"):
        state |= {
            "weight_scale": (scale * 100).to(torch.float8_e4m3fn).float(),
            "weight_global_scale": torch.tensor([90.0]),
        }
    if not weights.get("symmetric", True):
        half = 1 << weights["num_bits"] - 1
        state["weight_zero_point"] = torch.randint(-half, half, shape, generator=generator, dtype=torch.int8)
    written = compressor.compress(dict(state), scheme)
    expected = compressor.decompress(dict(written), scheme)["weight"].float()
    tensors = {name: tensor.contiguous() for name, tensor in written.items()}
    found = number(opened(tools.save(tmp_path, said, {M: tensors})))
    # It decompresses NVFP4 to bf16, and FP8 to float32, of which ours is bf16.
    in_bf16 = format_.startswith(("nv", "float"))
    assert np.allclose(found, expected.numpy(), rtol=2**-8 if in_bf16 else 1e-6, atol=0)
