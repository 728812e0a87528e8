"""A language model in a clean process, in our runtime and in plain transformers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bitwright.checkpoints.write import QuantizedParts, write_checkpoint
from bitwright.files.directory import ModelDirectory
from bitwright.kernels import dispatch
from bitwright.models.load import load_model
from bitwright.models.names import model_names
from bitwright.numerics.linear import QuantizedLinear, ready
from bitwright.runtime.generic_model import float_model
from bitwright.runtime.swap import set_compute, swap_linears
from bitwright.runtime.verify import compared, verify
from bitwright.runtime.verify_library import Given

pytestmark = [
    pytest.mark.skipif(not dispatch.available(), reason="the native kernels are not built"),
    pytest.mark.usefixtures("new_interpreters"),
]


def test_a_decoder_gives_the_same_logits_in_a_clean_process(
    tiny_decoder: Callable[..., Path],
    round_linears: Callable[..., dict[str, QuantizedLinear]],
    tmp_path: Path,
) -> None:
    ids = np.random.default_rng(1).integers(5, 200, (3, 9))
    source, out = tiny_decoder("llama", torch.bfloat16), tmp_path / "out"
    quantized, dequantized = load_model(source), load_model(source)
    layers = round_linears(quantized.model, "llama", "w8a8")
    parts = QuantizedParts({name: ready(layer) for name, layer in layers.items()})
    write_checkpoint(
        ModelDirectory(source), out, parts, model_names(quantized.model, quantized.architecture), model_card="card"
    )
    swap_linears(quantized.model, layers, {}, quantized.architecture)
    set_compute(quantized.model, "auto")
    with torch.no_grad():
        for name, layer in layers.items():
            dequantized.model.get_submodule(name).get_parameter("weight").copy_(layer.weight.dequantize())
    ours, calls = compared(float_model(quantized), torch.from_numpy(ids))
    theirs, none = compared(float_model(dequantized), torch.from_numpy(ids))
    assert ours.shape == theirs.shape == (3, 200)
    assert (calls, none) == (14, 0)
    assert not np.allclose(ours, theirs, rtol=1e-3)
    original, _ = compared(float_model(load_model(source)), torch.from_numpy(ids))
    rows = verify(out, ("bitwright", "transformers"), Given(ids, theirs, ours), calls, original=original)
    assert [(row["target"], row["ok"]) for row in rows] == [("bitwright", True), ("transformers", True)], rows
    assert rows[0]["checks"]["relative_error"] == 0.0


def test_a_process_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.runtime.verify.seconds_allowed", lambda *work: 0.1)
    nothing = np.zeros((2, 3), np.float32)
    (row,) = verify(tmp_path, ["bitwright"], Given(np.ones((2, 3), np.int64), nothing, nothing), 0)
    assert (row["ok"], row["detail"]) == (False, "the process gave no answer within 0 s, and was killed")
