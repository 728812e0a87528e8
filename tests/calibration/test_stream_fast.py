"""What calibration saves time by: bf16 where the CPU multiplies it, and no more of a block than has to be seen."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitwright.calibration import precision
from bitwright.calibration.observers import observe
from bitwright.calibration.precision import fast_matmul
from bitwright.calibration.stream import Stage, stream_stages
from bitwright.models.load import LoadedModel, load_model
from bitwright.models.sites import find_linears

IDS = torch.randint(5, 200, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loaded(decoder_dir: Callable[..., Path]) -> LoadedModel:
    return load_model(decoder_dir("llama"))


def first_stage(loaded: LoadedModel, *, fast: bool) -> Stage:
    sites = find_linears(loaded.model, loaded.architecture)
    return next(stream_stages(loaded.model, loaded.architecture, sites, [{"input_ids": IDS}], fast=fast))


@pytest.mark.parametrize("able", [True, False])
def test_fast_matmul_sets_the_precision_and_puts_it_back(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: able)
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    with fast_matmul():
        assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if able else before)  # type: ignore[attr-defined]
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fast", "able"), [(True, True), (True, False), (False, True)])
def test_linears_put_out_bf16_and_the_residual_stream_stays_float32(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, fast: bool, able: bool
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: able)
    seen: list[torch.dtype] = []
    linear = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    hook = linear.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    (output,) = first_stage(loaded, fast=fast).outputs()
    hook.remove()
    assert seen == [torch.bfloat16 if fast and able else torch.float32]
    assert (output if isinstance(output, Tensor) else output[0]).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_products_that_a_model_keeps_in_float32_are_not_rounded(loaded: LoadedModel) -> None:
    """Rotary tables are products of positions, of which bf16 no longer tells those beyond 256 apart."""
    positions_B1T, frequencies_BK1 = torch.arange(300.0).expand(2, 1, -1), torch.rand(2, 16, 1)
    found: list[Tensor] = []

    def multiply(*_: object) -> None:
        with torch.autocast("cpu", enabled=False):
            found.append(frequencies_BK1 @ positions_B1T)

    hook = loaded.model.get_submodule("model.layers.0").register_forward_pre_hook(multiply)
    first_stage(loaded, fast=True).outputs()
    hook.remove()
    torch.testing.assert_close(found[0], frequencies_BK1 * positions_B1T)


def test_statistics_are_summed_in_float32(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs may be rounded; a Gram matrix in bf16 would lose what GPTQ needs."""
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)
    grams = {}
    for fast in (True, False):
        stage = first_stage(loaded, fast=fast)
        stats = stage.observe(stage.sites, partial(observe, gram=True, fast=stage.fast))
        grams[fast] = stats["model.layers.0.mlp.gate_proj"].gram_KK
    assert grams[True] is not None
    assert grams[False] is not None
    assert grams[True].dtype == torch.float32
    assert not torch.equal(grams[True], grams[True].bfloat16().float())
    torch.testing.assert_close(grams[True], grams[False], rtol=0.05, atol=0.05 * float(grams[False].abs().max()))


@pytest.mark.parametrize(
    ("last", "runs"), [("mlp.down_proj", ["self_attn.o_proj", "mlp.up_proj"]), ("self_attn.q_proj", [])]
)
def test_a_block_runs_no_further_than_what_is_asked_for(loaded: LoadedModel, last: str, runs: list[str]) -> None:
    ran: list[str] = []
    block = loaded.model.get_submodule("model.layers.0")
    hooks = [
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    stage = first_stage(loaded, fast=False)
    site = next(site for site in stage.sites if site.name.endswith(last))
    found = stage.observe([site], observe)
    assert ran == runs
    assert found[site.name].n_tokens == IDS.numel()
    stage.outputs()
    assert ran == [*runs, "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    for hook in hooks:
        hook.remove()
