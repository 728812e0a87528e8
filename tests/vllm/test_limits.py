"""What the plug-in does where it cannot help: off, an unknown vLLM, unknown schemes, broken files, other plug-ins."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright.errors import TargetError
from tests.vllm.engines import LINEARS, OURS, OWN, Checkpoint, write_checkpoint

pytestmark = pytest.mark.full
Ask = Callable[..., dict[str, Any]]
INT8, PACKED = "BitwrightInt8LinearKernel", "BitwrightWNA16LinearKernel"


@pytest.fixture
def plain(worker: Ask) -> Iterator[Ask]:
    """vLLM without the plug-in, and so again after the test."""
    yield lambda do, **arguments: worker(OWN, do, **arguments)
    worker(OWN, "forget")


def kernels(plain: Ask, directory: Path) -> dict[str, int]:
    found: dict[str, int] = plain("open_model", path=str(directory), dtype="bfloat16")["kernels"]
    return found


def test_a_vllm_that_lacks_a_class_goes_on_without_us(plain: Ask, checkpoint: Callable[[str], Path]) -> None:
    (line,) = plain("register_without", name="MPLinearKernel")["said"]
    assert "kernels for mp (" in line
    assert "MPLinearKernel" in line
    assert kernels(plain, checkpoint("w4a16_g32")) == {"CPUWNA16LinearKernel": LINEARS}
    assert kernels(plain, checkpoint("w8a8")) == {INT8: LINEARS}


def test_a_vllm_that_lacks_a_list_gets_our_kernel_by_the_public_function(
    plain: Ask, checkpoint: Callable[[str], Path]
) -> None:
    answer = plain("register_without", name="_POSSIBLE_INT8_KERNELS")
    assert "CPUInt8ScaledMMLinearKernel" in answer["disabled"]
    assert kernels(plain, checkpoint("w8a8")) == {INT8: LINEARS}


def test_of_two_plug_ins_the_last_comes_first_and_ours_takes_what_it_leaves(
    plain: Ask, checkpoint: Callable[[str], Path]
) -> None:
    plain("register_without", name="")
    plain("another_plugin", takes=False)
    assert kernels(plain, checkpoint("w8a8")) == {INT8: LINEARS}
    plain("another_plugin", takes=True)
    assert kernels(plain, checkpoint("w8a8")) == {"AnotherKernel": LINEARS}
    assert kernels(plain, checkpoint("w4a16_g32")) == {PACKED: LINEARS}


def test_inputs_that_ours_do_not_take_run_on_vllms(worker: Ask, checkpoint: Callable[[str], Path]) -> None:
    opened = worker(OURS, "open_model", path=str(checkpoint("w4a16_g32")), dtype="float16")
    assert opened["kernels"] == {"CPUWNA16LinearKernel": LINEARS}


def test_a_scheme_that_nobody_has_is_named(worker: Ask, float_model: Path, tmp_path: Path) -> None:
    write_checkpoint(float_model, tmp_path / "w8a16", Checkpoint({"scheme": "w8a16"}, {}))
    with pytest.raises(TargetError, match="weights of 8 bits; Bitwright's kernel takes 2, 3, 4"):
        worker(OURS, "open_model", path=str(tmp_path / "w8a16"), dtype="bfloat16")


def test_a_checkpoint_that_vllm_itself_refuses_is_named(worker: Ask, float_model: Path, tmp_path: Path) -> None:
    """GPTQ in 8 bits with zero points never gets as far as a kernel."""
    write_checkpoint(float_model, tmp_path / "gptq", Checkpoint({"scheme": "w4a16_g32_asym"}, {}, "gptq"))
    config = tmp_path / "gptq" / "config.json"
    config.write_text(config.read_text().replace('"bits": 4', '"bits": 8'))
    with pytest.raises(TargetError, match="sym=False"):
        worker(OURS, "open_model", path=str(tmp_path / "gptq"), dtype="bfloat16")


@pytest.mark.parametrize("spoil", [lambda data: data[:-100], lambda data: b"\xff" * 8 + data[8:]])
def test_a_broken_shard_ends_in_an_error(
    spoil: Callable[[bytes], bytes], worker: Ask, checkpoint: Callable[[str], Path], copied: Callable[[Path], Path]
) -> None:
    """And the process can load another model after it."""
    broken = copied(checkpoint("w8a8"))
    shard = broken / "model.safetensors"
    shard.write_bytes(spoil(shard.read_bytes()))
    with pytest.raises(TargetError, match="SafetensorError"):
        worker(OURS, "open_model", path=str(broken), dtype="bfloat16")
    assert worker(OURS, "open_model", path=str(checkpoint("w8a8")), dtype="bfloat16")["kernels"] == {INT8: LINEARS}
