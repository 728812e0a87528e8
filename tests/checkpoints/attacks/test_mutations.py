"""Changed files of other tools: whatever is changed, a checkpoint is read, or an error of ours says what is wrong."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.checkpoints.formats import read_checkpoint
from bitwright.errors import BitwrightError
from bitwright.files.directory import ModelDirectory
from tests.checkpoints import other_tools as tools
from tests.checkpoints.test_other_tools import AWQ, FP8, GPTQ, MLX, NVFP4, SAID

SEEDS = {"gptq": GPTQ, "awq": AWQ, "auto-round": GPTQ, "mlx": MLX, "fp8": FP8, "modelopt": NVFP4}
ACT_ORDER = tools.gptq(32, 64, order=True)[0]
SIZES = {"I32": 4, "U32": 4, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I64": 8}
SUFFIXES = ("weight_scale_2", "qzeros", "g_idx", "weight", "scales", "biases", "weight_scale_inv", "input_scale")
KEYS = ("bits", "group_size", "dynamic", "extra_config", "sym", "weight_block_size", "mode", "quant_algo")


def values() -> list[Any]:
    return [None, True, -1, 0, 1, 3, 31, 33, 64, 2**31, 2**63, 10**30, 1.5, "x", "", [], {}, [1], {"a": 1}, [128, 128]]


def change_config(said: dict[str, Any], chance: random.Random) -> None:
    key = chance.choice([*said, *KEYS])
    if chance.random() < 0.2:
        said.pop(key, None)
    else:
        said[key] = chance.choice(values())


def change_header(header: dict[str, Any], chance: random.Random) -> None:
    """Another dtype, another shape of as many values, another name."""
    name = chance.choice([key for key in header if key != "__metadata__"])
    entry, kind = header[name], chance.random()
    begin, end = entry["data_offsets"]
    if kind < 0.4:
        dtype = chance.choice(list(SIZES))
        if (end - begin) % SIZES[dtype] == 0:
            entry["dtype"], entry["shape"] = dtype, [(end - begin) // SIZES[dtype]]
    elif kind < 0.8:
        chance.shuffle(entry["shape"])
        entry["shape"] = [1] * chance.randrange(3) + entry["shape"]
    else:
        header[f"m.up.{chance.choice(SUFFIXES)}"] = header.pop(name)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numbers that were made huge
@pytest.mark.parametrize("count", [150, pytest.param(6000, marks=pytest.mark.full)])
def test_nothing_else_is_raised(tmp_path: Path, count: int) -> None:
    chance = random.Random(count)
    seeds = [({"quant_method": method, **SAID[method]}, tensors) for method, tensors in SEEDS.items()]
    seeds.append((seeds[0][0], ACT_ORDER))
    whole = []
    for i, (said, tensors) in enumerate(seeds):
        folder = tools.save(tmp_path / f"seed{i}", {}, {"m.up": tensors})
        content = (folder / "model.safetensors").read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        whole.append((json.dumps(said), content[8 : 8 + length], content[8 + length :]))
    folder, read = tmp_path / "changed", 0
    folder.mkdir()
    for _ in range(count):
        said_text, header_text, body = chance.choice(whole)
        said, header, changed = json.loads(said_text), json.loads(header_text), bytearray(body)
        for _ in range(chance.choice([1, 1, 2])):
            match chance.randrange(4):
                case 0:
                    change_config(said, chance)
                case 1:
                    change_header(header, chance)
                case 2:
                    for _ in range(chance.choice([1, 4, 30])):
                        changed[chance.randrange(len(changed))] = chance.choice(
                            [0, 255, 127, 128, chance.randrange(256)]
                        )
                case _:
                    changed = changed[: chance.randrange(1, len(changed) + 1)]
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + changed)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": said}))
        try:
            found = read_checkpoint(ModelDirectory(folder))
            for pending in found.linears.values():
                assert torch.Size(pending.load().weight.dequantize().shape) == pending.shape
            for made in found.dequantized.values():
                assert made.load().shape == made.shape
            read += 1
        except BitwrightError:
            pass
    assert 0.02 < read / count < 0.9  # some changes do no harm, most do
