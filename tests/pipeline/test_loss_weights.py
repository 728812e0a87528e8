"""How much each token counts: squares of the float model's gradients, kept by batch; left out where they do not fit."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitwright.models.load import load_model
from bitwright.pipeline import gradients, quantize
from bitwright.pipeline.job import Job, open_job
from bitwright.pipeline.loss_weights import loss_weights
from bitwright.pipeline.request import Texts
from bitwright.pipeline.variants import calibration_batches
from bitwright.progress import Quiet
from bitwright.quantizing import layers
from bitwright.quantizing.layers import in_parts
from bitwright.recipe import make_recipe
from bitwright.search.fisher import log_likelihood

RECIPE: dict[str, Any] = {
    "scheme": "w4a16_g32", "method": "gptq", "targets": ["bitwright"],
    "calibration": {"samples": 10, "max_tokens": 24, "batch_size": 8},
}  # fmt: skip


def job_of(source: Path, **options: Any) -> Job:
    return open_job(source, make_recipe(RECIPE | {"options": options}), Texts(samples=4))


def test_weights_are_squared_gradients_of_the_drawn_likelihood(
    trained_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bitwright.pipeline.loss_weights.fast_forward", nullcontext
    )  # so that the same labels are drawn
    job = job_of(trained_decoder, loss_groups=3)
    batches = in_parts(calibration_batches(job))
    weights = loss_weights(job, batches, tmp_path, Quiet())
    assert weights is not None
    found = weights(1)
    assert len(found) == 3 * 7
    assert all(values.shape == (2, 24, 3) for values in found.values())

    model = load_model(trained_decoder).model
    outputs: dict[str, torch.Tensor] = {}
    for name in found:
        model.get_submodule(name).register_forward_hook(lambda _, args, y, name=name: outputs.update({name: y}))
    generator = torch.Generator().manual_seed(1)
    for row in range(2):
        logits = model(input_ids=batches[1]["input_ids"][row : row + 1], use_cache=False).logits[0, :-1]
        wanted = torch.autograd.grad(log_likelihood(logits, generator), list(outputs.values()))
        for name, gradient in zip(outputs, wanted, strict=True):
            parts = [part.square().mean(-1) for part in gradient[0].tensor_split(3, dim=-1)]
            assert torch.allclose(found[name][row], torch.stack(parts, dim=-1), rtol=1e-3, atol=1e-9)


def test_padding_does_not_count(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    job = job_of(tiny_model("bert"), loss_groups=1)
    (batch, *_) = in_parts(calibration_batches(job))
    mask_BT = batch["attention_mask"]
    mask_BT[0, 9:] = mask_BT[1, 15:] = 0
    weights = loss_weights(job, [batch], tmp_path, Quiet())
    assert weights is not None
    for values in weights(0).values():
        assert not values[mask_BT == 0].any()
        assert values[mask_BT == 1].any()


def test_batches_that_are_there_are_not_computed_again(
    trained_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(trained_decoder, loss_groups=1)
    batches = in_parts(calibration_batches(job))
    weights = loss_weights(job, batches, tmp_path, Quiet())
    assert weights is not None
    before = weights(0)
    (tmp_path / "loss-weights-00001.safetensors").unlink()
    computed = []
    real = gradients.output_of

    def counting(*args: Any) -> Any:
        computed.append(args)
        return real(*args)

    monkeypatch.setattr("bitwright.pipeline.loss_weights.output_of", counting)
    again = loss_weights(job, batches, tmp_path, Quiet())
    assert again is not None
    assert len(computed) == len(batches[1]["input_ids"])
    assert all(torch.equal(again(0)[name], values) for name, values in before.items())


def test_they_are_asked_for_and_only_of_gptq(trained_decoder: Path, tmp_path: Path) -> None:
    assert loss_weights(job_of(trained_decoder), [], tmp_path, Quiet()) is None
    rtn = make_recipe(RECIPE | {"method": "rtn", "options": {"loss_groups": 2}})
    assert loss_weights(open_job(trained_decoder, rtn, Texts(samples=4)), [], tmp_path, Quiet()) is None


def test_what_does_not_fit_is_left_out_and_said(
    trained_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=1 << 16))
    monkeypatch.setattr(gradients, "psutil", little)
    recipe = make_recipe(RECIPE | {"options": {"loss_groups": 2}})
    result = quantize(trained_decoder, out=tmp_path / "out", recipe=recipe, samples=4, judged=False)
    said = [text for text in result.measured.warnings if "not weighted by the loss" in text]
    assert len(said) == 1
    assert "GB are free" in said[0]
    assert result.record["recipe"]["options"]["loss_groups"] == 0
    monkeypatch.undo()
    plain = quantize(trained_decoder, out=tmp_path / "plain", recipe=make_recipe(RECIPE), samples=4, judged=False)
    files = [path.directory / "model.safetensors" for path in (result, plain)]
    assert files[0].read_bytes() == files[1].read_bytes()


class Stopping(Quiet):
    """Stops the run at the third block."""

    def say(self, text: str) -> None:
        if text == "quantizing block 2":
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_to_the_same_bytes(
    trained_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both paths of hidden states are kept, and the weights are."""
    monkeypatch.setattr(layers, "_SAVING", float("inf"))
    recipe = make_recipe(RECIPE | {"options": {"loss_groups": 2, "mismatch": 1.0}})
    whole = quantize(trained_decoder, out=tmp_path / "whole", recipe=recipe, samples=4, judged=False)
    settings: dict[str, Any] = {"out": tmp_path / "stopped", "recipe": recipe, "samples": 4, "judged": False}
    with pytest.raises(KeyboardInterrupt):
        quantize(trained_decoder, progress=Stopping(), **settings)
    assert list((tmp_path / ".stopped.bitwright").glob("inputs-00002*"))
    again = quantize(trained_decoder, **settings)
    files = [found.directory / "model.safetensors" for found in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
