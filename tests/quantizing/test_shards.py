"""What is kept of a stage: it comes back whole, or not at all."""

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitwright.errors import CheckpointError
from bitwright.methods.rtn import rtn
from bitwright.numerics import RANGES
from bitwright.numerics.linear import InputTransform, QuantizedLinear, StaticGrid
from bitwright.numerics.schemes import SCHEMES
from bitwright.quantizing import shards as shards_file
from bitwright.quantizing.shards import Made, Shards
from bitwright.record import LayerRow

ACCOUNT = [LayerRow("a", 0, "ffn", "a", error=0.25, sqnr_db=float("inf"), more={"noted": [1, 2]})]
NOTHING = Made({}, {}, (), [])


def layer(scheme: str, seed: int = 0, **more: Any) -> QuantizedLinear:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    spec = SCHEMES[scheme].weight
    assert spec is not None
    qtensor, bias = rtn(weight, None, spec, RANGES["min_max"]).qtensor, torch.arange(6.0) + seed
    return QuantizedLinear(qtensor, bias, SCHEMES[scheme].input, **more)


def lifted(linear: QuantizedLinear) -> QuantizedLinear:
    """With minima for zero points."""
    q = linear.weight
    return replace(linear, weight=replace(q, zero_point_NG=None, minimum_NG=-3 * q.scale_NG))


LAYERS = {
    "a": ("w8a8", layer("w8a8")),
    "a.b": ("w4a16_g32_asym", layer("w4a16_g32_asym", 1)),
    "b": ("kmeans4_g32", layer("kmeans4_g32", 2, transform=InputTransform(torch.rand(64) + 1, torch.randn(64)))),
    "c": (
        "w8a8_static",
        layer("w8a8_static", 3, static=StaticGrid(0.5, 3)),
    ),
    "d": ("w4a16_g32_asym", lifted(layer("w4a16_g32_asym", 4))),
}


def made() -> Made:
    changed = {"norm.weight": torch.arange(5.0), "a.weight": torch.arange(384.0).reshape(6, 64).bfloat16().T}
    return Made({name: kept for name, (_, kept) in LAYERS.items()}, changed, {"b"}, ACCOUNT)


def same(one: QuantizedLinear, other: QuantizedLinear) -> bool:
    def tensors(stored: QuantizedLinear) -> list[Tensor | None]:
        q, transform = stored.weight, stored.transform
        own = [q.codes_NK, q.scale_NG, q.zero_point_NG, q.minimum_NG, q.codebook, stored.bias_N]
        return own + ([None, None] if transform is None else [transform.scale_K, transform.shift_K])

    pairs = zip(tensors(one), tensors(other), strict=True)
    alike = all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)
    return alike and (one.form, one.static) == (other.form, other.static)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kept = made()
    Shards(tmp_path).write(0, NOTHING)
    Shards(tmp_path).write(1, kept)
    found = Shards(tmp_path)
    found.index(2)
    for name, (scheme, stored) in LAYERS.items():
        assert same(found.layer(name, SCHEMES[scheme]), stored), name
        assert found.is_rebiased(name) == (name == "b")
        assert found.has_part(name, "input_shift_K") == (name == "b")
    assert torch.equal(found.bias("b"), kept.layers["b"].bias_N)
    assert set(found.changed_names()) == kept.changed.keys()
    assert all(torch.equal(found.changed(name), value) for name, value in kept.changed.items())
    assert found.account(2) == ACCOUNT
    assert {path.name for path in tmp_path.iterdir()} == {"shard-00000.safetensors", "shard-00001.safetensors"}


def test_same_content_same_bytes(tmp_path: Path) -> None:
    for index in (0, 1):
        Shards(tmp_path).write(index, made())
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == second.read_bytes()


INPUTS: list[Any] = [
    (torch.arange(24.0).reshape(2, 3, 4), None, (torch.arange(3), torch.tensor(2.5))),
    (torch.ones(1, 3, 4).bfloat16().transpose(1, 2), None, (torch.arange(2), torch.tensor(True))),
]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one is other is None or (len(one) == len(other) and all(map(equal, one, other)))


def test_inputs_come_back_and_replace_those_before(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    assert shards.resume() == (0, None)
    for index in range(3):
        shards.save_inputs(index, INPUTS if index == 2 else [torch.zeros(3)])
        shards.write(index, NOTHING)
    assert sorted(path.name for path in tmp_path.glob("inputs-*")) == ["inputs-00002.safetensors"]
    index, inputs = Shards(tmp_path).resume()
    assert index == 2
    assert inputs is not None
    assert equal(inputs, INPUTS)
    inputs[0][0].add_(1)  # memory of its own, not the file's
    assert equal(Shards(tmp_path).resume()[1], INPUTS)


def test_a_kill_between_two_writes_loses_one_stage(tmp_path: Path) -> None:
    """A stage is made again if the inputs of the next were not kept; inputs without all shards before count nothing."""
    shards = Shards(tmp_path)
    shards.write(0, NOTHING)
    shards.save_inputs(1, INPUTS)
    shards.write(1, made())  # and a kill, before the inputs of stage 2 are kept
    assert Shards(tmp_path).resume()[0] == 1
    (tmp_path / ".inputs-00002.safetensors.part").write_bytes(b"cut sho")
    (tmp_path / ".shard-00001.safetensors.part").write_bytes(b"cut sho")
    assert Shards(tmp_path).resume()[0] == 1
    shards.write(1, made())  # over what a killed run was writing
    shards.save_inputs(2, INPUTS)
    assert Shards(tmp_path).resume()[0] == 2
    (tmp_path / "shard-00000.safetensors").unlink()
    assert Shards(tmp_path).resume() == (0, None)


DAMAGE = {
    "truncated": lambda content: content[:-7],
    "truncated in the header": lambda content: content[:40],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "something else": lambda content: b"not a file of tensors",
    "without facts": lambda content: content.replace(b'"facts"', b'"facta"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["shard-00000", "inputs-00001"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    shards = Shards(tmp_path)
    shards.write(0, made())
    shards.save_inputs(1, INPUTS)
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    read: Callable[[], Any] = Shards(tmp_path).resume  # before any work is done
    if (name, damage) == ("shard-00000", "without facts"):
        read = partial(Shards(tmp_path).account, 1)
    with pytest.raises(CheckpointError, match=rf"{name}.* is damaged \(.+\); delete {tmp_path} to start over"):
        read()


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    Shards(tmp_path).write(0, made())
    found = Shards(tmp_path)
    found.index(1)
    path = tmp_path / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(CheckpointError, match="bytes too early"):
        [found.layer(name, SCHEMES[scheme]) for name, (scheme, _) in LAYERS.items()]


def test_a_full_disk_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path)
    shards.write(0, made())
    before = (tmp_path / "shard-00000.safetensors").read_bytes()

    def fail(path: Path, _: Any) -> None:
        path.write_bytes(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards_file, "write_safetensors", fail)
    with pytest.raises(CheckpointError, match=r"No space left on device.*run the same command"):
        shards.write(0, made())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_outputs_of_a_block_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a block gave a dict"):
        Shards(tmp_path).save_inputs(1, [{"hidden": torch.zeros(2)}])
