"""Mapped tensors: each file is opened and mapped once, values are views, bf16 is bits until it is widened."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitwright.errors import CheckpointError
from bitwright.files.tensors import MappedTensors
from bitwright.numerics.arrays import Bf16


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(3, 4), "b": torch.randn(2, 3).bfloat16(), "c": torch.arange(5), "d": torch.zeros(0, 3)}


@pytest.fixture
def file(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_each_file_is_opened_and_mapped_once(
    file: Path, tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"e": torch.ones(2)}, tmp_path / "more.safetensors")
    opened, mapped = [], []
    real_open, real_map = Path.open, mmap.mmap

    def counted_open(path: Path, *args: object) -> object:
        opened.append(path.name)
        return real_open(path, *args)  # type: ignore[call-overload]

    def counted_map(*args: object, **how: object) -> object:
        mapped.append(args)
        return real_map(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", counted_open)
    monkeypatch.setattr(mmap, "mmap", counted_map)
    found = MappedTensors([file, tmp_path / "more.safetensors"])
    for name in found:
        _ = found[name], found.shape(name), found.dtype(name), found.file(name)
    assert set(found) == {*tensors, "e"}
    assert (opened, len(mapped)) == (["model.safetensors", "more.safetensors"], 2)


def test_views_are_as_before_when_pages_were_dropped(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = MappedTensors([file])
    before = {name: np.array(found[name].bits if isinstance(found[name], Bf16) else found[name]) for name in found}
    views = {name: found[name] for name in found}
    found.drop_pages()
    for name, view in views.items():
        np.testing.assert_array_equal(view.bits if isinstance(view, Bf16) else view, before[name])
    assert before.keys() == tensors.keys()


def test_values_are_those_of_the_file_and_are_not_written(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = MappedTensors([file])
    for values in (found["a"], found.alone("a")):
        assert isinstance(values, np.ndarray)
        assert np.array_equal(values, tensors["a"])
        assert not values.flags.writeable
    assert np.array_equal(found["c"], tensors["c"])
    assert (found["d"].shape, found.shape("d"), found.dtype("d")) == ((0, 3), (0, 3), "F32")
    with pytest.raises(KeyError):
        found["nowhere"]


def test_bf16_is_no_number_until_it_is_widened(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = MappedTensors([file])
    values = found["b"]
    assert isinstance(values, Bf16)
    assert np.array_equal(values.widen(), tensors["b"].float())
    for algebra in (
        lambda x: x + 1,
        lambda x: x * 2.0,
        lambda x: -x,
        lambda x: x @ x,
        lambda x: x / 2,
        lambda x: x > 0,
    ):
        with pytest.raises(TypeError):
            algebra(values)


def test_bytes_are_read_into_a_buffer(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    found, values = MappedTensors([file]), np.empty(5, np.float32)
    found.read_into("a", 4 * 6, values.data.cast("B"))
    assert np.array_equal(values, tensors["a"].flatten()[6:11])
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(CheckpointError, match="bytes too early; it has changed"):
        found.read_into("b", 0, memoryview(bytearray(12)))


def test_a_name_in_two_files_and_a_dtype_that_numpy_lacks(file: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors")
    with pytest.raises(
        CheckpointError, match=r"a is also in model\.safetensors, so it is not clear which one is right"
    ):
        MappedTensors([file, tmp_path / "b.safetensors"])
    save_file({"x": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="cannot read the dtype F8_E4M3"):
        MappedTensors([tmp_path / "c.safetensors"])["x"]
